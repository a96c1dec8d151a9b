package container

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Owner is a process's right over the containers it makes: while the process
// lives it holds a lock, and GC leaves its containers alone; when it dies, in
// whatever way, the kernel drops the lock and GC removes what it left.
//
// A supervisor opens one Owner for its life. CreateOptions without an Owner make
// one for that single container.
type Owner struct {
	run  runDir
	dir  string
	lock *os.File
}

// OpenOwner makes a new owner below dir ("" is DefaultRunDir).
func OpenOwner(dir string) (*Owner, error) {
	if dir == "" {
		dir = DefaultRunDir
	}
	run := runDir(dir)
	name, err := randomName()
	if err != nil {
		return nil, err
	}
	o := &Owner{run: run, dir: filepath.Join(run.owners(), name)}
	err = run.locked(unix.LOCK_SH, o.make)
	if err != nil {
		return nil, fmt.Errorf("registering an owner of containers: %w", err)
	}
	return o, nil
}

func (o *Owner) make() error {
	if err := mkdirMode(o.run.owners(), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(o.guests(), 0o700); err != nil {
		return err
	}
	lock, err := lockOwner(o.dir)
	if err != nil {
		return err
	}
	o.lock = lock
	return nil
}

// lockOwner takes the lock of the owner at dir; ErrOwned if a process holds it.
func lockOwner(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrOwned
		}
		return nil, fmt.Errorf("locking owner %s: %w", dir, err)
	}
	return lock, nil
}

func (o *Owner) guests() string { return filepath.Join(o.dir, "guests") }

func (o *Owner) journal(id string) string { return filepath.Join(o.guests(), id+".json") }

// Dir is the directory that holds the owner's journal.
func (o *Owner) Dir() string { return o.dir }

// Close gives the right up. An owner that still has containers keeps its
// directory, and GC removes them; an owner without any disappears.
func (o *Owner) Close() error {
	err := o.run.locked(unix.LOCK_EX, func() error {
		o.remove()
		return nil
	})
	o.release()
	return err
}

// remove deletes the owner's directory if no container is written down in it.
// The caller holds the run directory's lock exclusively.
func (o *Owner) remove() {
	if os.Remove(o.guests()) == nil {
		_ = os.Remove(filepath.Join(o.dir, "lock"))
		_ = os.Remove(o.dir)
		o.run.tidy()
	}
}

func (o *Owner) release() {
	if o.lock != nil {
		o.lock.Close()
		o.lock = nil
	}
}

// randomName is 128 random bits in hex.
func randomName() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
