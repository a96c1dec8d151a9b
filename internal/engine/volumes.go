package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// volumes needs a rule for each host directory and file.
func (n *narrowing) volumes(at []int) error {
	rules, err := n.rules()
	if err != nil {
		return err
	}
	var parts []part
	for _, i := range at {
		m := &n.spec.Mounts[i]
		given := slices.Contains(m.Options, "ro")
		if err := n.source(m); err != nil {
			return err
		}
		if err := n.deny(m); err != nil {
			return err
		}
		p, err := n.volume(m, rules)
		if err != nil {
			return err
		}
		if err := n.doors(m); err != nil {
			return err
		}
		v := Volume{Destination: m.Destination, Source: path.Clean(m.Source), ReadOnly: slices.Contains(m.Options, "ro"), File: n.host.Kinds[m.Source] == File}
		v.Given = given || v.ReadOnly && n.host.ReadOnly[m.Source]
		n.out.Files.Volumes = append(n.out.Files.Volumes, v)
		if p.rules != nil {
			parts = append(parts, p)
		}
	}
	n.idlePatterns()
	return n.landlock(parts)
}

// source refuses what no policy may show, wherever it appears in the container.
func (n *narrowing) source(m *specs.Mount) error {
	if n.host.Kinds[m.Source] == Other {
		return fmt.Errorf("the mount of %s at %s is a socket, device or FIFO, which leads out of the container: remove it", m.Source, m.Destination)
	}
	if !path.IsAbs(m.Source) {
		return fmt.Errorf("the mount at %s has the source %q: name it by an absolute path", m.Destination, m.Source)
	}
	if err := policy.CheckDir(path.Clean(m.Source)); err != nil {
		return fmt.Errorf("the mount of %s at %s: %w", m.Source, m.Destination, err)
	}
	return nil
}

// doors keeps the container from the sockets and FIFOs in a directory, which lead to
// whoever is at their other end: no rule of a policy opens one. LSM programs refuse them
// all; elsewhere those that there are when the container is made are masked.
func (n *narrowing) doors(m *specs.Mount) error {
	if n.host.Kinds[m.Source] != Directory {
		return nil
	}
	rule := "sockets and FIFOs in " + m.Destination
	if n.host.Files() == nil {
		n.out.Files.Needed = true
		n.holds(rule, lsm)
		return nil
	}
	names, err := n.host.Doors(m.Source)
	if err != nil {
		return n.misses(rule, fmt.Errorf("without BPF-LSM those that there are have to be masked: %w", err))
	}
	for _, name := range names {
		n.mask(path.Join(m.Destination, name))
	}
	n.holds(rule, "masked paths: %d; nobody holds those that the host makes later", len(names))
	return nil
}

// reach is what a rule without wildcards covers: a path and all below it.
type reach struct {
	path string
	mode policy.FSMode
	rule string // as documents write it
}

// reaches are the rules that open paths.
type reaches []reach

// open returns the strongest rule that covers a path; its mode is "" without one.
func (rs reaches) open(name string) (best reach) {
	for _, r := range rs {
		if covers(r.path, name) && best.mode != policy.Write {
			best = r
		}
	}
	return best
}

// rules sorts the fs rules: denied paths are masked, patterns are for LSM programs.
func (n *narrowing) rules() (opened reaches, err error) {
	for _, r := range n.policy.FS() {
		literal := strings.TrimSuffix(r.Pattern, "/**")
		switch {
		case policy.LiteralDir(literal) != literal && r.Mode != policy.Deny:
			n.opening = append(n.opening, pattern{r})
		case policy.LiteralDir(literal) != literal:
			if err := n.denyPattern(pattern{r}); err != nil {
				return nil, err
			}
		case r.Mode == policy.Deny:
			n.maskDenied(literal)
			n.holds(text(r), "masked path")
			n.denied = append(n.denied, literal)
		default:
			opened = append(opened, reach{literal, r.Mode, text(r)})
		}
	}
	return opened, nil
}

// text writes a rule as documents do.
func text(r policy.FSRule) string { return fmt.Sprintf("fs: %s %s", r.Mode, r.Pattern) }

