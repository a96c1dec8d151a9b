package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LiveLayer shows directories of a running guest's root through another layer than the
// one that it was made with.
type LiveLayer struct {
	Lower string   // the root file system
	Layer string   // see MountLayer; "" shows the root file system as it is
	Dirs  []string // which directories of it, relative to it
	Place string   // a directory to make for a moment, nobody else's
	Over  *Covers  // of the container; nil if this is the only change
}

// Covers are the directories that changes of one container have covered. They take the place of each
// other, so that there are no more mounts after many than after one. The zero value is none.
type Covers struct{ placed map[string]uint64 } // the mounts' ids, by where they are

// Dirs lists the directories as LiveLayer.Dirs does. The next change has to have each of them, or one
// above it, among its own.
func (c *Covers) Dirs() (dirs []string) {
	for place := range c.placed {
		dirs = append(dirs, strings.TrimPrefix(place, "/"))
	}
	slices.Sort(dirs)
	return dirs
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
	root, err := os.OpenFile(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a layer: %w", err)
	}
	defer root.Close()
	for _, dir := range l.Dirs {
		tree, err := cloneBelow(root, dir)
		if err != nil {
			return trees, err
		}
		trees = append(trees, tree)
		attr := unix.MountAttr{
			Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
			Propagation: unix.MS_PRIVATE,
		}
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return trees, &os.PathError{Op: "mount_setattr", Path: dir, Err: err}
		}
	}
	return trees, nil
}

// cloneBelow clones the mount at a directory of a root file system, in which a bundle's author
// could have put links that lead out of it.
func cloneBelow(root *os.File, dir string) (*os.File, error) {
	at, err := openWithoutLinks(int(root.Fd()), dir, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, &os.PathError{Op: "opening", Path: dir, Err: err}
	}
	defer at.Close()
	fd, err := unix.OpenTree(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), "/"+dir), nil
}

// LayerOver makes what shows directories of a root file system, in a container of psi's own,
// without some of their files: paths relative to it, sorted. done takes it away again: what
// was shown with it stays. Until then it is mounted where the container's root was made, where
// [Container.Delete] and [GC] find it.
func (c *Container) LayerOver(lower *os.File, hidden, dirs []string) (cover *LiveLayer, done func() error, err error) {
	place := c.entry.Mounts
	if place == "" {
		return nil, nil, fmt.Errorf("container %s has no root of its own", c.id)
	}
	if err := unix.Mount("psi", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=4k"); err != nil {
		return nil, nil, &os.PathError{Op: "mounting tmpfs on", Path: place, Err: err}
	}
	done = func() error { return detachRoot(place) }
	layer := filepath.Join(place, "layer")
	if err := MountLayer(layer, fdPath(lower), hidden); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return &LiveLayer{Lower: fdPath(lower), Layer: layer, Dirs: dirs, Place: filepath.Join(place, "root")}, done, nil
}

// Rootfs is the root file system as the bundle names it, absolute.
func (c *Container) Rootfs() string { return c.entry.Rootfs }

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

// uncovers checks that a change may take the earlier covers away, before it puts others there. Files of
// them that are open or mapped stay with their processes, on a mount that is attached to nothing.
// A program must not run from there: by its mount the LSM programs tell guests' code from the
// runtime's. The error wraps [ErrBusy].
func (c *Container) uncovers(next LiveLayer) error {
	if len(next.Over.placed) == 0 {
		return nil
	}
	earlier := make(map[uint64]string)
	for place, id := range next.Over.placed {
		if !slices.ContainsFunc(next.Dirs, func(dir string) bool { return strings.HasPrefix(place+"/", "/"+dir+"/") }) {
			return fmt.Errorf("%s was covered, and would not be any more", place)
		}
		earlier[id] = place
	}
	group, err := c.UnifiedCgroup()
	if err != nil {
		return err
	}
	pids, err := groupPIDs(group)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		var stat unix.Statx_t
		program := filepath.Join("/proc", strconv.Itoa(pid), "exe")
		err := unix.Statx(unix.AT_FDCWD, program, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stat)
		if gone(err) != nil {
			return &os.PathError{Op: "statx", Path: program, Err: err}
		}
		if place := earlier[stat.Mnt_id]; err == nil && place != "" {
			return fmt.Errorf("%w: process %d runs a program that lies in %s, of which files are hidden", ErrBusy, pid, place)
		}
	}
	return nil
}

// cover puts trees over directories of the guest's root, in the place of those of earlier changes.
// What the guest has open or mapped of what was there stays with it, see [Container.Unheld].
func (l *live) cover(trees []*os.File, over *Covers) error {
	for place, id := range over.placed {
		if err := l.uncover(place, id, over); err != nil {
			return fmt.Errorf("covering %s anew: %w", place, err)
		}
	}
	for _, tree := range trees {
		if err := l.putOver(tree, over); err != nil {
			return fmt.Errorf("covering %s: %w", tree.Name(), err)
		}
	}
	return nil
}

// putOver puts one tree over the directory that has its name.
func (l *live) putOver(tree *os.File, over *Covers) error {
	place, err := openPlace(tree.Name())
	if err != nil {
		return err
	}
	defer place.Close()
	id, _, err := mountOf(tree)
	if err != nil {
		return err
	}
	if err := moveTree(tree, place); err != nil {
		return err
	}
	if over.placed == nil {
		over.placed = make(map[string]uint64)
	}
	over.placed[tree.Name()] = id
	l.undo.add(func() error {
		delete(over.placed, tree.Name())
		return unix.Unmount(tree.Name(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	})
	return nil
}

// uncover takes an earlier cover away, with what is mounted in it. Lazily: nobody has a directory
// in it, with which more could be opened, see [Container.Unheld].
func (l *live) uncover(place string, id uint64, over *Covers) error {
	if err := is(place, id); err != nil {
		return err
	}
	const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_SYMLINK_NOFOLLOW
	fd, err := unix.OpenTree(unix.AT_FDCWD, place, clone)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	spare := os.NewFile(uintptr(fd), place)
	l.spares = append(l.spares, spare)
	if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return os.NewSyscallError("umount", err)
	}
	delete(over.placed, place)
	l.undo.add(func() error { return l.putOver(spare, over) })
	return nil
}
