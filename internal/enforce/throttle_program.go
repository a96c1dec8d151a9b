package enforce

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// The scheduler's program costs something at each switch of the host, so it is attached only while a
// process listens. To load it takes 40 ms of a processor, most of it to read the kernel's types: so it is
// pinned where the next process finds it, with the rings of processes (see ring.go):
//
//	sched1-<digest of the object>/program
//	                             /owners/<n>, spare/<n>
//
// The lock on the directory is held by whoever opens it. Where nothing can be pinned each process
// finds the program among what runs, or loads it.

// throttleProgram is what a process holds of the program.
type throttleProgram struct {
	maps   bpf.SchedMaps
	link   link.Link
	owner  uint64 // key of the ring
	ring   *ring
	reader *ringbuf.Reader
}

const (
	throttleName  = "program"
	throttleRing  = 1 << 14 // bytes
	throttleTries = 10
)

// throttleVersion tells versions of the program apart, which can live beside each other.
func throttleVersion() string {
	digest := sha256.Sum256(bpf.SchedObject())
	return hex.EncodeToString(digest[:8])
}

// throttleDir is the directory of a version.
func throttleDir(version string) string { return filepath.Join(pinRoot, "sched1-"+version) }

// openThrottleProgram has the program run, or finds that it does.
func openThrottleProgram(version string) (_ *throttleProgram, err error) {
	p, dir := &throttleProgram{}, throttleDir(version)
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	lock, err := lockVersion(dir)
	if cannotPin(err) {
		dir, err = "", nil
	}
	if err != nil {
		return p, err
	}
	if lock != nil {
		defer lock.Close()
	}
	if err := p.run("psi_"+version[:10], dir); err != nil { // the kernel has 15 bytes for a name
		return p, err
	}
	if err := p.open(dir); err != nil {
		return p, err
	}
	p.reader, err = ringbuf.NewReader(p.ring.buffer)
	return p, err
}

// lockVersion locks a directory of pins, which it makes.
func lockVersion(dir string) (*os.File, error) {
	for {
		pins, err := lockPins()
		if err != nil {
			return nil, err
		}
		if err = os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
			err = nil
		}
		pins.Close() // whoever has the version's lock may want this one
		if err != nil {
			return nil, fmt.Errorf("making the directory of a pinned program: %w", err)
		}
		lock, err := lockDir(dir, unix.LOCK_EX)
		if !errors.Is(err, os.ErrNotExist) { // a collection may come between
			return lock, err
		}
	}
}

// run attaches the program, which is pinned, running or loaded now.
func (p *throttleProgram) run(name, dir string) error {
	program, err := p.pinned(dir)
	if errors.Is(err, os.ErrNotExist) {
		// Without a pin it may run nevertheless: pins can be removed.
		if err := p.find(func(_ ebpf.ProgramID, is string) bool { return is == name }); err != nil || p.link != nil {
			return err
		}
		program, err = p.load(name, dir)
	}
	if err != nil {
		return err
	}
	defer program.Close()
	id, err := programID(program)
	if err != nil {
		return err
	}
	for range throttleTries {
		p.link, err = link.AttachTracing(link.TracingOptions{Program: program})
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		// It is attached already, for all; or was, if whoever had it has just ended.
		if err := p.find(func(is ebpf.ProgramID, _ string) bool { return is == id }); err != nil || p.link != nil {
			return err
		}
	}
	return err
}

// pinned opens the program that is pinned, with its maps.
func (p *throttleProgram) pinned(dir string) (*ebpf.Program, error) {
	if dir == "" {
		return nil, os.ErrNotExist
	}
	program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, throttleName), nil)
	if err != nil {
		return nil, err
	}
	about, err := program.Info()
	if err == nil {
		err = p.takeMaps(about)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the pinned scheduler program: %w", err), program.Close())
	}
	return program, nil
}

