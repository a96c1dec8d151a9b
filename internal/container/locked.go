package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long somebody may hold a container that another wants to change.
const lockPatience = 10 * time.Second

// LoadLocked is Load for whoever changes what is written down of a container, or decides
// by it: nobody else does until the container is closed. With shared, others may that
// only decide by it.
func LoadLocked(root, id string, shared bool) (*Container, error) {
	c, err := Load(root, id)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.root, c.id)
	if err := c.Close(); err != nil {
		return nil, err
	}
	lock, err := lockDirectory(dir, shared)
	if err != nil {
		return nil, fmt.Errorf("locking container %s: %w", id, err)
	}
	// What was loaded before may have changed since.
	if c, err = Load(root, id); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	c.lock = lock
	return c, nil
}

func lockDirectory(dir string, shared bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case err == unix.EINTR:
		case err != unix.EWOULDBLOCK:
			return nil, errors.Join(os.NewSyscallError("flock", err), f.Close())
		case time.Now().After(end):
			return nil, errors.Join(fmt.Errorf("somebody else has been changing it, or starting a process in it, for %v", lockPatience), f.Close())
		}
	}
}

// Unlock lets others change the container before it is closed.
func (c *Container) Unlock() error {
	if c.lock == nil {
		return nil
	}
	lock := c.lock
	c.lock = nil
	return lock.Close()
}
