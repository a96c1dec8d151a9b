package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// listener is the socket of a shared supervisor: mode 0660, owned by root and the
// group whose members may have guests. A lock file beside it makes sure that one
// supervisor at a time has it, and that a socket left by a crash can be replaced.
type listener struct {
	socket *net.UnixListener
	lock   *os.File
	once   sync.Once
}

// listen makes the socket at path. A group that does not exist is an error: falling
// back to root alone would look like a supervisor that refuses everybody.
func listen(path, group string) (_ *listener, err error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("making the directory of socket %s: %w", path, err)
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	l := &listener{lock: lock}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the former socket: %w", err)
	}
	// Nobody may connect between bind and chmod.
	old := unix.Umask(0o777)
	l.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err = os.Chown(path, 0, gid); err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		return nil, fmt.Errorf("opening socket %s to group %s: %w", path, group, err)
	}
	return l, nil
}

func groupID(group string) (int, error) {
	found, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("opening the socket to group %q: %w: make it with `groupadd --system %s`, or name another with --group", group, err, group)
	}
	gid, err := strconv.Atoi(found.Gid)
	if err != nil {
		return 0, fmt.Errorf("opening the socket to group %q: its id is %q", group, found.Gid)
	}
	return gid, nil
}

// lockSocket takes the lock of the supervisor that serves path.
func lockSocket(path string) (*os.File, error) {
	name := path + ".lock"
	for {
		lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("locking socket %s: %w", path, err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("locking socket %s: another supervisor serves it: connect to that one, or choose another --socket", path)
			}
			return nil, fmt.Errorf("locking socket %s: %w", path, err)
		}
		// The former holder may have removed the file between our open and our lock.
		var mine, there unix.Stat_t
		if unix.Fstat(int(lock.Fd()), &mine) == nil && unix.Stat(name, &there) == nil && mine.Ino == there.Ino && mine.Dev == there.Dev {
			return lock, nil
		}
		_ = lock.Close()
	}
}

func (l *listener) accept() (*net.UnixConn, error) { return l.socket.AcceptUnix() }

// close stops listening and removes the socket and its lock.
func (l *listener) close() {
	l.once.Do(func() {
		if l.socket != nil {
			_ = l.socket.Close() // removes the socket's file
		}
		_ = os.Remove(l.lock.Name())
		_ = l.lock.Close()
	})
}
