package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ring is a ring buffer in which one process hears of its guests. The programs find it by its key, which each
// of the guests has in its entry. It is a seat of a version of the programs:
//
//	<version>/<live>/<n>/ring   of a process that lives
//	         /spare/<n>/ring    for the next
type ring struct {
	seat
	buffer *ebpf.Map
}

const ringName = "ring"

// key is how a guest's entry names the ring; 0 is none.
func (r *ring) key() uint64 { return uint64(r.number) + 1 }

// takeRing takes a spare ring, or one of a process that was killed, or makes one of so many bytes. used gives the keys of those that
// guests have: what these are refused would hide what ours are. The caller holds a lock on the version.
func takeRing(dir, live string, bytes uint32, used func() (map[uint64]bool, error)) (*ring, error) {
	for _, name := range []string{live, spareName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("taking a ring: %w", err)
		}
	}
	taken, err := used()
	if err != nil {
		return nil, err
	}
	r := &ring{}
	open := func(s *seat) (err error) {
		r.seat = *s
		if taken[r.key()] {
			return fmt.Errorf("ring %d is a guest's", s.number)
		}
		r.buffer, err = ebpf.LoadPinnedMap(filepath.Join(s.path, ringName), nil)
		return err
	}
	s, err := takeSeat(dir, live, open)
	if s == nil && err == nil {
		s, err = inheritSeat(filepath.Join(dir, live), open)
	}
	if s == nil && err == nil {
		err = r.make(dir, live, bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("taking a ring: %w", err)
	}
	return r, nil
}

// inheritSeat takes one of a process that was killed; without one that open takes it returns nil.
func inheritSeat(dir string, open func(*seat) error) (*seat, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		s, err := lockSeat(filepath.Join(dir, e.Name()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // its process lives
		}
		if err := open(s); err == nil {
			return s, nil
		}
		_ = s.close()
	}
	return nil, nil
}

// make makes a new ring and pins it.
func (r *ring) make(dir, live string, bytes uint32) error {
	s, err := newSeat(dir, live)
	if err != nil {
		return err
	}
	r.seat = *s
	r.buffer, err = ebpf.NewMap(&ebpf.MapSpec{Name: "ring", Type: ebpf.RingBuf, MaxEntries: bytes})
	if err == nil {
		err = r.buffer.Pin(filepath.Join(r.path, ringName))
	}
	if err != nil {
		return errors.Join(err, unpin(r.path), r.close())
	}
	return nil
}

// give puts the ring where the programs look for it, if it is not there.
func (r *ring) give(rings *ebpf.Map) error {
	if hasKey(rings, r.key()) {
		return nil
	}
	if err := rings.Put(r.key(), r.buffer); err != nil {
		return fmt.Errorf("adding a ring: %w", full(err, rings, "processes that watch guests"))
	}
	return nil
}

// handOn leaves the ring to the next process.
func (r *ring) handOn(rings *ebpf.Map) error {
	err := r.leave(func() error { return errors.Join(ignoreMissing(rings.Delete(r.key())), unpin(r.path)) })
	return errors.Join(err, r.close())
}

// close gives up this process's hold on the ring.
func (r *ring) close() error { return errors.Join(r.buffer.Close(), r.seat.close()) }