// open gives this process a ring.
func (p *throttleProgram) open(dir string) (err error) {
	if dir != "" {
		if p.ring, err = takeRing(dir, ownersName, throttleRing, p.usedRings); err != nil {
			return err
		}
		p.owner = p.ring.key()
		return p.ring.give(p.maps.Rings)
	}
	p.ring, p.owner = &ring{}, rand.Uint64()|1<<63 // beyond those of seats
	if p.ring.buffer, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: throttleRing}); err != nil {
		return err
	}
	return p.maps.Rings.Put(p.owner, p.ring.buffer)
}

// find looks for the program among those that are attached.
func (p *throttleProgram) find(is func(ebpf.ProgramID, string) bool) error {
	all := link.Iterator{}
	defer all.Close()
	for all.Next() {
		info, err := all.Link.Info()
		if err != nil {
			continue
		}
		program, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			continue // it has gone since
		}
		about, err := program.Info()
		if err = errors.Join(err, program.Close()); err != nil || !is(info.Program, about.Name) {
			continue
		}
		if err := p.takeMaps(about); err != nil {
			return err
		}
		p.link = all.Take()
		return nil
	}
	return all.Err()
}

// takeMaps opens the maps of the program, unless they are.
func (p *throttleProgram) takeMaps(program *ebpf.ProgramInfo) error {
	if p.maps.Guests != nil {
		return nil
	}
	ids, _ := program.MapIDs()
	for _, id := range ids {
		if err := p.take(id); err != nil {
			return err
		}
	}
	if p.maps.Guests == nil || p.maps.Rings == nil {
		return fmt.Errorf("program %s lacks its maps", program.Name)
	}
	return nil
}

// take opens a map of the program.
func (p *throttleProgram) take(id ebpf.MapID) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return err
	}
	info, err := m.Info()
	switch {
	case err == nil && info.Name == "guests":
		p.maps.Guests = m
	case err == nil && info.Name == "rings":
		p.maps.Rings = m
	default:
		return errors.Join(err, m.Close())
	}
	return nil
}

// load loads the program, which runs nowhere yet, and pins it; without a directory it is this process's.
func (p *throttleProgram) load(name, dir string) (*ebpf.Program, error) {
	spec, err := bpf.LoadSched()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded scheduler program: %w", err)
	}
	spec.Programs["psi_sched_switch"].Name = name
	var objects bpf.SchedObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, err
	}
	p.maps = objects.SchedMaps
	program := objects.PsiSchedSwitch
	if dir != "" {
		err = program.Pin(filepath.Join(dir, throttleName))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pinning the scheduler program: %w", err), program.Close())
	}
	return program, nil
}

// forgetGone removes the guests of killed processes, whose cgroups are gone. dir is any directory of the
// guests' hierarchy.
func (p *throttleProgram) forgetGone(dir string) error {
	gone, _, err := goneGuests(p.maps.Guests, dir)
	for _, id := range gone {
		err = errors.Join(err, ignoreMissing(p.maps.Guests.Delete(id)))
	}
	return err
}

// usedRings are those that guests have.
func (p *throttleProgram) usedRings() (map[uint64]bool, error) {
	used := make(map[uint64]bool)
	var id uint64
	var guest bpf.SchedGuest
	for guests := p.maps.Guests.Iterate(); guests.Next(&id, &guest); {
		used[guest.Owner] = true
	}
	return used, nil
}

// close may be called on one that is incomplete.
func (p *throttleProgram) close() {
	if p.reader != nil {
		_ = p.reader.Close()
	}
	if p.link != nil {
		_ = p.link.Close()
	}
	switch {
	case p.ring == nil:
	case p.ring.path != "":
		_ = p.ring.handOn(p.maps.Rings)
	default:
		_ = p.maps.Rings.Delete(p.owner)
		_ = p.ring.close()
	}
	for _, m := range []*ebpf.Map{p.maps.Guests, p.maps.Rings} {
		_ = m.Close() // nil too
	}
}
