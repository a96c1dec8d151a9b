package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	number uint32
	maps   ownerMaps
	path   string   // of the directory; "" where nothing is pinned
	lock   *os.File // on it
}

// ownerMaps are maps of one owner.
type ownerMaps struct{ ports, endpoints, events *ebpf.Map }

// byName are the maps, by the names of those in which the programs look for them.
func (m *ownerMaps) byName() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{"ports": &m.ports, "endpoints": &m.endpoints, "events": &m.events}
}

// maxOwners is how many processes can hold guests at a time; net.bpf.c has the same.
const maxOwners = 1 << 13

// maxSpare is how many maps are kept for the next: each has a ring of 256 KiB.
const maxSpare = 16

// takeSpare takes maps that are there; without any it returns nil. The caller holds the directory's lock.
func takeSpare(dir string) (*owner, error) {
	spare, err := os.ReadDir(filepath.Join(dir, spareName))
	if err != nil {
		return nil, fmt.Errorf("looking for spare maps: %w", err)
	}
	for _, e := range spare {
		o, err := lockOwner(filepath.Join(dir, spareName, e.Name()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // somebody else takes it, or it is nothing of ours
		}
		if err = o.move(filepath.Join(dir, ownersName)); err == nil {
			err = o.open()
		}
		if err == nil {
			return o, nil
		}
		_ = o.close() // what is not whole is swept one day
	}
	return nil, nil
}

// pins is the directory in which the programs of this version are pinned; "" where nothing is.
func (o *owner) pins() string {
	if o.path == "" {
		return ""
	}
	return filepath.Dir(filepath.Dir(o.path))
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

// lockOwner takes the lock of an owner's directory, without its maps. With LOCK_NB the error
// wraps EWOULDBLOCK when its process lives.
func lockOwner(path string, how int) (*owner, error) {
	number, err := strconv.ParseUint(filepath.Base(path), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("looking at pinned maps: %w", err)
	}
	lock, err := lockDir(path, how)
	if err != nil {
		return nil, err
	}
	return &owner{number: uint32(number), path: path, lock: lock}, nil
}

// move moves the directory into another one.
func (o *owner) move(dir string) error {
	to := filepath.Join(dir, filepath.Base(o.path))
	if err := os.Rename(o.path, to); err != nil {
		return fmt.Errorf("handing on pinned maps: %w", err)
	}
	o.path = to
	return nil
}

// newOwner takes a number that nobody has. The caller holds the directory's lock exclusively.
func newOwner(dir string) (*owner, error) {
	taken := make(map[string]bool)
	for _, name := range []string{ownersName, spareName} {
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
		path := filepath.Join(dir, ownersName, strconv.Itoa(n))
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, fmt.Errorf("making maps: %w", err)
		}
		return lockOwner(path, unix.LOCK_EX)
	}
	return nil, fmt.Errorf("%d processes hold guests, the most that can at a time: end some", maxOwners)
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
	if o.path == "" {
		return nil
	}
	dir := o.pins()
	spare, err := os.ReadDir(filepath.Join(dir, spareName))
	if err == nil && len(spare) < maxSpare {
		err = o.move(filepath.Join(dir, spareName))
	} else if err == nil {
		err = o.remove(objects)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // somebody has removed the pins
	}
	return err
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
	err := o.maps.close()
	if o.lock != nil {
		err = errors.Join(err, o.lock.Close())
	}
	o.path, o.lock = "", nil
	return err
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
		if o, err := lockOwner(filepath.Join(dir, ownersName, e.Name()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			dead[o.number] = o
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
