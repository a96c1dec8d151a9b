package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// live changes the mounts that the calling thread sees. Every step that it adds to undo
// runs on another thread in the same namespace.
type live struct {
	*Applied
	writable *os.File // the guest's root as a mount of its own, opened when needed
}

// close lets go of the guest's root. With the last descriptor a mount that is attached to nothing
// is dissolved, which waits for all processors; nobody has to wait for that.
func (l *live) close() {
	if l.writable != nil {
		go l.writable.Close()
	}
}

func (l *live) apply(change Change, trees, covers []*os.File) error {
	places, err := findHidden(change.Hide)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(places) {
		if err := l.hide(m); err != nil {
			return err
		}
	}
	// Before something is shown above: what is covered cannot be cleared.
	for _, m := range slices.Backward(change.Hide) {
		if !slices.ContainsFunc(change.Show, func(next LiveMount) bool { return next.Dest == m.Dest }) {
			l.clear(m.Dest)
		}
	}
	for i, m := range change.Show {
		if err := l.show(trees[i], m); err != nil {
			return fmt.Errorf("showing %s: %w", m.Dest, err)
		}
	}
	if change.Cover != nil {
		if err := l.cover(covers, change.Cover.Over); err != nil {
			return err
		}
	}
	for name, data := range change.Files {
		if err := l.replace(name, data); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if change.Tmp > 0 {
		if err := l.resize("/tmp", change.Tmp); err != nil {
			return err
		}
	}
	return nil
}

// clear removes the empty mount point of what was hidden, and the directories that were
// made for it, so that the name is gone too. What is in use, or not empty, or of the root
// file system's first level, stays; names are not worth an error.
func (l *live) clear(place string) {
	if _, err := mountAt(place); err == nil {
		return // something else is shown there now
	}
	for flags := 0; filepath.Dir(place) != "/"; place, flags = filepath.Dir(place), unix.AT_REMOVEDIR {
		dir, err := l.walk(filepath.Dir(place), false)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return
		}
		name := filepath.Base(place)
		var stat unix.Stat_t
		err = unix.Fstatat(int(dir.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
		}
		if err == nil && flags == 0 && (stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size > 0) {
			err = unix.EEXIST
		}
		if err == nil {
			err = unix.Unlinkat(int(dir.Fd()), name, flags)
		}
		dir.Close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}

// findHidden finds what is to be hidden, all of it and nothing else: which of it is at which of
// the places does not matter.
func findHidden(hide []HiddenMount) (found []HostMount, err error) {
	left := make(map[HiddenMount]int)
	for _, m := range hide {
		m.Dest = ""
		left[m]++
	}
	for _, m := range hide {
		is, err := mountAt(m.Dest)
		if err != nil {
			return nil, err
		}
		what := HiddenMount{"", is.Write, is.Dev, is.Ino}
		if left[what] == 0 {
			return nil, fmt.Errorf("what is mounted at %s is not what was: somebody has moved it", m.Dest)
		}
		left[what]--
		found = append(found, is)
	}
	return found, nil
}

// hide takes one mount away.
func (l *live) hide(m HostMount) error {
	place := m.Dest
	spare, err := unix.OpenTree(unix.AT_FDCWD, place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: place, Err: err}
	}
	if err := unix.Unmount(place, unix.UMOUNT_NOFOLLOW); err != nil {
		unix.Close(spare)
		if errors.Is(err, unix.EBUSY) {
			err = ErrBusy
		}
		return &os.PathError{Op: "taking away", Path: place, Err: err}
	}
	tree := os.NewFile(uintptr(spare), place)
	l.spares = append(l.spares, tree)
	l.undo.add(func() error { return l.attachAgain(tree, LiveMount{Dest: place, Dir: m.Dir}) })
	if _, err := mountAt(place); err == nil {
		return fmt.Errorf("something else is mounted at %s, below what was taken away", place)
	}
	return nil
}

// mountAt is what is mounted at a place. It is an error if nothing is: the guest may have moved
// the directory that it was in.
func mountAt(place string) (m HostMount, err error) {
	f, err := openPlace(place)
	if err != nil {
		return m, fmt.Errorf("%s is not where it was mounted: %w", place, err)
	}
	defer f.Close()
	var root unix.Statx_t
	var stat unix.Stat_t
	var system unix.Statfs_t
	err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, 0, &root)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &stat)
	}
	if err == nil {
		err = unix.Fstatfs(int(f.Fd()), &system)
	}
	switch {
	case err != nil:
		return m, &os.PathError{Op: "stat", Path: place, Err: err}
	case root.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return m, fmt.Errorf("%s is no mount any more: the guest has moved what was there", place)
	}
	return HostMount{
		Dest: place, Write: system.Flags&unix.ST_RDONLY == 0,
		Dir: stat.Mode&unix.S_IFMT == unix.S_IFDIR, Dev: stat.Dev, Ino: stat.Ino,
	}, nil
}

