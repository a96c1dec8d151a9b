package engine

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
