package leakcheck

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// foreign is what for sure is not this test run's: of processes that are not below this one, or of
// a run in another checkout. What nobody can tell counts as ours.
type foreign struct {
	files  map[string]bool // below /run/psi, with all that is in them
	inodes map[uint64]bool // of journals, which have other names too
	groups map[string]bool // cgroups of containers, with all that is below them
	shared map[string]bool // cgroups that containers have in common
	guests map[uint64]bool // cgroups of containers, as the kernel numbers them
	places places
}

// journal is what a container's says of where it is (see internal/container).
type journal struct {
	Root, Bundle, Rootfs string
	Cgroups              map[string]string
	Shared               []string
}

// findForeign looks at all that is written down below /run/psi.
func findForeign() (foreign, error) {
	out := foreign{map[string]bool{}, map[uint64]bool{}, map[string]bool{}, map[string]bool{}, map[uint64]bool{}, places{}}
	all, err := allProcesses()
	if err != nil {
		return out, err
	}
	out.places = otherPlaces(all)
	journals, _ := filepath.Glob(filepath.Join(runDir, "*@*"))
	owners, _ := filepath.Glob(filepath.Join(runDir, "owners", "*"))
	for _, path := range owners {
		if locked(path) && !openBelowUs(all, path) {
			out.files[path] = true
		}
	}
	for _, path := range journals {
		if name := filepath.Base(path); strings.HasPrefix(name, "@") || strings.HasSuffix(name, ".root") {
			continue
		}
		j := readJournal(path)
		held := locked(path)
		if held && !openBelowUs(all, path) || !held && j.isForeign(all, out.places) {
			out.add(path, j)
		}
	}
	return out, nil
}

func readJournal(path string) (j journal) {
	data, err := os.ReadFile(path)
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	if err != nil || len(whole) == 0 {
		return j
	}
	last := whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]
	_ = json.Unmarshal(last, &j) // of what cannot be read nobody can tell whose it is
	return j
}

// isForeign tells of a container that no process owns, by who lives in it, or else by where it was made.
// What was orphaned below this process has become its child.
func (j journal) isForeign(all map[int]proc, others places) bool {
	var lives bool
	for _, group := range j.Cgroups {
		for _, pid := range members(group) {
			if isOurs(all, pid) {
				return false
			}
			lives = true
		}
	}
	return lives || others.hold(j.Root, j.Bundle, j.Rootfs)
}

// add notes what belongs to a container.
func (f foreign) add(path string, j journal) {
	f.files[path], f.files[path+".root"] = true, true
	var stat unix.Stat_t
	if unix.Stat(path, &stat) == nil {
		f.inodes[stat.Ino] = true
	}
	if id, root, _ := strings.Cut(filepath.Base(path), "@"); root == "" { // its state is here too
		f.files[filepath.Join(runDir, id)] = true
	}
	for _, group := range j.Cgroups {
		f.groups[group] = true
		if unix.Stat(group, &stat) == nil {
			f.guests[stat.Ino] = true
		}
	}
	for _, group := range j.Shared {
		f.shared[group] = true
	}
}

// owns reports whether a path below /run/psi is somebody else's.
func (f foreign) owns(path string) bool {
	rel, err := filepath.Rel(runDir, path)
	if err != nil || len(f.files) == 0 {
		return false
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && f.inodes[st.Ino] {
		return true
	}
	first, rest, _ := strings.Cut(rel, "/")
	switch {
	case first == "owners":
		owner, _, _ := strings.Cut(rest, "/")
		return rest == "" || f.files[filepath.Join(runDir, first, owner)]
	case first == "deferred", strings.HasSuffix(first, ".sock"):
		return true
	}
	return f.files[filepath.Join(runDir, first)]
}

// inGroups reports whether a cgroup is somebody else's container's.
func (f foreign) inGroups(path string) bool {
	if f.shared[path] {
		return true
	}
	for ; len(path) > 1; path = filepath.Dir(path) {
		if f.groups[path] {
			return true
		}
	}
	return false
}

// places are directories in which other runs, and only they, make things: temporary directories of their
// own ($TMPDIR) and other checkouts.
type places struct{ ours, others []string }

// otherPlaces asks the processes that are not below this one. A directory that has something of ours
// in it, or is in one, tells nothing.
func otherPlaces(all map[int]proc) places {
	here, _ := os.Getwd()
	p := places{ours: []string{os.TempDir(), checkout(here)}}
	for pid := range all {
		if isOurs(all, pid) {
			continue
		}
		proc := "/proc/" + strconv.Itoa(pid)
		environ, _ := os.ReadFile(proc + "/environ")
		for _, variable := range bytes.Split(environ, []byte{0}) {
			if dir, ok := bytes.CutPrefix(variable, []byte("TMPDIR=")); ok {
				p.add(string(dir))
			}
		}
		if dir, err := os.Readlink(proc + "/cwd"); err == nil {
			p.add(checkout(dir))
		}
	}
	return p
}

func (p *places) add(dir string) {
	dir = filepath.Clean(dir)
	if !filepath.IsAbs(dir) || strings.Count(dir, "/") < 2 { // "/tmp" is everybody's
		return
	}
	for _, own := range p.ours {
		if own != "" && (isBelow(own, dir) || isBelow(dir, own)) {
			return
		}
	}
	p.others = append(p.others, dir)
}

// hold reports whether one of the paths is in somebody else's place, and none in ours.
func (p places) hold(paths ...string) (theirs bool) {
	for _, path := range paths {
		for _, own := range p.ours {
			if own != "" && isBelow(path, own) {
				return false
			}
		}
		for _, other := range p.others {
			theirs = theirs || isBelow(path, other)
		}
	}
	return theirs
}

func isBelow(path, dir string) bool {
	return strings.HasPrefix(path+"/", strings.TrimSuffix(dir, "/")+"/")
}

// checkout is the directory above dir, or dir, with a Go module in it; "" if there is none.
func checkout(dir string) string {
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	return ""
}

// locked reports whether somebody holds the flock on dir.
func locked(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// openBelowUs reports whether this process or one below it has path open.
func openBelowUs(all map[int]proc, path string) bool {
	for pid := range all {
		if !isOurs(all, pid) {
			continue
		}
		fds, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && target == path {
				return true
			}
		}
	}
	return false
}