// openPlace opens a handle on an absolute path, without following links.
func openPlace(place string) (*os.File, error) {
	return openWithoutLinks(unix.AT_FDCWD, place, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

// show puts a detached tree in its place.
func (l *live) show(tree *os.File, m LiveMount) error {
	place, made, err := l.place(m)
	if made {
		l.undo.add(func() error {
			again := live{Applied: l.Applied}
			defer again.close()
			again.clear(m.Dest)
			return nil
		})
	}
	if err != nil {
		return err
	}
	defer place.Close()
	if err := moveTree(tree, place); err != nil {
		return err
	}
	_ = tree.Close() // it would keep the mount busy
	l.undo.add(func() error { return unix.Unmount(m.Dest, unix.UMOUNT_NOFOLLOW) })
	return nil
}

// attachAgain puts back what was hidden. Its place may have been cleared.
func (a *Applied) attachAgain(tree *os.File, m LiveMount) error {
	again := live{Applied: a}
	defer again.close()
	target, _, err := again.place(m)
	if err != nil {
		return err
	}
	defer target.Close()
	return moveTree(tree, target)
}

// place opens a mount point, which it makes if there is none.
func (l *live) place(m LiveMount) (place *os.File, made bool, err error) {
	place, err = openPlace(m.Dest)
	if !errors.Is(err, os.ErrNotExist) {
		return place, false, err
	}
	if err := l.makePlace(m); err != nil {
		return nil, true, err // parts of it, perhaps
	}
	if place, err = openPlace(m.Dest); errors.Is(err, os.ErrNotExist) {
		return nil, true, fmt.Errorf("its place is inside another mount of the guest and does not exist there: %w", err)
	}
	return place, true, err
}

func moveTree(tree, target *os.File) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", flags); err != nil {
		return &os.PathError{Op: "move_mount", Path: target.Name(), Err: err}
	}
	return nil
}

// resize changes the size of a tmpfs. The kernel refuses less than what is in it.
func (l *live) resize(place string, size int64) error {
	var was unix.Statfs_t
	if err := unix.Statfs(place, &was); err != nil {
		return &os.PathError{Op: "statfs", Path: place, Err: err}
	}
	if err := resizeTmpfs(place, size); err != nil {
		return err
	}
	l.undo.add(func() error { return resizeTmpfs(place, int64(was.Blocks)*was.Bsize) })
	return nil
}

func resizeTmpfs(place string, size int64) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, place, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "fspick", Path: place, Err: err}
	}
	defer unix.Close(fd)
	if err = unix.FsconfigSetString(fd, "size", strconv.FormatInt(size, 10)); err == nil {
		err = unix.FsconfigReconfigure(fd)
	}
	if err != nil {
		return fmt.Errorf("changing the size of %s to %d bytes (is more in it?): %w", place, size, err)
	}
	return nil
}
