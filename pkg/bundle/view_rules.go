package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/psi-runtime/psi/pkg/policy"
)

// wildcards are the characters that make a component of a pattern a glob.
const wildcards = "*?["

// pattern answers the questions of a walk about a policy pattern. The paths
// below are those that the guest sees, unless said otherwise.
type pattern string

// literal reports whether the pattern is one path. It then stands for
// everything below it too.
func (p pattern) literal() bool { return !strings.ContainsAny(string(p), wildcards) }

// matches reports whether path itself is meant.
func (p pattern) matches(path string) bool {
	return policy.Match(string(p), path) || p.literal() && isBelow(path, string(p))
}

// covers reports whether everything below dir is meant.
func (p pattern) covers(dir string) bool {
	if p.literal() {
		return isBelow(dir, string(p))
	}
	return strings.HasSuffix(string(p), "/**") && policy.Match(string(p), dir)
}

// reaches reports whether something below dir may be meant. It errs on the side
// of yes.
func (p pattern) reaches(dir string) bool {
	if p.covers(dir) {
		return true
	}
	want := strings.Split(string(p), "/")[1:]
	have := strings.Split(dir, "/")[1:]
	if dir == "/" {
		have = nil
	}
	for i, name := range want {
		if name == "**" {
			return policy.Match(join(want[:i]), join(have[:i]))
		}
		if i == len(have) {
			return policy.Match(join(want[:i]), dir)
		}
	}
	return false
}

func join(names []string) string { return "/" + strings.Join(names, "/") }

// denials are the deny rules of a policy, each under the name that the policy
// gives and under the one that the host resolves it to: a file is denied under
// whatever path it is reached.
type denials []pattern

func newDenials(rules []policy.FSRule) denials {
	var out denials
	for _, r := range rules {
		if r.Mode != policy.Deny {
			continue
		}
		out = append(out, pattern(r.Pattern))
		literal := policy.LiteralDir(r.Pattern)
		if resolved := resolveExisting(literal); resolved != literal {
			rest := strings.TrimPrefix(r.Pattern, literal)
			out = append(out, pattern(quoteGlob(resolved)+rest))
		}
	}
	return out
}

// resolveExisting resolves the symbolic links in the part of path that exists.
func resolveExisting(path string) string {
	rest := ""
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(resolved, rest)
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
	return path
}

// quoteGlob writes a path as the pattern that matches it alone, and not what is
// below it; a path without wildcards stays as it is.
func quoteGlob(path string) string {
	return strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]").Replace(path)
}

// hides reports whether the entry, dest in the guest and source on the host, is
// denied. A denied directory takes everything below it along.
func (d denials) hides(dest, source string) bool {
	for _, p := range d {
		if p.matches(dest) || p.matches(source) {
			return true
		}
	}
	return false
}

// hidesAbove is hides for a path or any directory above it.
func (d denials) hidesAbove(path string) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		if d.hides(path, path) {
			return true
		}
	}
	return false
}

// reach reports whether something below the directory may be denied, now or
// once it is created.
func (d denials) reach(dest, source string) bool {
	for _, p := range d {
		if p.reaches(dest) || p.reaches(source) {
			return true
		}
	}
	return false
}

// shownRule is a read or write rule with its literal part found on the host.
type shownRule struct {
	policy.FSRule
	dest   string // the literal part, as the policy and the guest name it
	source string // the same on the host, with every symbolic link resolved
}

func (r shownRule) pattern() pattern { return pattern(r.Pattern) }

// fail makes the error of the rule about a host path.
func (r shownRule) fail(path, problem, wayOut string, err error) error {
	var cause error
	if err != nil {
		// The path is in the message already.
		cause = err
		var pe *os.PathError
		if errors.As(err, &pe) {
			cause = pe.Err
		}
	}
	return &ViewError{Rule: r.FSRule, Path: path, Problem: problem, WayOut: wayOut, Err: cause}
}

// newShownRule looks the literal part of a rule up. There must be no symbolic link in it.
func newShownRule(rule policy.FSRule) (shownRule, error) {
	r := shownRule{FSRule: rule, dest: policy.LiteralDir(rule.Pattern)}
	source, err := filepath.EvalSymlinks(r.dest)
	if errors.Is(err, os.ErrNotExist) {
		return r, r.fail(r.dest, "does not exist on this host", "create it first, or remove the rule", nil)
	}
	if err != nil {
		return r, r.fail(r.dest, "cannot be looked up", "", err)
	}
	if err := checkText(source); err != nil {
		return r, r.fail(r.dest, "leads to a name that is not text", "name it otherwise", err)
	}
	if source != r.dest {
		// Who may write beside a link, another guest perhaps, can move it to where a rule points.
		if err := policy.CheckDir(source); err != nil {
			return r, r.fail(r.dest, "is a symbolic link to a forbidden place", "", err)
		}
		return r, r.fail(r.dest, "is, or lies behind, a symbolic link to "+source, "name "+source+" instead", nil)
	}
	r.source = source
	return r, nil
}