// deny takes from a volume what is denied, by its place on the host and by that in the
// container.
func (n *narrowing) deny(m *specs.Mount) error {
	source := path.Clean(m.Source)
	for _, place := range []string{source, m.Destination} {
		if access, by := policy.DecideFS(n.policy.FS(), place); access&policy.Denied != 0 {
			return notShown(fmt.Sprintf("the mount of %s at %s is denied by %s: remove it", m.Source, m.Destination, text(by[0])))
		}
	}
	for _, d := range n.denied {
		if covers(source, d) {
			n.maskDenied(m.Destination + strings.TrimPrefix(d, source))
		}
	}
	for _, p := range n.denying {
		if source != m.Destination && p.reaches(source) && !p.anywhere() {
			if err := n.misses(text(p.FSRule), errElsewhere(m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// part is a volume of which the rules open a part only.
type part struct {
	dest  string
	rules []reach
}

// volume narrows one volume to what the rules say, of the place on the host and of the
// place in the container: what it shows has to be open at both, and has the weaker mode.
// The result is for Landlock; it has no rules when the mount itself holds everything.
func (n *narrowing) volume(m *specs.Mount, rules reaches) (part, error) {
	p := part{dest: m.Destination}
	if n.host.Kinds[m.Source] == File {
		return p, n.file(m, rules)
	}
	if held, err := n.byPrograms(m, rules); held || err != nil {
		return p, err
	}
	whole := n.both(m, rules, "")
	writes := false
	for _, below := range partsOf(m, rules) {
		if r := n.both(m, rules, below); r.mode != "" && r.mode != whole.mode {
			p.rules = append(p.rules, reach{m.Destination + below, r.mode, r.rule})
			writes = writes || r.mode == policy.Write
		}
	}
	if whole.mode == "" && len(p.rules) == 0 && !n.degradedPattern(m.Destination) {
		return p, n.closed(m, rules)
	}
	n.harmless(m)
	if whole.mode != policy.Write && !writes {
		readonly(m)
	}
	switch {
	case whole.mode == policy.Write, whole.mode == policy.Read && !writes:
		n.holds(whole.rule, "mount options of %s", m.Destination)
		p.rules = nil
	case whole.mode == policy.Read:
		p.rules = append(p.rules, reach{m.Destination, policy.Read, whole.rule})
	}
	return p, nil
}

// harmless makes a volume one from which no program, device or privilege comes. With options
// of its own a bind mount no longer has those of what it shows, which may be read-only.
func (n *narrowing) harmless(m *specs.Mount) {
	setOptions(m, "exec", "noexec", "suid", "nosuid", "dev", "nodev")
	if n.host.ReadOnly[m.Source] {
		readonly(m)
	}
}

// both returns the weaker of what the rules say to a path of a volume, which is "" or
// begins with a slash: on the host and in the container.
func (n *narrowing) both(m *specs.Mount, rules reaches, below string) reach {
	there, here := rules.open(path.Clean(m.Source)+below), rules.open(m.Destination+below)
	if there.mode == "" || here.mode == policy.Write {
		return there
	}
	return here
}

// partsOf lists the paths in a volume that rules name, relative to it.
func partsOf(m *specs.Mount, rules reaches) []string {
	var out []string
	for _, r := range rules {
		for _, top := range []string{path.Clean(m.Source), m.Destination} {
			if r.path != top && covers(top, r.path) {
				out = union(out, []string{strings.TrimPrefix(r.path, top)})
			}
		}
	}
	return out
}

// closed is the error for a volume that no rule opens, with the rules that would.
func (n *narrowing) closed(m *specs.Mount, rules reaches) error {
	var missing []string
	for _, name := range union([]string{path.Clean(m.Source)}, []string{m.Destination}) {
		if rules.open(name).mode == "" {
			missing = append(missing, "{read: "+name+"}")
		}
	}
	return notShown(fmt.Sprintf("no fs rule allows the mount of %s at %s: allow both places with fs: [%s], or remove the mount", m.Source, m.Destination, strings.Join(missing, ", ")))
}

// degradedPattern: a pattern that nobody holds may mean this place.
func (n *narrowing) degradedPattern(dest string) bool {
	return n.policy.AllowDegraded() && slices.ContainsFunc(n.policy.FS(), func(r policy.FSRule) bool {
		dir := policy.LiteralDir(r.Pattern)
		return r.Mode != policy.Deny && dir != r.Pattern && (covers(dir, dest) || covers(dest, dir))
	})
}

// covers reports whether a path is dir or below it. Both are clean.
func covers(dir, name string) bool {
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}
