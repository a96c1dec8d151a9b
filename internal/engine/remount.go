package engine

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Where a host has no LSM programs, mounts hold the file rules of a container that runs:
//
//	a volume that may not be written    is read-only
//	a volume that no rule opens         is masked at its place
//	what is denied                      is masked
//	a part of a volume                  is held by Landlock, which a process puts on when it
//	                                    begins: it can be masked, or the volume made
//	                                    read-only, but nothing can be opened
//
// What an engine gave is the bound: what it made read-only, or masked, stays so.

var errNoPrograms = errors.New("this host takes none")

// remount decides what the mounts hold once n.policy is in force, and what they then are.
func (r *Record) remount(n *narrowing, out *Record) error {
	if r.Confine.Domain != nil {
		if err := noMoreFiles(r.Made.Policy, n.policy); err != nil {
			return err
		}
	}
	shown, err := n.show(r.Files)
	if err != nil {
		return err
	}
	for i := range shown {
		if err := r.checkParts(n, shown, i); err != nil {
			return err
		}
	}
	n.idlePatterns()
	for _, rule := range n.policy.FS() {
		if !slices.ContainsFunc(n.out.Enforced, func(e Enforcement) bool { return e.Rule == text(rule) }) {
			n.holds(text(rule), "nobody has to: another rule decides, or no volume shows what it opens")
		}
	}
	out.Files.Volumes = nil
	for _, s := range shown {
		out.Files.Volumes = append(out.Files.Volumes, s.Volume)
	}
	for _, name := range n.masks {
		if name == "" || name == "/" {
			return cannot("fs: deny /**", "it would hide the root: leave it out")
		}
	}
	out.Files.Masks = n.masks
	return nil
}

// shownVolume is a volume as a policy has it shown.
type shownVolume struct {
	Volume
	mount  *specs.Mount
	parts  []reach // see part
	closed bool
}

// show is [narrowing.volumes] for volumes that are mounted. What no rule opens is masked,
// where it would be refused when a container is made.
func (n *narrowing) show(files Files) (shown []shownVolume, err error) {
	n.spec = &specs.Spec{Linux: &specs.Linux{}}
	n.host.Files, n.host.Kinds = func() error { return errNoPrograms }, map[string]Kind{}
	rules, err := n.rules()
	if err != nil {
		return nil, err
	}
	for _, v := range files.Volumes {
		n.host.Kinds[v.Source] = Directory
		if v.File {
			n.host.Kinds[v.Source] = File
		}
		s := shownVolume{Volume: v, mount: &specs.Mount{Destination: v.Destination, Source: v.Source, Type: "bind"}}
		if v.Given {
			s.mount.Options = []string{"ro"}
		}
		err := n.deny(s.mount)
		var p part
		if err == nil {
			p, err = n.volume(s.mount, rules)
		}
		var none notShown
		if s.closed = errors.As(err, &none); s.closed {
			n.maskDenied(v.Destination)
			n.holds("fs: nothing of "+v.Destination, "masked path")
		} else if err != nil {
			return nil, err
		} else {
			s.ReadOnly, s.parts = slices.Contains(s.mount.Options, "ro"), p.rules
		}
		shown = append(shown, s)
	}
	return shown, nil
}

// checkParts compares a volume, of which perhaps parts are open, with what the container's
// Landlock domain opens of it, and has the rest masked.
func (r *Record) checkParts(n *narrowing, shown []shownVolume, at int) error {
	s := shown[at]
	if s.closed {
		return checkNested(shown, s.Destination)
	}
	made, err := r.madeParts(s.Volume)
	if err != nil {
		return err
	}
	if len(made) == 0 {
		for _, p := range s.parts {
			err := fmt.Errorf("a part of %s is held by Landlock, which a process puts on when it begins, or by BPF-LSM, which this host does not take: open all of %[1]s or nothing, or make a new container", s.Destination)
			if err := n.misses(p.rule, err); err != nil {
				return err
			}
		}
		return nil
	}
	rules, err := (&narrowing{policy: n.policy, host: n.host, spec: &specs.Spec{Linux: &specs.Linux{}}, running: true}).rules()
	if err != nil {
		return err
	}
	for _, p := range made {
		switch now := n.both(s.mount, rules, p.path[len(s.Destination):]); {
		case now.mode == "":
			if inside := slices.IndexFunc(s.parts, func(q reach) bool { return covers(p.path, q.path) }); inside >= 0 {
				return cannot(s.parts[inside].rule, "its Landlock domain opens all of %s, and there is no mask for what is beside it: open that or nothing of it", p.path)
			}
			n.maskDenied(p.path)
			n.holds("fs: nothing of "+p.path, "masked path")
		case now.mode == policy.Read && p.mode == policy.Write && !s.ReadOnly:
			return cannot(now.rule, "its Landlock domain lets it write in %s while it may write elsewhere in %s: allow read for all of that", p.path, s.Destination)
		}
	}
	for _, p := range s.parts {
		n.holds(p.rule, "Landlock, by psi-init (names of files can be listed)")
	}
	return nil
}

