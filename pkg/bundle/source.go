package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// errKind is the reason for refusing what is neither file nor directory: sockets and
// FIFOs reach processes of the host through a read-only mount, devices are devices.
var errKind = errors.New("is neither a regular file nor a directory: FIFOs, sockets and devices are never shown to a guest")

// OpenSource opens the source of a [ViewMount] as a handle to mount from (O_PATH).
// No component of the path may have become a symbolic link since the view was
// planned, and the object must be of the kind that was planned; what is mounted
// from the handle is then what was checked. The caller closes it.
func OpenSource(m ViewMount) (*os.File, error) {
	handle, err := openHandle(m.Source)
	if err != nil {
		return nil, fmt.Errorf("opening view source: %w", err)
	}
	mode, err := fileType(handle)
	if err == nil && (mode == unix.S_IFDIR) != m.Dir {
		err = &fs.PathError{Op: "open", Path: m.Source, Err: errors.New("changed between file and directory since the view was planned: plan it again")}
	}
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("opening view source: %w", err)
	}
	return handle, nil
}

// openHandle opens an absolute path that holds no symbolic link.
func openHandle(name string) (*os.File, error) {
	return openat2(unix.AT_FDCWD, name, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS})
}

// openat2 opens name below dirfd; shown is its path in messages.
func openat2(dirfd int, name, shown string, how unix.OpenHow) (*os.File, error) {
	for {
		fd, err := unix.Openat2(dirfd, name, &how)
		// EAGAIN: a rename somewhere made the walk uncertain.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "openat2", Path: shown, Err: err}
		}
		return os.NewFile(uintptr(fd), shown), nil
	}
}

// fileType returns S_IFREG or S_IFDIR; anything else is an error.
func fileType(f *os.File) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return 0, &fs.PathError{Op: "show", Path: f.Name(), Err: errKind}
	}
	return kind, nil
}
