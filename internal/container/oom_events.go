package container

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// groupEvents waits for files of cgroup2 to change. They are polled, and not watched by inotify, whose end
// waits until no processor can be about to use the watch: some 5 ms at the end of each guest.
type groupEvents struct {
	epoll *os.File
	files []*os.File
}

// watchEvents begins to watch files of cgroup2 that tell of changes.
func watchEvents(paths ...string) (_ oomWake, err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.SetNonblock(epoll, true) // so that Go waits for it
	e := &groupEvents{epoll: os.NewFile(uintptr(epoll), "epoll")}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		e.files = append(e.files, os.NewFile(uintptr(fd), path))
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLPRI}); err != nil {
			return nil, &os.PathError{Op: "epoll_ctl", Path: path, Err: err}
		}
	}
	return e, nil
}

// wait returns when a file has changed since the last wait, or has gone.
func (e *groupEvents) wait() error {
	conn, err := e.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.EpollWait(int(fd), make([]unix.EpollEvent, 1), 0)
		failed = err
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	// What is read is known, and waited for no longer. Whoever is told reads it again.
	for _, f := range e.files {
		if _, err := f.ReadAt(make([]byte, 512), 0); err != nil && !errors.Is(err, io.EOF) {
			return err // the group has gone
		}
	}
	return nil
}

func (e *groupEvents) stop() { _ = e.epoll.SetReadDeadline(time.Unix(1, 0)) }

func (e *groupEvents) Close() error {
	errs := []error{e.epoll.Close()}
	for _, f := range e.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