// madeParts are the parts of a volume that the container's Landlock domain opens.
func (r *Record) madeParts(v Volume) ([]reach, error) {
	if r.Confine.Domain == nil {
		return nil, nil
	}
	made := &narrowing{policy: r.Made.Policy, running: true}
	shown, err := made.show(Files{Volumes: []Volume{v}})
	if err != nil {
		return nil, fmt.Errorf("looking at the policy that the container was made with: %w", err)
	}
	return shown[0].parts, nil
}

// checkNested refuses to mask a volume with another one in it.
func checkNested(shown []shownVolume, place string) error {
	for _, s := range shown {
		if s.Destination != place && covers(place, s.Destination) {
			return cannot("fs", "no rule opens the mount at %s, and with that at %s inside nobody can tell whether it is in use: keep a rule for it", place, s.Destination)
		}
	}
	return nil
}

// Remounting is what changes of a container's mounts.
type Remounting struct {
	ReadOnly map[string]bool // volumes that change, by their place
	Unmask   []string        // paths
	Masks    []Mask          // all that there are to be
	Hidden   []string        // of these, what an import list hides now and did not before
}

// Mask is a path that is masked.
type Mask struct {
	Path   string
	Volume string // the place of the volume that it is in; "" is none
	New    bool   // a rule masks it, which none did before
	Inside bool   // of another mask, and so there need not be such a path
}

// Remounting is how mounts come to hold next, which [Record.Reload] has made, instead of r.
func (r *Record) Remounting(next *Record) Remounting {
	out := Remounting{ReadOnly: map[string]bool{}}
	for i, v := range next.Files.Volumes {
		if v.ReadOnly != r.Files.Volumes[i].ReadOnly {
			out.ReadOnly[v.Destination] = v.ReadOnly
		}
	}
	for _, name := range next.Files.Masks {
		m := Mask{Path: name, New: !slices.Contains(r.Files.Masks, name)}
		for _, v := range next.Files.Volumes {
			if covers(v.Destination, name) && len(v.Destination) > len(m.Volume) {
				m.Volume = v.Destination
			}
		}
		m.Inside = slices.ContainsFunc(next.Files.Masks, func(other string) bool { return other != name && covers(other, name) })
		out.Masks = append(out.Masks, m)
	}
	before, after := setOf(r.Files.Modules), setOf(next.Files.Modules)
	for _, name := range next.Files.Modules {
		if !slices.Contains(next.Files.Masks, name) {
			out.Masks = append(out.Masks, Mask{Path: name})
		}
		if !before[name] {
			out.Hidden = append(out.Hidden, name)
		}
	}
	for _, name := range slices.Concat(r.Files.Masks, r.Files.Modules) {
		if !after[name] && !slices.Contains(next.Files.Masks, name) {
			out.Unmask = append(out.Unmask, name)
		}
	}
	return out
}

func setOf(names []string) map[string]bool {
	out := make(map[string]bool, len(names))
	for _, name := range names {
		out[name] = true
	}
	return out
}

// Hides reports whether what a process has open of a path is taken away. The mounts would
// leave it to it.
func (m Remounting) Hides(path string, has Access) bool {
	for place, readonly := range m.ReadOnly {
		if readonly && has.Write && covers(place, path) {
			return true
		}
	}
	return slices.ContainsFunc(m.Masks, func(m Mask) bool { return m.New && covers(m.Path, path) })
}
