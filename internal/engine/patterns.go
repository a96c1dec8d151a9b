package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

const lsm = "BPF-LSM"

// pattern is a rule with wildcards: what it is about can only be told when something is
// opened. A file that is mounted by itself is the exception, see file.
type pattern struct{ policy.FSRule }

// reaches reports whether the pattern may match something in a directory.
func (p pattern) reaches(dir string) bool {
	literal := policy.LiteralDir(p.Pattern)
	return covers(literal, dir) || covers(dir, literal)
}

// anywhere reports a pattern about names, which means the same wherever a directory is
// mounted: "/**/*.key".
func (p pattern) anywhere() bool {
	name, ok := strings.CutPrefix(p.Pattern, "/**/")
	return ok && !strings.Contains(name, "/")
}

func errElsewhere(m *specs.Mount) error {
	return fmt.Errorf("a pattern is held at its own path only, and %s is mounted at %s: mount it at %s", m.Source, m.Destination, path.Clean(m.Source))
}

// programs says why LSM programs cannot hold a pattern here; nil if they can, and then
// they have to.
func (n *narrowing) programs() error {
	if err := n.host.Files(); err != nil {
		return fmt.Errorf("a pattern needs BPF-LSM programs: name files or directories, or mount files by themselves: %w", err)
	}
	n.out.Files.Needed = true
	return nil
}

// denyPattern denies what matches, in the image's own files too.
func (n *narrowing) denyPattern(p pattern) error {
	if err := n.programs(); err != nil {
		return n.misses(text(p.FSRule), err)
	}
	n.denying = append(n.denying, p)
	n.holds(text(p.FSRule), lsm)
	return nil
}

// byPrograms reports whether patterns open parts of a volume. LSM programs then hold all
// rules about it; the mount has what the widest of them needs.
func (n *narrowing) byPrograms(m *specs.Mount, rules reaches) (held bool, err error) {
	writes := false
	for _, p := range n.opening {
		if !p.reaches(path.Clean(m.Source)) && !p.reaches(m.Destination) {
			continue
		}
		err := n.programs()
		if err == nil && path.Clean(m.Source) != m.Destination {
			err = errElsewhere(m)
		}
		if err != nil {
			if err := n.misses(text(p.FSRule), err); err != nil {
				return false, err
			}
			continue
		}
		held, writes = true, writes || p.Mode == policy.Write
		n.holds(text(p.FSRule), lsm)
	}
	if !held {
		return false, nil
	}
	// If the image had a link there, the volume would be mounted where it leads.
	if _, err := n.host.List(m.Destination); err != nil {
		return false, fmt.Errorf("looking at the mount point %s: %w", m.Destination, err)
	}
	for _, r := range rules {
		if covers(r.path, m.Destination) || covers(m.Destination, r.path) {
			writes = writes || r.mode == policy.Write
			n.holds(r.rule, lsm)
		}
	}
	n.harmless(m)
	if !writes {
		readonly(m)
	}
	return true, nil
}

// file narrows a file that is mounted by itself: whether a rule is about it, with
// wildcards or without, can be told now, and the mount holds that.
func (n *narrowing) file(m *specs.Mount, rules reaches) error {
	weakest, by := policy.Write, policy.FSRule{}
	for _, place := range []string{m.Destination, path.Clean(m.Source)} {
		access, deciding := policy.DecideFS(n.policy.FS(), place)
		switch {
		case access&policy.MayRead == 0:
			return n.closed(m, rules)
		case access&policy.MayWrite == 0:
			weakest, by = policy.Read, deciding[0]
		case weakest == policy.Write:
			by = deciding[slices.IndexFunc(deciding, func(r policy.FSRule) bool { return r.Mode == policy.Write })]
		}
	}
	n.harmless(m)
	if weakest == policy.Read {
		readonly(m)
	}
	n.holds(text(by), "mount options of %s", m.Destination)
	return nil
}

// idlePatterns reports those that open nothing.
func (n *narrowing) idlePatterns() {
	for _, p := range n.opening {
		if !slices.ContainsFunc(n.out.Enforced, func(e Enforcement) bool { return e.Rule == text(p.FSRule) }) {
			n.holds(text(p.FSRule), "nobody has to: no volume shows what it opens")
		}
	}
}
