package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LiveLayer shows directories of a running guest's root through another layer than the
// one that it was made with.
type LiveLayer struct {
	Lower string   // the root file system
	Layer string   // see MountLayer; "" shows the root file system as it is
	Dirs  []string // which directories of it, relative to it
	Place string   // a directory to make for a moment, nobody else's
}

// coverTrees makes what is to cover the directories, attached to nothing.
func coverTrees(l LiveLayer) (trees []*os.File, err error) {
	from := l.Lower
	if l.Layer != "" {
		if err := mountLowers(l.Place, l.Layer, l.Lower); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, UnmountLayer(l.Place)) }()
		from = l.Place
	}
	for _, dir := range l.Dirs {
		path := filepath.Join(from, dir)
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return trees, &os.PathError{Op: "open_tree", Path: path, Err: err}
		}
		trees = append(trees, os.NewFile(uintptr(fd), "/"+dir))
		attr := unix.MountAttr{
			Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
			Propagation: unix.MS_PRIVATE,
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return trees, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
		}
	}
	return trees, nil
}

// mountLowers mounts an overlay that nobody can write on place, which it makes.
func mountLowers(place, upper, lower string) error {
	if err := os.Mkdir(place, 0o700); err != nil {
		return fmt.Errorf("making a place for a layer: %w", err)
	}
	data := "lowerdir="
	for i, path := range []string{upper, lower} {
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return errors.Join(fmt.Errorf("opening a layer: %w", err), os.Remove(place))
		}
		defer f.Close()
		data += []string{"", ":"}[i] + fdPath(f)
	}
	if err := unix.Mount("psi", place, "overlay", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, data+",xino=off"); err != nil {
		return errors.Join(&os.PathError{Op: "mounting an overlay on", Path: place, Err: err}, os.Remove(place))
	}
	return nil
}

// cover puts a tree over a directory of the guest's root. What the guest has open or
// mapped of what was there stays with it.
func (l *live) cover(tree *os.File) error {
	place, err := openPlace(tree.Name())
	if err != nil {
		return fmt.Errorf("covering %s: %w", tree.Name(), err)
	}
	defer place.Close()
	if err := moveTree(tree, place); err != nil {
		return err
	}
	l.undo.add(func() error { return unix.Unmount(tree.Name(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	return nil
}
