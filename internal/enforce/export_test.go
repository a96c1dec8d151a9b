package enforce

import (
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/bpf"
)

// LoadFilesOf is LoadFiles of a psi whose programs have another digest.
func LoadFilesOf(version string) (*FilePrograms, error) {
	return loadFiles(filepath.Join(pinRoot, version))
}

// LoadOf is Load of a psi whose programs have another digest.
func LoadOf(version string) (*Programs, error) { return load(filepath.Join(pinRoot, version)) }

// ThrottleDir is where the scheduler's program of this psi is pinned.
func ThrottleDir() string { return throttleDir(throttleVersion()) }

// NewThrottlesOf is NewThrottles of a psi whose program has another digest. With nobody who listens
// [RemoveThrottlesOf] removes what is pinned.
func NewThrottlesOf(version string) *Throttles {
	t := NewThrottles()
	t.version = version
	return t
}

// RemoveThrottlesOf removes the pinned program of a version.
func RemoveThrottlesOf(version string) error { return unpin(throttleDir(version)) }

// HasKey reports whether a map has a key.
func HasKey(m *ebpf.Map, key uint64) bool { return hasKey(m, key) }

// Ring is the key of the ring in which the guest's denials are told.
func (g *FileGuest) Ring() (uint64, error) {
	var guest bpf.LSMGuest
	err := g.programs.maps.Guests.Lookup(g.id, &guest)
	return guest.Owner, err
}

// NetDir is where the programs of this psi are pinned.
func NetDir() string { return netDir() }

// OwnerDir is where the maps of this process are pinned; "" where they are not.
func (p *Programs) OwnerDir() string { return p.owner.path }

// PairIDs are the numbers of the programs for pairs.
func (p *Programs) PairIDs() (ids []ebpf.ProgramID) {
	for _, h := range p.pairs {
		ids = append(ids, h.id)
	}
	return ids
}

// ProgramID is the number of the program that t listens to; 0 before there is one.
func (t *Throttles) ProgramID() ebpf.ProgramID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.program == nil {
		return 0
	}
	info, err := t.program.link.Info()
	if err != nil {
		return 0
	}
	return info.Program
}

// LoseRecords takes away what the program writes its records to.
func (t *Throttles) LoseRecords() error { return t.program.maps.Rings.Delete(t.program.owner) }

// Abandon is what is left of a process that was killed: its guests are still in the maps.
func (t *Throttles) Abandon() {
	t.mu.Lock()
	t.guests = nil
	t.mu.Unlock()
	_ = t.program.reader.Close()
	t.running.Wait()
}

// ForgetGone is the search for what killed processes left. It returns how many guests and
// rings there are.
func (t *Throttles) ForgetGone(dir string) (guests, rings int, err error) {
	err = t.program.forgetGone(dir)
	return countKeys[uint64](t.program.maps.Guests), countKeys[uint64](t.program.maps.Rings), err
}

// Tables counts the tables in the kernel.
func (p *FilePrograms) Tables() (n int) {
	for _, outer := range p.outerMaps() {
		n += countKeys[[16]byte](outer)
	}
	return n
}

// SweepTables removes those that no guest uses, and counts the others.
func (p *FilePrograms) SweepTables() (int, error) {
	err := p.change(p.sweepTables)
	return p.Tables(), err
}
