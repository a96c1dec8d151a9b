package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// DefaultRunDir is where everything that psi owns on a host is written down.
	DefaultRunDir = "/run/psi"
	// DefaultRoot is where libcontainer keeps the state of containers.
	DefaultRoot = DefaultRunDir + "/containers"
)

// runDir is the directory of owners, ids and mounts. Its lock (an flock on the
// directory itself) is taken shared by those who add something below it and
// exclusive by those who remove directories that might be in use: without it a
// parent could vanish between one process's mkdir of it and of its child.
type runDir string

func (r runDir) owners() string { return filepath.Join(string(r), "owners") }
func (r runDir) ids() string    { return filepath.Join(string(r), "ids") }
func (r runDir) mounts() string { return filepath.Join(string(r), "mnt") }

// locked calls do with the directory's lock held; how is unix.LOCK_SH or LOCK_EX.
func (r runDir) locked(how int, do func() error) error {
	// 0711: the init process of a guest walks through it to its root as the guest's own uid.
	if err := mkdirMode(string(r), 0o711); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	dir, err := os.OpenFile(string(r), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the run directory: %w", err)
	}
	defer dir.Close()
	for {
		err = unix.Flock(int(dir.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", r, err)
	}
	return do()
}

// tidy removes the directories below r that have become empty. The caller holds
// the lock exclusively. r itself stays.
func (r runDir) tidy() {
	for _, dir := range []string{r.owners(), r.ids(), r.mounts()} {
		_ = os.Remove(dir)
	}
}

// mkdirMode makes path and its parents; path itself gets mode whatever the
// umask is. An existing directory is left as it is.
func mkdirMode(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		err = os.Mkdir(path, mode)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
