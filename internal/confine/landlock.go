package confine

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Access is what a rule of a domain allows. Whatever the process could not do without
// the domain it cannot do with it.
type Access string

// The kinds of access.
const (
	List  Access = "list"  // list directories
	Read  Access = "read"  // list directories and read files, not execute them
	Write Access = "write" // read, and write, create, rename and delete files and directories
	Full  Access = "full"  // everything
)

// Rule allows access to a path of the container and, if it is a directory, to
// everything below it. Path is absolute and clean. A path that is not there, or that
// a symbolic link leads to, is not allowed by it.
type Rule struct {
	Access Access `json:"access"`
	Path   string `json:"path"`
}

// ErrNoLandlock is in the chain of the error for a kernel without Landlock.
var ErrNoLandlock = errors.New("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and landlock in the boot parameter lsm=)")

// The versions of Landlock with which rights came.
const (
	// ABITruncate, Linux 6.2, is the first that holds truncate().
	ABITruncate = 3
	abiRefer    = 2
	abiIoctl    = 5
)

// LandlockABI is the version of Landlock that the kernel has, 1 or more.
func LandlockABI() (int, error) {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	switch {
	case errno == unix.ENOSYS || errno == unix.EOPNOTSUPP:
		return 0, ErrNoLandlock
	case errno != 0:
		return 0, fmt.Errorf("asking for Landlock: %w", errno)
	}
	return int(abi), nil
}

// handled are the rights that a domain takes away unless a rule allows them: all
// that the kernel knows of those that psi does.
func handled(abi int) uint64 {
	bits := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM)<<1 - 1
	if abi >= abiRefer {
		bits |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= ABITruncate {
		bits |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= abiIoctl {
		bits |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return bits
}

func (a Access) bits() uint64 {
	const read = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	switch a {
	case List:
		return unix.LANDLOCK_ACCESS_FS_READ_DIR
	case Read:
		return read
	case Write:
		return read | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
			unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REFER |
			unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	case Full:
		return ^uint64(0)
	}
	return 0
}

// path is the rule's path as psi-init reads it.
func (r Rule) path() ([]byte, error) {
	if !path.IsAbs(r.Path) || path.Clean(r.Path) != r.Path || len(r.Path) >= unix.PathMax {
		return nil, fmt.Errorf("the Landlock rule for %q is no clean absolute path", r.Path)
	}
	if r.Access.bits() == 0 {
		return nil, fmt.Errorf("the Landlock rule for %q: %q is no kind of access", r.Path, r.Access)
	}
	return append([]byte(r.Path), 0), nil
}
