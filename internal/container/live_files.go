package container

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// root returns the guest's root as a mount of ours that can be written.
func (l *live) root() (*os.File, error) {
	if l.writable != nil {
		return l.writable, nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	l.writable = os.NewFile(uintptr(fd), "/")
	return l.writable, nil
}

// makePlace makes a mount point, component by component: in the guest's root, or in its
// /tmp, where only the guest's own ids can own something.
func (l *live) makePlace(m LiveMount) error {
	if inTmp(m.Dest) {
		defer setFSIDs(int(l.c.entry.IDs.First))()
	}
	dir := filepath.Dir(m.Dest)
	if m.Dir {
		dir = m.Dest
	}
	parent, err := l.walk(dir, true)
	if err != nil {
		return err
	}
	defer parent.Close()
	if m.Dir {
		return nil
	}
	fd, err := unix.Openat(int(parent.Fd()), filepath.Base(m.Dest), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "making mount point", Path: m.Dest, Err: err}
	}
	return unix.Close(fd)
}

func inTmp(place string) bool { return strings.HasPrefix(place+"/", "/tmp/") }

// setFSIDs gives the calling thread, and no other, another identity at file systems,
// without root's capabilities; back takes the first one again.
func setFSIDs(id int) (back func()) {
	set := func(id int) {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(id), 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(id), 0, 0)
	}
	set(id)
	return func() { set(0) }
}

const walkFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// walk opens a directory of the writable root, or of the guest's /tmp, following no link
// and entering no other mount.
func (l *live) walk(dir string, make bool) (*os.File, error) {
	var at int
	var err error
	if rest, below := strings.CutPrefix(dir+"/", "/tmp/"); below {
		dir = rest
		at, err = unix.Open("/tmp", walkFlags, 0)
	} else {
		var root *os.File
		if root, err = l.root(); err != nil {
			return nil, err
		}
		at, err = unix.Openat(int(root.Fd()), ".", walkFlags, 0)
	}
	for _, name := range strings.Split(strings.Trim(dir, "/"), "/") {
		if err != nil || name == "" {
			break
		}
		var next int
		next, err = openBelow(at, name)
		if errors.Is(err, unix.ENOENT) && make {
			if err = unix.Mkdirat(at, name, 0o755); err == nil {
				next, err = openBelow(at, name)
			}
		}
		unix.Close(at)
		at = next
	}
	if err != nil {
		return nil, &os.PathError{Op: "walking to", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(at), dir), nil
}

// openBelow opens a directory that is no mount.
func openBelow(at int, name string) (int, error) {
	return unix.Openat2(at, name, &unix.OpenHow{
		Flags: walkFlags, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
}

// replace writes a file of the guest's root anew.
func (l *live) replace(name string, data []byte) error {
	old, err := l.read(name)
	existed := err == nil
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := l.write(name, data); err != nil {
		return err
	}
	l.undo.add(func() error {
		again := live{Applied: l.Applied}
		defer again.close()
		if existed {
			return again.write(name, old)
		}
		dir, err := again.walk(filepath.Dir(name), false)
		if err != nil {
			return err
		}
		defer dir.Close()
		return unix.Unlinkat(int(dir.Fd()), filepath.Base(name), 0)
	})
	return nil
}

// maxLiveFile bounds the files that are replaced, in bytes.
const maxLiveFile = 1 << 20

func (l *live) read(name string) ([]byte, error) {
	dir, err := l.walk(filepath.Dir(name), false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxLiveFile))
}

func (l *live) write(name string, data []byte) error {
	dir, err := l.walk(filepath.Dir(name), true)
	if err != nil {
		return err
	}
	defer dir.Close()
	const beside = ".psi-new"
	_ = unix.Unlinkat(int(dir.Fd()), beside, 0)
	fd, err := unix.Openat(int(dir.Fd()), beside, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return unix.Renameat(int(dir.Fd()), beside, int(dir.Fd()), filepath.Base(name))
}
