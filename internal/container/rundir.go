package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultRunDir is where everything that psi owns on a host is written down. For who
// is not the host's root it is psi below $XDG_RUNTIME_DIR, if that is set.
const DefaultRunDir = "/run/psi"

// defaultRunDir is DefaultRunDir as this process has it. It is also the default
// root, where libcontainer keeps the state of containers: names of containers have
// no "@" in them, and ours do.
func defaultRunDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && Rootless() && (os.Geteuid() != 0 || os.Getenv("USER") != "root") {
		return filepath.Join(dir, "psi")
	}
	return DefaultRunDir
}

// Rootless reports whether this process is not root, or root of a user namespace.
func Rootless() bool {
	if os.Geteuid() != 0 {
		return true
	}
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	var inside, outside, count int64
	n, err := fmt.Sscan(string(data), &inside, &outside, &count)
	return err != nil || n != 3 || inside != 0 || outside != 0 || count != 1<<32-1
}

// runDir is the directory of journals and ids. It is flat, because where it is not
// a tmpfs making and removing a directory takes half a millisecond, and a hard
// link some microseconds.
//
// The lock on the default one itself (an flock) is held shared by those who add to
// the psi cgroups, and exclusive by those who remove the parents that have become
// empty: without it a parent could vanish between one process's mkdir of it and of
// its child. Cgroups are the host's, so it is this one lock whatever the run
// directory is.
type runDir string

func (r runDir) owners() string { return filepath.Join(string(r), "owners") }

// deferred is a note of directories that are left to the next one to tidy.
func deferred() string { return filepath.Join(defaultRunDir(), "deferred") }

// make makes the directory. 0711: the init process of a guest walks through it to
// its root as the guest's own uid.
func (r runDir) make() error {
	mode := os.FileMode(0o711)
	if string(r) != DefaultRunDir {
		mode |= os.ModeSticky // keeps it from being tidied away below $XDG_RUNTIME_DIR
	}
	if err := mkdirMode(string(r), mode); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	return nil
}

// openLock opens what the lock is on.
func openLock() (*os.File, error) {
	r := runDir(defaultRunDir())
	dir, err := os.OpenFile(string(r), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = r.make(); err == nil {
			dir, err = os.OpenFile(string(r), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the run directory: %w", err)
	}
	return dir, nil
}

// share makes the run directory and takes the lock shared; closing the file
// releases it. Whoever holds it must not wait for anything that takes it
// exclusively.
func (r runDir) share() (*os.File, error) {
	if string(r) != defaultRunDir() {
		if err := r.make(); err != nil {
			return nil, err
		}
	}
	dir, err := openLock()
	if err != nil {
		return nil, err
	}
	if err := flock(dir, unix.LOCK_SH); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", defaultRunDir(), err)
	}
	return dir, nil
}

// tidy removes those of the cgroups in parents that have become empty. If
// containers are being made at this moment it leaves a note instead, and whoever
// removes one of those containers does it. Of r, the owners' directory goes if it
// is empty.
func (r runDir) tidy(parents []string) error {
	dir, err := openLock()
	if err != nil {
		return err
	}
	defer dir.Close()
	if _, err := os.Lstat(r.owners()); err == nil {
		parents = append(slices.Clip(parents), r.owners())
	}
	if !exclusive(dir, 3) {
		if err := deferTidy(parents); err != nil {
			return err
		}
		// The last of the others may have tidied just before the note was there.
		if !exclusive(dir, 0) {
			return nil
		}
	}
	if note, err := os.ReadFile(deferred()); err == nil {
		for line := range strings.Lines(string(note)) {
			parents = append(parents, strings.TrimSuffix(line, "\n"))
		}
		_ = unix.Unlink(deferred())
	}
	for _, dir := range parents {
		_ = unix.Rmdir(dir) // which only takes empty ones
	}
	return nil
}

// exclusive tries to take the lock exclusively, and again after a millisecond up to
// retries times: others who tidy are done in a moment, others who create are not.
func exclusive(dir *os.File, retries int) bool {
	for {
		if flock(dir, unix.LOCK_EX|unix.LOCK_NB) == nil {
			return true
		}
		if retries--; retries < 0 {
			return false
		}
		time.Sleep(time.Millisecond)
	}
}

// deferTidy leaves the note.
func deferTidy(parents []string) error {
	if len(parents) == 0 {
		return nil
	}
	f, err := os.OpenFile(deferred(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	var note bytes.Buffer
	for _, dir := range parents {
		note.WriteString(dir + "\n")
	}
	_, err = f.Write(note.Bytes())
	return errors.Join(err, f.Close())
}

// flock locks an open file or directory.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// mkdirMode makes path and its parents, whatever the umask is: path with mode,
// parents with 0755. An existing directory is left as it is.
func mkdirMode(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, os.ErrNotExist) {
		if err = mkdirMode(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = os.Mkdir(path, mode)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// validID repeats libcontainer's rule, because the id names files of ours first.
func validID(id string) bool {
	if id == "" || id == "." || id == ".." {
		return false
	}
	for _, b := range []byte(id) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
		case b == '_', b == '+', b == '-', b == '.':
		default:
			return false
		}
	}
	return true
}
