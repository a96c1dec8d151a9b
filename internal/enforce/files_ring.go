package enforce

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"github.com/psi-runtime/psi/bpf"
)

// readersName is where the rings are of the processes that hear of denials of files.
const readersName = "readers"

// needRing gives this process a ring that the programs know. The caller holds the lock.
func (p *FilePrograms) needRing() (err error) {
	if p.ring == nil {
		used := func() (map[uint64]bool, error) { return p.usedRings(), nil }
		if p.ring, err = takeRing(p.dir, readersName, 1<<18, used); err != nil {
			return explainLSM(err)
		}
	}
	return p.ring.give(p.maps.Rings) // an older version sweeps those that no guest has
}

// leaveRing hands the ring of this process on.
func (p *FilePrograms) leaveRing() error {
	r := p.ring
	if r == nil {
		return nil
	}
	p.ring = nil
	return r.handOn(p.maps.Rings)
}

// usedRings are those that guests have.
func (p *FilePrograms) usedRings() map[uint64]bool {
	used := make(map[uint64]bool)
	var id uint64
	var guest bpf.LSMGuest
	for guests := p.maps.Guests.Iterate(); guests.Next(&id, &guest); {
		used[guest.Owner] = true
	}
	return used
}

// sweepRings removes the rings that belong to no guest and are no seat. The caller holds the lock.
func (p *FilePrograms) sweepRings() error {
	rings := keys[uint64](p.maps.Rings)
	if len(rings) == 0 {
		return nil
	}
	used := p.usedRings()
	var errs []error
	for _, key := range rings {
		if !used[key] && !p.isSeat(key) {
			errs = append(errs, ignoreMissing(p.maps.Rings.Delete(key)))
		}
	}
	return errors.Join(errs...)
}

func (p *FilePrograms) isSeat(key uint64) bool {
	for _, name := range []string{spareName, readersName} {
		if _, err := os.Stat(filepath.Join(p.dir, name, strconv.FormatUint(key-1, 10))); err == nil {
			return true
		}
	}
	return false
}
