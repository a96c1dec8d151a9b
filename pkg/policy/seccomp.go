package policy

// Seccomp names the system call filter that a container of an engine gets beside the
// engine's own. A guest of psi's own always has CPython's, whatever this says.
type Seccomp string

const (
	// SeccompEngine leaves the engine's filter as the only list; the default.
	SeccompEngine Seccomp = ""
	// SeccompPython adds the list made for CPython: for images that run Python.
	SeccompPython Seccomp = "python"
)

// seccompFilter reads the key seccomp. A child cannot take it back: there is no other
// value.
func (r *reader) seccompFilter(key string, n *node) {
	if n.kind != textNode || n.text != string(SeccompPython) {
		r.fail((&Error{Value: n.text, Rule: "is not a list of system calls that psi has", WayOut: "write python, or remove the key: the engine's own filter then stands alone"}).in(r.source, key, n))
		return
	}
	r.policy.seccomp = SeccompPython
	r.set(key, n.text, n)
}
