package policy

import (
	"slices"
	"strings"
)

// Access is what file rules say about one path. The zero Access is that of a path
// that no rule matches: it is denied.
type Access uint8

// The parts of an [Access].
const (
	MayRead    Access = 1 << iota // a read or write rule matches, and no deny rule
	MayWrite                      // a write rule matches, and no deny rule; never without MayRead
	Denied                        // a deny rule matches, the path or a directory above it; never with another
	MayExecute                    // a part of the guest's own root that may be executed; see [CompileGuest]
	Own                           // a place of the guest's own, which leads to nobody else; see [CompileGuest]
)

// String says what may be done: "read", "read and write", "denied" or "unmatched".
func (a Access) String() string {
	switch {
	case a&Denied != 0:
		return "denied"
	case a&MayWrite != 0:
		return "read and write"
	case a&MayExecute != 0:
		return "read and execute"
	case a&MayRead != 0:
		return "read"
	}
	return "unmatched"
}

// Matches reports whether the rule speaks about path, which is absolute and
// clean. A pattern without wildcards means the path and everything below it, and
// what is denied is denied with everything below it; else see [Match].
func (r FSRule) Matches(path string) bool {
	if Match(r.Pattern, path) {
		return true
	}
	if isLiteral(r.Pattern) {
		return r.Pattern == "/" || strings.HasPrefix(path, r.Pattern+"/")
	}
	return r.Mode == Deny && Match(r.Pattern+"/**", path)
}

// isLiteral reports a pattern without wildcards.
func isLiteral(pattern string) bool { return !strings.ContainsAny(pattern, "*?[") }

// DecideFS says what rules permit for path, which is absolute and clean, and
// which of the rules decide: those that deny, or all that open. It is the
// reference meaning of a list of rules, as [Match] is of a pattern; [Automaton]
// is the fast one.
func DecideFS(rules []FSRule, path string) (Access, []FSRule) {
	var access Access
	var deciding []FSRule
	for _, r := range rules {
		if !r.Matches(path) {
			continue
		}
		deciding = append(deciding, r)
		access |= r.access()
	}
	if access&Denied == 0 {
		return access, deciding
	}
	return Denied, slices.DeleteFunc(deciding, func(r FSRule) bool { return r.Mode != Deny })
}

// access returns what the rule alone says.
func (r FSRule) access() Access {
	switch r.Mode {
	case Read:
		return MayRead
	case Write:
		return MayRead | MayWrite
	}
	return Denied
}
