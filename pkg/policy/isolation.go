package policy

// Isolation says what a guest may share with guests before and after it.
type Isolation string

const (
	// IsolationShared lets a guest be forked from an interpreter that others are forked
	// from too; the default. They share the layout of their memory, nothing in it.
	IsolationShared Isolation = ""
	// IsolationFresh asks for an interpreter that was started for this guest alone.
	IsolationFresh Isolation = "fresh"
)

// isolation reads the key of that name. A child cannot take it back: there is no other value.
func (r *reader) isolation(key string, n *node) {
	if n.kind != textNode || n.text != string(IsolationFresh) {
		r.fail((&Error{Value: n.text, Rule: "is not a kind of isolation", WayOut: "write fresh, or remove the key: the guest may then be forked from a warm interpreter"}).in(r.source, key, n))
		return
	}
	r.policy.isolation = IsolationFresh
	r.set(key, n.text, n)
}
