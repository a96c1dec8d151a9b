package engine

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// mounts looks at each mount of the engine. The kernel's own file systems have their
// places; whatever shows files of the host is a volume, and needs a rule.
func (n *narrowing) mounts() error {
	if n.policy.ReadOnly() {
		n.spec.Root.Readonly = true
		n.holds("read_only: true", "read-only root")
	}
	var volumes []int
	for i := range n.spec.Mounts {
		m := &n.spec.Mounts[i]
		m.Destination = path.Clean("/" + m.Destination)
		volume, err := n.kernelMount(m)
		if err != nil {
			return err
		}
		if volume && !n.plumbing(m) {
			volumes = append(volumes, i)
		}
	}
	if !slices.ContainsFunc(n.spec.Mounts, isTmp) {
		n.holds("tmp: "+size(n.policy.Limits().Tmp), "nobody: /tmp is the image's; with a tmpfs there it is as large as the policy says")
	}
	return n.volumes(volumes)
}

func isTmp(m specs.Mount) bool { return m.Type == "tmpfs" && m.Destination == "/tmp" }

// kernelMount narrows mounts of the kernel's own file systems; volume reports that it
// is none of them.
func (n *narrowing) kernelMount(m *specs.Mount) (volume bool, err error) {
	if isBind(m) {
		return true, nil
	}
	switch m.Type {
	case "proc":
		if m.Destination != "/proc" {
			return false, fmt.Errorf("proc is mounted at %s: nothing is masked there: mount it at /proc", m.Destination)
		}
	case "sysfs", "cgroup", "cgroup2":
		// Who may write there moves itself out of its cgroup, and so out of the policy.
		readonly(m)
	case "tmpfs":
		if isTmp(*m) {
			limit := n.policy.Limits().Tmp
			if limit == 0 {
				readonly(m)
			}
			resize(m, limit)
			n.holds("tmp: "+size(limit), "tmpfs size")
		}
	case "devpts", "mqueue":
	default:
		return false, fmt.Errorf("a file system of type %q is mounted at %s: only of a bind mount can be told which files of the host it shows", m.Type, m.Destination)
	}
	return false, nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// readonly makes a mount and what is mounted below it read-only.
func readonly(m *specs.Mount) { setOptions(m, "rw", "ro") }

// setOptions puts strict options in the place of their wide opposites: pairs of both.
func setOptions(m *specs.Mount, pairs ...string) {
	recursive := slices.Contains(m.Options, "rbind")
	for i := 0; i < len(pairs); i += 2 {
		wide, strict := pairs[i], pairs[i+1]
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool {
			return o == wide || o == strict || o == "r"+wide || o == "r"+strict
		})
		m.Options = append(m.Options, strict)
		if recursive {
			m.Options = append(m.Options, "r"+strict)
		}
	}
}

// resize lowers the size of a tmpfs. libcontainer takes the last of several.
func resize(m *specs.Mount, limit int64) {
	m.Options = slices.DeleteFunc(m.Options, func(o string) bool {
		value, ok := strings.CutPrefix(o, "size=")
		if given, known := bytesOf(value); ok && known && given > 0 {
			limit = min(limit, given)
		}
		return ok || strings.HasPrefix(o, "nr_blocks=")
	})
	if limit > 0 {
		m.Options = append(m.Options, "size="+strconv.FormatInt(limit, 10))
	}
}

// bytesOf reads a size as the kernel does: a number, with k, m or g. Percentages and
// the rest are not known, and lose against the policy's size.
func bytesOf(text string) (int64, bool) {
	shift := 0
	if end := len(text) - 1; end > 0 {
		switch text[end] | 0x20 {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		}
		if shift > 0 {
			text = text[:end]
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return 0, false
	}
	return n << shift, true
}

// plumbing reports files that every engine puts into its containers: they need no
// rule. A user who can choose mounts cannot show another file at these places, because
// the name of the source is looked at too.
func (n *narrowing) plumbing(m *specs.Mount) bool {
	kind, name := n.host.Kinds[m.Source], path.Base(m.Source)
	if kind != Other && slices.ContainsFunc(n.host.EngineMounts, func(dir string) bool { return covers(dir, path.Clean(m.Source)) }) {
		return true
	}
	switch m.Destination {
	case "/etc/hosts":
		return kind == File && (name == "hosts" || name == "etc-hosts")
	case "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv":
		return kind == File && name == path.Base(m.Destination)
	case "/etc/passwd", "/etc/group": // podman's, for a user that the image does not have
		return kind == File && strings.HasSuffix(m.Source, "/userdata"+m.Destination[len("/etc"):])
	case "/dev/shm":
		return kind == Directory && name == "shm"
	case "/run/secrets":
		return kind == Directory && strings.HasSuffix(m.Source, "/userdata/run/secrets")
	case "/dev/termination-log":
		return kind == File
	case "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty":
		return m.Source == m.Destination
	case "/sys":
		if m.Source == "/sys" {
			readonly(m)
			return true
		}
	}
	return false
}

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
