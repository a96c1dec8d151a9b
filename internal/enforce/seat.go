package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// seat is a number by which programs know a process, and a directory of that name in which the maps
// are pinned that they find by it. One process at a time has it: who holds the lock on the directory,
// and it is lost however that process ends. A program finds such a map through another one, and to write
// that the kernel waits until no program runs that could have read what was there before: 8 ms. So a seat
// is handed on with its maps, from the directory of those who live, by way of spare.
type seat struct {
	number uint32
	path   string   // of the directory; "" where nothing is pinned
	lock   *os.File // on it
}

// maxOwners is how many processes can have seats of one kind at a time; net.bpf.c has the same.
const maxOwners = 1 << 13

// maxSpare is how many seats are kept for the next: each has a ring of 256 KiB.
const maxSpare = 16

// takeSeat takes a spare one of a version and moves it to its directory live. open opens what is pinned
// there; one that it refuses is passed over. Without any takeSeat returns nil. The caller holds the lock that keeps the version.
func takeSeat(dir, live string, open func(*seat) error) (*seat, error) {
	spare, err := os.ReadDir(filepath.Join(dir, spareName))
	if err != nil {
		return nil, fmt.Errorf("looking for spare maps: %w", err)
	}
	for _, e := range spare {
		s, err := lockSeat(filepath.Join(dir, spareName, e.Name()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // somebody else takes it, or it is nothing of ours
		}
		if err = s.move(filepath.Join(dir, live)); err == nil {
			err = open(s)
		}
		if err == nil {
			return s, nil
		}
		_ = s.close() // what is not whole is swept one day
	}
	return nil, nil
}

// lockSeat takes the lock of a seat's directory. With LOCK_NB the error
// wraps EWOULDBLOCK when its process lives.
func lockSeat(path string, how int) (*seat, error) {
	number, err := strconv.ParseUint(filepath.Base(path), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("looking at pinned maps: %w", err)
	}
	lock, err := lockDir(path, how)
	if err != nil {
		return nil, err
	}
	return &seat{number: uint32(number), path: path, lock: lock}, nil
}

// newSeat takes a number that nobody has. Nobody else makes one meanwhile: the caller's lock sees to it.
func newSeat(dir, live string) (*seat, error) {
	taken := make(map[string]bool)
	for _, name := range []string{live, spareName} {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("making maps: %w", err)
		}
		for _, e := range entries {
			taken[e.Name()] = true
		}
	}
	for n := range maxOwners {
		if taken[strconv.Itoa(n)] {
			continue
		}
		path := filepath.Join(dir, live, strconv.Itoa(n))
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, fmt.Errorf("making maps: %w", err)
		}
		return lockSeat(path, unix.LOCK_EX)
	}
	return nil, fmt.Errorf("%d processes hold guests, the most that can at a time: end some", maxOwners)
}

// move moves the directory into another one.
func (s *seat) move(dir string) error {
	to := filepath.Join(dir, filepath.Base(s.path))
	if err := os.Rename(s.path, to); err != nil {
		return fmt.Errorf("handing on pinned maps: %w", err)
	}
	s.path = to
	return nil
}

// version is the directory of the version that the seat belongs to; "" where nothing is pinned.
func (s *seat) version() string {
	if s.path == "" {
		return ""
	}
	return filepath.Dir(filepath.Dir(s.path))
}

// there reports whether the seat is what has its name: the pins can have been removed, and made again.
func (s *seat) there() bool {
	held, err := s.lock.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(s.path)
	return err == nil && os.SameFile(held, now)
}

// leave makes the seat a spare one, or has remove take it away if there are enough. Nobody uses it.
func (s *seat) leave(remove func() error) error {
	if s.path == "" || !s.there() {
		return nil
	}
	spares := filepath.Join(s.version(), spareName)
	spare, err := os.ReadDir(spares)
	if err == nil && len(spare) < maxSpare {
		err = s.move(spares)
	} else if err == nil {
		err = remove()
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // somebody has removed the pins
	}
	return err
}

// close gives up the seat. Closing again does nothing.
func (s *seat) close() (err error) {
	if s.lock != nil {
		err = s.lock.Close()
	}
	s.path, s.lock = "", nil
	return err
}
