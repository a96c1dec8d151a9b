package bundle

import (
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// merge puts the rules together. A path that two rules show is shown once, with
// the more that either allows.
func merge(plans []*plan, limit int) (View, error) {
	byDest := map[string]ViewMount{}
	byRule := map[string]shownRule{}
	dirs := map[string]bool{}
	var view View
	for _, p := range plans {
		view.Notes = append(view.Notes, p.note())
		for _, dir := range p.shown.dirs {
			dirs[dir] = true
		}
		for _, m := range p.shown.mounts {
			if before, ok := byDest[m.Dest]; ok {
				if before.Source != m.Source || before.Dir != m.Dir {
					return View{}, p.rule.fail(m.Dest, fmt.Sprintf("is also shown by the rule %q, from another place", byRule[m.Dest].Pattern),
						"remove one of the two rules", nil)
				}
				m.Write = m.Write || before.Write
			}
			byDest[m.Dest], byRule[m.Dest] = m, p.rule
		}
	}
	var err error
	if view.Mounts, err = nest(byDest, byRule); err != nil {
		return View{}, err
	}
	view.Dirs = emptyDirs(dirs, byDest)
	if len(view.Mounts)+len(view.Dirs) > limit {
		rule := plans[len(plans)-1].rule
		return View{}, rule.fail(rule.source, fmt.Sprintf("is one rule too many: together they take more than %d mounts", limit),
			"narrow the patterns that are shown file by file", nil)
	}
	return view, nil
}

// nest sorts the mounts and drops those which the mount of a directory above
// shows as well. One that shows something else there cannot be: its mount point
// would be the other mount's symbolic link.
func nest(byDest map[string]ViewMount, byRule map[string]shownRule) ([]ViewMount, error) {
	var out []ViewMount
	for _, dest := range sortedKeys(byDest) {
		m := byDest[dest]
		above, ok := directoryAbove(byDest, dest)
		if !ok {
			out = append(out, m)
			continue
		}
		if m.Source != above.Source+strings.TrimPrefix(dest, above.Dest) {
			rule := byRule[dest]
			return nil, rule.fail(dest, fmt.Sprintf("is a symbolic link in the directory that the rule %q shows", byRule[above.Dest].Pattern),
				fmt.Sprintf("name what it leads to, %q", m.Source), nil)
		}
		if m.Write && !above.Write {
			out = append(out, m)
		}
	}
	return out, nil
}

// directoryAbove returns the closest mount of a directory above dest.
func directoryAbove(byDest map[string]ViewMount, dest string) (ViewMount, bool) {
	for i := strings.LastIndexByte(dest, '/'); i > 0; i = strings.LastIndexByte(dest[:i], '/') {
		if m, ok := byDest[dest[:i]]; ok && m.Dir {
			return m, true
		}
	}
	return ViewMount{}, false
}

// emptyDirs are the directories that no mount brings along.
func emptyDirs(dirs map[string]bool, byDest map[string]ViewMount) []string {
	var out []string
	for _, dir := range sortedKeys(dirs) {
		if _, ok := byDest[dir]; ok {
			continue
		}
		if _, ok := directoryAbove(byDest, dir); !ok {
			out = append(out, dir)
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// note says how the rule is shown, for people.
func (p *plan) note() string {
	var b strings.Builder
	if p.live {
		fmt.Fprintf(&b, "fs: held live: %s %s", p.rule.Mode, p.rule.Pattern)
	} else if len(p.shown.mounts) == 1 && (p.shown.whole || p.rule.pattern().literal() && !p.shown.mounts[0].Dir) {
		fmt.Fprintf(&b, "fs: mounted: %s %s", p.rule.Mode, p.rule.Pattern)
	} else {
		fmt.Fprintf(&b, "fs: materialised: %s %s: %s", p.rule.Mode, p.rule.Pattern, counted(len(p.shown.mounts), "mount"))
		if p.rule.Mode == policy.Write {
			b.WriteString("; no new names can be made between them")
		}
	}
	for _, left := range []struct {
		n    int
		what string
	}{
		{p.hidden.denied, "denied name"}, {p.hidden.special, "FIFO, socket or device"},
		{p.hidden.links, "symbolic link"}, {p.hidden.mounts, "mount of another file system"},
		{p.hidden.unreadable, "unreadable directory"}, {p.hidden.odd, "name that is not text"},
	} {
		if left.n > 0 {
			fmt.Fprintf(&b, "; left out: %s", counted(left.n, left.what))
		}
	}
	return b.String()
}

func counted(n int, what string) string {
	return fmt.Sprintf("%d × %s", n, what)
}

// mountList is the mount points of this process's mount namespace, sorted.
type mountList []string

// mountPoints are read again when the kernel says that they have changed: to read them takes
// more than all else of a small plan. A directory with another mount in it is not bound whole:
// in a namespace with fewer privileges the kernel refuses to (EINVAL), lest
// what the mount covers be uncovered.
type mountPoints struct {
	mu   sync.Mutex
	file *os.File  // /proc/self/mountinfo, which says once that something has changed
	list mountList // nil: not read yet
}

var ownMounts mountPoints

// ReadMounts reads what mounts there are, which else the next plan of a view has to do.
func ReadMounts() error {
	_, err := ownMounts.now()
	return err
}

func (m *mountPoints) now() (mountList, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: "/proc/self/mountinfo", Err: err}
		}
		m.file = os.NewFile(uintptr(fd), "/proc/self/mountinfo") // not os.Open: Go's poller would hear it
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(m.file.Fd()), Events: unix.POLLPRI}}, 0); n == 0 && err == nil && m.list != nil {
		return m.list, nil
	}
	m.list = nil
	if _, err := m.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	all, err := mountinfo.GetMountsFromReader(m.file, nil)
	if err != nil {
		return nil, err
	}
	list := make(mountList, 0, len(all))
	for _, mount := range all {
		list = append(list, mount.Mountpoint)
	}
	sort.Strings(list)
	m.list = list
	return list, nil
}

// at reports whether path is a mount point.
func (l mountList) at(path string) bool {
	i := sort.SearchStrings(l, path)
	return i < len(l) && l[i] == path
}

// below reports whether there is a mount point below dir.
func (l mountList) below(dir string) bool {
	i := sort.SearchStrings(l, dir+"/")
	return i < len(l) && strings.HasPrefix(l[i], dir+"/")
}
