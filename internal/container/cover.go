package container

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// takeOff unmounts a mask, of which a copy stays for the case that it is to come back.
func (r *remasking) takeOff(c *cover) error {
	if err := is(c.place, c.id); err != nil {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: c.place, Err: err}
	}
	if err := unix.Unmount(c.place, unix.UMOUNT_NOFOLLOW); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			err = ErrBusy
		}
		return &os.PathError{Op: "unmasking", Path: c.place, Err: err}
	}
	c.tree = os.NewFile(uintptr(fd), c.place)
	r.spares = append(r.spares, c.tree)
	c.id = 0
	delete(r.m.placed, c.path)
	return nil
}

// putOn masks what is at a cover's place. The error wraps [os.ErrNotExist] if nothing is.
func (r *remasking) putOn(c *cover) error {
	place, err := openPlace(c.place)
	if err != nil {
		return &os.PathError{Op: "masking", Path: c.place, Err: err}
	}
	defer place.Close()
	on, _, err := mountOf(place)
	if err != nil {
		return err
	}
	if c.in != 0 && on != c.in {
		return fmt.Errorf("masking %s: something else is mounted there, or over it", c.place)
	}
	tree := c.tree
	if tree == nil {
		if r.all[on].shared {
			return errShared(c.place)
		}
		if tree, err = r.newMask(c, place); err != nil {
			return err
		}
	}
	if err := moveTree(tree, place); err != nil {
		if c.tree == nil {
			_ = tree.Close()
		}
		return err
	}
	err = r.note(c, tree)
	_ = tree.Close() // it would keep the mount busy
	c.tree = nil
	if err != nil {
		return errors.Join(err, unix.Unmount(c.place, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// note remembers a mask that was put on. What is not known of a new one settle finds.
func (r *remasking) note(c *cover, tree *os.File) error {
	id, _, err := mountOf(tree)
	if err != nil {
		return err
	}
	info := r.all[c.was] // the same, but for its id
	info.id, c.id = id, id
	r.m.placed[c.path] = mask{info, c.life}
	return nil
}

// settle completes what is known of new masks, once for all of them: there may be hundreds.
func (r *remasking) settle() error {
	all, err := listMounts()
	for path, known := range r.m.placed {
		if known.what == "" {
			r.m.placed[path] = mask{all[known.id], known.life}
		}
	}
	return err
}

// newMask is what to mount over what is at a place: an empty directory that nobody can write,
// or /dev/null.
func (r *remasking) newMask(c *cover, place *os.File) (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(place.Fd()), &stat); err != nil {
		return nil, &os.PathError{Op: "stat", Path: c.place, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		null := c.null
		c.null = nil
		if null == nil {
			return nil, fmt.Errorf("masking %s: it has been masked before", c.place)
		}
		return null, nil
	}
	return emptyDirectory()
}

// emptyDirectory is a file system with nothing in it, mounted nowhere.
func emptyDirectory() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for _, option := range [][2]string{{"source", "tmpfs"}, {"size", "4096"}, {"nr_inodes", "2"}, {"mode", "755"}} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", option[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "empty"), nil
}

// is checks that a mount, and no other, is at a place.
func is(place string, id uint64) error {
	switch now, err := mountIDOf(place); {
	case err != nil:
		return err
	case now != id:
		return fmt.Errorf("what is mounted at %s is not what was: somebody has moved it", place)
	}
	return nil
}

// unheld checks that nobody has anything open of the volume at a place. The kernel tells who
// asks for an unused mount to expire, which this one then has to be asked for twice: to look
// at it, as is does, takes that back.
func unheld(place string, id uint64) error {
	if err := is(place, id); err != nil {
		return err
	}
	err := unix.Unmount(place, unix.MNT_EXPIRE|unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		err = ErrBusy
	case err == nil:
		err = errors.New("the kernel has unmounted it")
	case errors.Is(err, unix.EAGAIN):
		return is(place, id)
	}
	return &os.PathError{Op: "masking something in", Path: place, Err: err}
}

// setReadOnly lets a volume be written, or not.
func (r *remasking) setReadOnly(place string, readonly bool) error {
	f, err := openPlace(place)
	if err != nil {
		return &os.PathError{Op: "opening", Path: place, Err: err}
	}
	defer f.Close()
	id, _, err := mountOf(f)
	if err != nil {
		return err
	}
	if id != r.m.volumes[place].id {
		return fmt.Errorf("what is mounted at %s is not what was", place)
	}
	attr, op := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, "making read-only"
	if !readonly {
		attr, op = unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}, "making writable"
	}
	err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EBUSY) {
		err = ErrBusy
	}
	if err != nil {
		return &os.PathError{Op: op, Path: place, Err: err}
	}
	return nil
}
