package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The private place. Layers (layers.go) need mount points that exist in the supervisor's
// mount namespace only: a directory on the host would be left behind by a crash,
// and deleting it from outside would take the mounts with it. So a tmpfs covers the
// directory of owners, and this supervisor's own is bound back into it:
//
//	<run>/owners/           tmpfs, here only; other owners are out of sight
//	<run>/owners/<owner>/   the host's journal, and what the container package makes
//	<run>/owners/layers/    here only

// mountPlace makes the private place around the owner's directory and returns it.
func mountPlace(owner string) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("making a private place for mounts: %w", errors.Join(err, unmountPlace(owner)))
	}
	// The journal is opened before it is covered.
	journal, err := os.OpenFile(owner, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fail(err)
	}
	defer journal.Close()
	owners := filepath.Dir(owner)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// 0711: the first process of a guest walks through to its root.
	if err := unix.Mount("psi-place", owners, "tmpfs", flags, "size=4m,mode=0711"); err != nil {
		return fail(&os.PathError{Op: "mount tmpfs", Path: owners, Err: err})
	}
	if err := placeMount(owner, journal); err != nil {
		return fail(err)
	}
	place := filepath.Join(owners, "layers")
	if err := os.Mkdir(place, 0o700); err != nil {
		return fail(err)
	}
	return place, nil
}

// unmountPlace takes the private place away; the host's directory is visible again.
func unmountPlace(owner string) error {
	owners := filepath.Dir(owner)
	err := unix.Unmount(owners, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: nothing is mounted there
		return &os.PathError{Op: "unmount", Path: owners, Err: err}
	}
	return nil
}

// placeMount mounts what file refers to at place, which it makes, and cuts it off
// from mounts that appear below it on the host later.
func placeMount(place string, file *os.File) error {
	var stat unix.Stat_t
	err := unix.Fstat(int(file.Fd()), &stat)
	if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(place, 0o700)
	} else if err == nil {
		err = os.WriteFile(place, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("making a place for the mount of %s: %w", file.Name(), err)
	}
	tree, err := unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: file.Name(), Err: err}
	}
	defer unix.Close(tree)
	private := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, private); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: file.Name(), Err: err}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: file.Name(), Err: err}
	}
	return nil
}
