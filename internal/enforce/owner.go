package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// owner is a process as the network programs know it: a number, by which they find the maps in
// which its guests' policies are, and its ring of denials. Only one process at a time has the number:
// it holds the lock on the directory in which the maps are pinned, and loses it however it ends.
//
//	spare/<n> ──takeSpare──► owners/<n>, locked ──release, without guests──► spare/<n>
//	                              └── its process is killed: once its guests are gone, sweepOwners removes it
//
// The programs find a map through another one, and to write that the kernel waits until
// no program runs that could have read what was there before: 8 ms. So maps are handed on.
type owner struct {
	seat
	maps ownerMaps
}

// ownerMaps are maps of one owner.
type ownerMaps struct{ ports, endpoints, events *ebpf.Map }

// byName are the maps, by the names of those in which the programs look for them.
func (m *ownerMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{"ports": &m.ports, "endpoints": &m.endpoints, "events": &m.events}
}

// takeSpare takes maps that are there; without any it returns nil. The caller holds the directory's lock.
func takeSpare(dir string) (*owner, error) {
	o := &owner{}
	s, err := takeSeat(dir, ownersName, func(s *seat) error {
		o.seat = *s
		return errors.Join(o.maps.close(), o.open())
	})
	if s == nil {
		return nil, errors.Join(err, o.maps.close())
	}
	return o, err
}

// open opens the maps that are pinned.
func (o *owner) open() (err error) {
	for name, m := range o.maps.byName() {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(o.path, name), nil); err != nil {
			return fmt.Errorf("opening pinned map %s: %w", name, err)
		}
	}
	return nil
}

// newOwner takes a number that nobody has. The caller holds the directory's lock exclusively.
func newOwner(dir string) (*owner, error) {
	s, err := newSeat(dir, ownersName)
	if err != nil {
		return nil, err
	}
	return &owner{seat: *s}, nil
}

// create makes the maps, empty.
func (m *ownerMaps) create() error {
	for _, outer := range bpf.NetImage().Maps {
		if outer.Inner == nil {
			continue
		}
		var err error
		if *m.byName()[outer.Name], err = createMap(*outer.Inner, nil); err != nil {
			return err
		}
	}
	return nil
}

// make makes the maps of a new owner and pins them. It takes its time; nobody else has to wait.
func (o *owner) make(objects *bpf.NetObjects) error {
	if err := o.maps.create(); err != nil {
		return err
	}
	for name, m := range o.maps.byName() {
		if err := (*m).Pin(filepath.Join(o.path, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	return o.give(objects)
}

// give puts the maps where the programs find them.
func (o *owner) give(objects *bpf.NetObjects) error {
	return eachOuter(objects, func(name string, outer *ebpf.Map) error {
		if err := outer.Put(o.number, *o.maps.byName()[name]); err != nil {
			return fmt.Errorf("giving map %s to the programs: %w", name, err)
		}
		return nil
	})
}

// eachOuter does something to each map of maps, at the same time: it waits most of it.
func eachOuter(objects *bpf.NetObjects, do func(name string, outer *ebpf.Map) error) error {
	outers := map[string]*ebpf.Map{"ports": objects.Ports, "endpoints": objects.Endpoints, "events": objects.Events}
	errs := make(chan error, len(outers))
	for name, outer := range outers {
		go func() { errs <- do(name, outer) }()
	}
	var all []error
	for range outers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// release leaves the maps to the next process, or removes them if there are enough. No
// guest uses them.
func (o *owner) release(objects *bpf.NetObjects) error {
	return o.leave(func() error { return o.remove(objects) })
}

// remove takes the maps from the programs, and unpins them.
func (o *owner) remove(objects *bpf.NetObjects) error {
	err := eachOuter(objects, func(_ string, outer *ebpf.Map) error { return ignoreMissing(outer.Delete(o.number)) })
	if err = errors.Join(err, unpin(o.path)); err != nil {
		return fmt.Errorf("removing the maps in %s: %w", o.path, err)
	}
	return nil
}

// close gives up this process's hold on the maps. Closing again does nothing.
func (o *owner) close() error {
	return errors.Join(o.maps.close(), o.seat.close())
}

func (m *ownerMaps) close() error {
	return errors.Join(m.ports.Close(), m.endpoints.Close(), m.events.Close())
}

// sweepOwners removes what processes left that were killed, and have no guests any more: their
// maps, and the accounts of their guests. It returns the directories that it has removed. The caller
// holds the directory's lock exclusively.
func sweepOwners(dir string, objects *bpf.NetObjects) (removed []string, err error) {
	dead, err := deadOwners(dir)
	if err != nil || len(dead) == 0 {
		return nil, err
	}
	defer func() {
		for _, o := range dead {
			err = errors.Join(err, o.close())
		}
	}()
	hierarchy, _, err := openCgroup2(cgroup2Root())
	if err != nil {
		return nil, nil //nolint:nilerr // from here nobody can say which guests are gone
	}
	defer hierarchy.Close()
	used := make(map[uint32]bool)
	for _, cgroup := range keys[uint64](objects.Accounts) {
		var account bpf.NetAccount
		if objects.Accounts.Lookup(cgroup, &account) != nil || dead[uint32(account.Owner)] == nil {
			continue // it has just ended, or its process lives
		}
		there, err := cgroupExists(hierarchy, cgroup)
		switch {
		case err != nil:
			return nil, err
		case there:
			used[uint32(account.Owner)] = true
		default: // what is left of it, a socket somewhere, reaches nobody without the maps
			if err := ignoreMissing(objects.Accounts.Delete(cgroup)); err != nil {
				return nil, fmt.Errorf("removing the account of cgroup %d: %w", cgroup, err)
			}
		}
	}
	return removeOwners(dead, used, objects)
}

// deadOwners are those whose process has ended; they are locked now.
func deadOwners(dir string) (map[uint32]*owner, error) {
	entries, err := os.ReadDir(filepath.Join(dir, ownersName))
	if err != nil {
		return nil, fmt.Errorf("looking for maps of processes that were killed: %w", err)
	}
	dead := make(map[uint32]*owner)
	for _, e := range entries {
		// Whoever lives has the lock, or has just become spare.
		if s, err := lockSeat(filepath.Join(dir, ownersName, e.Name()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			dead[s.number] = &owner{seat: *s}
		}
	}
	return dead, nil
}

// removeOwners removes those that are not used, many at a time.
func removeOwners(dead map[uint32]*owner, used map[uint32]bool, objects *bpf.NetObjects) (removed []string, err error) {
	const atOnce = 32
	var mu sync.Mutex
	var wait sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for _, o := range dead {
		if used[o.number] {
			continue
		}
		removed = append(removed, o.path)
		wait.Go(func() {
			turns <- struct{}{}
			failed := o.remove(objects)
			<-turns
			mu.Lock()
			err = errors.Join(err, failed)
			mu.Unlock()
		})
	}
	wait.Wait()
	return removed, err
}
