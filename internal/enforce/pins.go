package enforce

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// pinRoot is where the programs of all guests of the host live, each version of
// them in a directory of its own. They outlive every process: whoever is killed,
// guests stay held.
//
//	/sys/fs/bpf/psi/<digest of the object>/guests, tables_small, …   the maps
//	                                      /link_<program>            attached while it exists
//	                                      /readers/<n>, spare/<n>    rings of processes, see ring.go
//	                network1-<digest>/guests, connect4, …            maps and programs, see network_pins.go
//	                sched1-<digest>/program                          see throttle_program.go
//
// In each version guests is a hash whose keys are the cgroups of its guests. The lock on pinRoot is
// held by whoever changes what is pinned, or adds a guest that is held to file rules.
const pinRoot = bpffs + "/psi"

// bpffs is where file systems for pins are mounted.
const bpffs = "/sys/fs/bpf"

// pinDir is the directory of one version of the LSM programs.
func pinDir(object []byte) string {
	digest := sha256.Sum256(object)
	return filepath.Join(pinRoot, hex.EncodeToString(digest[:8]))
}

// lockPins takes the lock. Closing the file releases it.
func lockPins() (*os.File, error) {
	if err := mountPins(); err != nil {
		return nil, filesUnsupported("a bpf file system at "+bpffs, "mount it: mount -t bpf bpf "+bpffs, err)
	}
	for {
		if err := os.Mkdir(pinRoot, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making the directory of pinned programs: %w", err)
		}
		lock, err := lockDir(pinRoot, unix.LOCK_EX)
		if !errors.Is(err, os.ErrNotExist) {
			return lock, err
		}
	}
}

// mountPins mounts the file system where nobody has, as systemd does when a machine starts. It stays.
func mountPins() error {
	if isMounted() {
		return nil
	}
	// The lock is on what was there before. Two mounts on each other would hide pins.
	dir, err := os.Open(bpffs)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := flock(dir, unix.LOCK_EX); err != nil || isMounted() {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"))
}

func isMounted() bool {
	var fs unix.Statfs_t
	return unix.Statfs(bpffs, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}

func flock(dir *os.File, how int) error {
	for {
		if err := unix.Flock(int(dir.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lockDir locks a directory that is there when it is locked; else the error is an
// [os.ErrNotExist]. Closing the file releases the lock.
func lockDir(path string, how int) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("locking pinned programs: %w", err)
	}
	if err = flock(dir, how); err == nil {
		// It may have been removed while we waited.
		var held, now os.FileInfo
		if held, err = dir.Stat(); err == nil {
			now, err = os.Stat(path)
		}
		if err == nil && !os.SameFile(held, now) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return dir, nil
}

// unpin removes what is pinned in a directory, and the directory. Links go first:
// half of the programs with all of the maps refuse what they should, the other way
// round they could not.
func unpin(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing pinned programs: %w", err)
	}
	var errs []error
	for _, links := range []bool{true, false} {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), linkPrefix) != links {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if e.IsDir() {
				errs = append(errs, unpin(path))
			} else {
				errs = append(errs, os.Remove(path))
			}
		}
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// linkPrefix begins the names of pinned links.
const linkPrefix = "link_"

// cgroupExists reports whether the cgroup of an id is there. dir is any directory
// of the cgroup2 hierarchy.
func cgroupExists(dir *os.File, id uint64) (bool, error) {
	const fileidKernfs = 0xfe // a handle is the id
	var handle [8]byte
	for i := range handle {
		handle[i] = byte(id >> (8 * i))
	}
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), unix.NewFileHandle(fileidKernfs, handle[:]), unix.O_RDONLY|unix.O_CLOEXEC)
	switch {
	case err == nil:
		return true, unix.Close(fd)
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("looking for cgroup %d: %w", id, err)
}

// maxDepth is how deep a guest's cgroup may be.
const maxDepth = 16

// cgroupDepths are the depths at which the cgroup directory may be in the kernel's
// count: one, or all when the top of the hierarchy cannot be seen from here (a cgroup
// namespace).
func cgroupDepths(dir string) ([]uint32, error) {
	for depth := uint32(0); depth <= maxDepth; depth++ {
		var fs unix.Statfs_t
		var st unix.Stat_t
		above := filepath.Dir(dir)
		if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(above, &fs)); err != nil {
			return nil, fmt.Errorf("finding the depth of cgroup %s: %w", dir, err)
		}
		switch {
		case st.Ino == 1 && depth == 0:
			return nil, fmt.Errorf("cgroup %s is the root of the hierarchy, not a guest's", dir)
		case st.Ino == 1:
			return []uint32{depth}, nil
		case fs.Type != unix.CGROUP2_SUPER_MAGIC:
			all := make([]uint32, maxDepth)
			for i := range all {
				all[i] = uint32(i + 1)
			}
			return all, nil
		}
		dir = above
	}
	return nil, fmt.Errorf("cgroup %s is more than %d levels deep: guests cannot be held there", dir, maxDepth)
}
