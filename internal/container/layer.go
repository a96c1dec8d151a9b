package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountLayer mounts at dir, which it makes, a layer for CreateOptions.Layer: laid over
// the root file system at lower it hides the paths in hidden, which are relative to it,
// sorted, and name no file twice. What hides a file is a whiteout, a device file with the
// number 0:0, as overlayfs itself makes them for deleted files.
//
// The layer is a file system of its own, so that nothing can be taken out of it while
// guests use it: unmounting it (MNT_DETACH) leaves it to them.
func MountLayer(dir, lower string, hidden []string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a layer: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("psi-layer", dir, "tmpfs", flags, "mode=0755,size=1m,nr_inodes=0"); err != nil {
		return errors.Join(&os.PathError{Op: "mounting tmpfs on", Path: dir, Err: err}, os.Remove(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making a layer over %s: %w", lower, err), UnmountLayer(dir))
		}
	}()
	made := map[string]bool{".": true}
	for _, name := range hidden {
		if err := mirrorDir(dir, lower, filepath.Dir(name), made); err != nil {
			return err
		}
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR, 0); err != nil {
			return &os.PathError{Op: "hiding", Path: name, Err: err}
		}
	}
	// Read-only, so that the layer is what was made, for all guests alike.
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, "mode=0755,size=1m,nr_inodes=0")
}

// mirrorDir makes, below dir, a directory of lower and those above it: where layers meet
// the upper one's mode and owner are seen.
func mirrorDir(dir, lower, name string, made map[string]bool) error {
	if made[name] {
		return nil
	}
	if err := mirrorDir(dir, lower, filepath.Dir(name), made); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(lower, name), &st); err != nil {
		return &os.PathError{Op: "looking at", Path: name, Err: err}
	}
	at := filepath.Join(dir, name)
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if err := unix.Lchown(at, int(st.Uid), int(st.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: at, Err: err}
	}
	if err := unix.Chmod(at, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: at, Err: err}
	}
	made[name] = true
	return nil
}

// UnmountLayer takes a layer away. Guests that were made with it keep it.
func UnmountLayer(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmounting", Path: dir, Err: err}
	}
	return os.Remove(dir)
}
