package bundle

import (
	"fmt"
	"path"
	"strings"

	"github.com/psi-runtime/psi/pkg/policy"
)

// ViewMount is one bind mount that shows host files to the guest.
type ViewMount struct {
	Source string // host path, absolute, every symbolic link resolved
	Dest   string // where the guest sees it: the path that the policy names
	Dir    bool   // a directory with everything below it; else one regular file
	Write  bool   // else read-only
	Rules  string // of a live view: those that decide in it, for comparing two views
}

// View is what the file rules of a policy come to on this host at this moment.
//
// Globs, and directories that hold something that must not be shown, are shown
// file by file: the guest then sees the files that existed when the view was
// planned, and cannot add any beside them. Names that no rule matches do not
// exist in the guest. A deny rule that matches a directory takes everything in it
// away, and one that might match something in a directory, now or later, makes it
// one that is shown file by file.
type View struct {
	Mounts []ViewMount // sorted by Dest, so that parents come before what is in them
	Dirs   []string    // directories that must exist in the root as plain empty ones; sorted; none is a Dest or below one. Below /tmp, a tmpfs, there are only those with a mount in them
	Notes  []string    // for people: how each rule is shown and what it leaves out
}

// Bounds of a view. A mount costs the guest's start about 20 µs and the kernel
// about 1 KiB; an entry costs the plan about 2 µs.
const (
	maxMounts  = 4096
	maxEntries = 200_000
)

// ViewError is a file rule that this host cannot show. It is the policy's (or the
// host's) fault, never psi's.
type ViewError struct {
	Rule    policy.FSRule
	Path    string // host path that is in the way; may be empty
	Problem string // what is wrong with it
	WayOut  string // what to do instead
	Err     error  // of the kernel; may be nil
}

// Error formats as "fs rule read "/srv/x": "path": problem: cause: way out".
func (e *ViewError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fs rule %s %q: ", e.Rule.Mode, e.Rule.Pattern)
	if e.Path != "" && e.Path != e.Rule.Pattern {
		fmt.Fprintf(&b, "%q ", e.Path)
	}
	b.WriteString(e.Problem)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.WayOut != "" {
		b.WriteString(": " + e.WayOut)
	}
	return b.String()
}

// Unwrap returns the kernel's error.
func (e *ViewError) Unwrap() error { return e.Err }

// PlanView finds out what the file rules of p show on this host. It reads
// directories with the caller's credentials and on the caller's thread only, and
// opens nothing but directories, so that no FIFO can block it. A rule whose
// literal part does not exist, or which takes more than 4096 mounts or 200,000
// directory entries, is a [*ViewError].
//
// What the view names can be exchanged before it is mounted, by whoever may
// write there, a guest with a write rule included: mount what [OpenSource]
// returns, never a path.
func PlanView(p policy.Policy) (View, error) {
	return planView(p.FS(), bounds{mounts: maxMounts, entries: maxEntries})
}

// bounds are the limits of one plan.
type bounds struct{ mounts, entries int }

func planView(rules []policy.FSRule, limit bounds) (View, error) {
	deny := newDenials(rules)
	var plans []*plan
	for _, r := range rules {
		if r.Mode == policy.Deny {
			continue
		}
		shown, err := newShownRule(r)
		if err != nil {
			return View{}, err
		}
		plans = append(plans, &plan{rule: shown, deny: deny, limit: limit.mounts})
	}
	if len(plans) == 0 {
		return View{}, nil
	}
	submounts, err := ownMounts.now()
	if err != nil {
		return View{}, fmt.Errorf("planning view: %w", err)
	}
	entries := limit.entries
	for _, p := range plans {
		p.submounts, p.entries = submounts, &entries
		if err := p.run(); err != nil {
			return View{}, err
		}
	}
	return merge(plans, limit.mounts)
}

// check reports a view that no plan makes. Compile is the last stop before
// paths become mounts, whoever made them up.
func (v View) check() error {
	if len(v.Mounts)+len(v.Dirs) > maxMounts {
		return fmt.Errorf("view of %d mounts and %d directories: more than %d", len(v.Mounts), len(v.Dirs), maxMounts)
	}
	last := ""
	for _, m := range v.Mounts {
		if err := checkPath(m.Source); err != nil {
			return fmt.Errorf("view: source %w", err)
		}
		if err := checkDest(m.Dest); err != nil {
			return fmt.Errorf("view: destination %w", err)
		}
		if m.Dest <= last {
			return fmt.Errorf("view: %q is not sorted after %q", m.Dest, last)
		}
		last = m.Dest
	}
	for _, dir := range v.Dirs {
		if err := checkDest(dir); err != nil {
			return fmt.Errorf("view: directory %w", err)
		}
	}
	return nil
}

// checkPath reports a string that is not an absolute clean path, or that a
// configuration cannot carry.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p {
		return fmt.Errorf("%q is not an absolute clean path", p)
	}
	return checkText(p)
}

// checkDest reports a path in the guest where nothing of the host may appear.
func checkDest(p string) error {
	if err := checkPath(p); err != nil {
		return err
	}
	return policy.CheckDir(p)
}

// isBelow reports whether p is dir or lies below it.
func isBelow(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir) && (dir == "/" || p[len(dir)] == '/')
}
