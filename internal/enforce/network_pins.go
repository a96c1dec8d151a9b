package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// The network programs are pinned, so that a process that starts a guest finds them:
//
//	network1-<digest of the objects>/connect4, …  programs, attached to the cgroups of guests
//	                               /connect_unix  and those for pairs, when they were first needed
//	                               /guests        the accounts of all guests, by cgroup
//	                               /storage       of each cgroup; goes with it
//	                               /ports, endpoints, events   each owner's map, by its number
//	                               /owners/<n>    the maps of a process: see owner.go
//	                               /spare/<n>     those of one that has ended, for the next
//
// The programs of a guest live with its cgroup: without their pins guests stay held, and the next
// process loads the programs again. The lock on the directory is held by whoever takes maps,
// exclusively when some are made or removed.

// netLayout is the version of what this package makes of the directory.
const netLayout = 1

// netDir is the directory of this version of the programs.
func netDir() string {
	return filepath.Join(pinRoot, fmt.Sprintf("network%d-%s%s", netLayout, bpf.NetImage().Digest[:8], bpf.PairsImage().Digest[:8]))
}

const (
	ownersName = "owners"
	spareName  = "spare"
)

// cannotPin reports whether the host has no place for pins, or none for this process.
func cannotPin(err error) bool {
	return errors.Is(err, ErrNotSupported) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS)
}

// loadShared opens the pinned programs, after pinning them if they are not there, and takes
// maps for this process.
func (p *Programs) loadShared(dir string) error {
	err := p.enter(dir)
	for range 3 { // a collection may come between
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err = pinNet(dir); err == nil {
			err = p.enter(dir)
		}
	}
	return err
}

// enter is loadShared for programs that are pinned. If they are not, the error is an [os.ErrNotExist].
func (p *Programs) enter(dir string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, p.objects.Close())
			p.objects = bpf.NetObjects{}
		}
	}()
	lock, err := lockDir(dir, unix.LOCK_SH)
	if err != nil {
		return err
	}
	err = openNet(dir, &p.objects)
	if err == nil {
		p.owner, err = takeSpare(dir)
	}
	lock.Close()
	if err != nil || p.owner != nil {
		return err
	}
	if lock, err = lockDir(dir, unix.LOCK_EX); err != nil {
		return err
	}
	_, err = sweepOwners(dir, &p.objects)
	if err == nil {
		p.owner, err = newOwner(dir)
	}
	lock.Close()
	if err != nil {
		return err
	}
	if err := p.owner.make(&p.objects); err != nil {
		return errors.Join(err, p.owner.close())
	}
	return nil
}

// netPins are what is pinned, by name.
func netPins(o *bpf.NetObjects) (map[string]**ebpf.Map, map[string]**ebpf.Program) {
	return map[string]**ebpf.Map{
			"guests": &o.Accounts, "storage": &o.Guests, "ports": &o.Ports, "endpoints": &o.Endpoints, "events": &o.Events,
		}, map[string]**ebpf.Program{
			"connect4": &o.Connect4, "connect6": &o.Connect6, "sendmsg4": &o.Sendmsg4, "sendmsg6": &o.Sendmsg6,
			"bind4": &o.Bind4, "bind6": &o.Bind6, "sock_create": &o.SockCreate,
		}
}

// openNet opens what is pinned in a directory.
func openNet(dir string, to *bpf.NetObjects) (err error) {
	maps, programs := netPins(to)
	for name, m := range maps {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return fmt.Errorf("opening pinned map %s: %w", name, err)
		}
	}
	for name, program := range programs {
		if *program, err = ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil); err != nil {
			return fmt.Errorf("opening pinned program %s: %w", name, err)
		}
	}
	return nil
}

// complete looks for everything that is pinned; without something the error is an [os.ErrNotExist].
func complete(dir string) error {
	var objects bpf.NetObjects
	errs := []error{openNet(dir, &objects), objects.Close()}
	for _, name := range []string{ownersName, spareName} {
		_, err := os.Stat(filepath.Join(dir, name))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pinNet loads the programs and pins them, in a directory that gets its name only when it is
// complete. One that is there and is not complete is replaced: nothing that runs needs it.
func pinNet(dir string) (err error) {
	lock, err := lockPins()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := complete(dir); !errors.Is(err, os.ErrNotExist) {
		return err // somebody was quicker
	}
	incomplete := filepath.Join(pinRoot, "loading-"+filepath.Base(dir))
	if err := errors.Join(unpin(dir), unpin(incomplete)); err != nil {
		return err
	}
	var fresh bpf.NetObjects
	var like ownerMaps
	err = like.create()
	if err == nil {
		err = loadNet(&fresh, &like)
	}
	if err = errors.Join(err, like.close()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, fresh.Close())
		if err != nil {
			err = errors.Join(err, unpin(incomplete))
		}
	}()
	for _, path := range []string{incomplete, filepath.Join(incomplete, ownersName), filepath.Join(incomplete, spareName)} {
		if err := os.Mkdir(path, 0o700); err != nil {
			return fmt.Errorf("pinning the network programs: %w", err)
		}
	}
	maps, programs := netPins(&fresh)
	for name, m := range maps {
		if err := (*m).Pin(filepath.Join(incomplete, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, program := range programs {
		if err := (*program).Pin(filepath.Join(incomplete, name)); err != nil {
			return fmt.Errorf("pinning program %s: %w", name, err)
		}
	}
	if err := os.Rename(incomplete, dir); err != nil {
		return fmt.Errorf("pinning the network programs: %w", err)
	}
	return nil
}
