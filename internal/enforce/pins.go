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
//
// The lock on pinRoot is held by whoever changes what is pinned, or adds a guest.
const pinRoot = "/sys/fs/bpf/psi"

// pinDir is the directory of one version of the programs.
func pinDir(object []byte) string {
	digest := sha256.Sum256(object)
	return filepath.Join(pinRoot, hex.EncodeToString(digest[:8]))
}

// lockPins takes the lock. Closing the file releases it.
func lockPins() (*os.File, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(pinRoot), &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		return nil, filesUnsupported("a bpf file system at /sys/fs/bpf", "mount it: mount -t bpf bpf /sys/fs/bpf", err)
	}
	for {
		if err := os.Mkdir(pinRoot, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("making the directory of pinned programs: %w", err)
		}
		lock, err := os.Open(pinRoot)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("locking the pinned programs: %w", err)
		}
		for {
			if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			lock.Close()
			return nil, fmt.Errorf("locking %s: %w", pinRoot, err)
		}
		// It may have been removed while we waited.
		held, errHeld := lock.Stat()
		now, errNow := os.Stat(pinRoot)
		if errHeld == nil && errNow == nil && os.SameFile(held, now) {
			return lock, nil
		}
		lock.Close()
	}
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
	var links, maps []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), linkPrefix) {
			links = append(links, path)
		} else {
			maps = append(maps, path)
		}
	}
	var errs []error
	for _, path := range append(append(links, maps...), dir) {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
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
