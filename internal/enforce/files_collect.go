package enforce

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/pkg/policy"
)

// manyTables is how many tables there may be before those that no guest uses are
// removed: each removal waits for the programs that run now.
const manyTables = 64

// maxKnown bounds how many compiled lists of rules are remembered.
const maxKnown = 1024

// tableOf returns the table of the rules, which is then in the kernel. Rules are
// compiled once; guests of one policy cost a look. The caller holds the lock.
func (p *FilePrograms) tableOf(files Files) (tableName, error) {
	digest := files.digest()
	if name, ok := p.known[digest]; ok && hasKey(p.outerMaps()[name.size], name.id) {
		return name, nil
	}
	a, err := policy.CompileGuest(files.Own, files.Rules, files.Places)
	if err != nil {
		return tableName{}, err
	}
	table, err := newPathTable(a)
	if err != nil {
		return tableName{}, err
	}
	if len(p.known) >= maxKnown || p.known == nil {
		p.known = make(map[[32]byte]tableName)
	}
	p.known[digest] = table.tableName
	return table.tableName, p.addTable(table)
}

// digest names the rules; the namespace is not one of them.
func (f Files) digest() [32]byte {
	h := sha256.New()
	for _, rules := range [][]policy.FSRule{f.Own, f.Rules} {
		for _, r := range rules {
			fmt.Fprintf(h, "%s %q\n", r.Mode, r.Pattern)
		}
		h.Write([]byte{0})
	}
	fmt.Fprintf(h, "%q", f.Places)
	return [32]byte(h.Sum(nil))
}

// addTable puts a table into the kernel unless it is there. The caller holds the lock.
func (p *FilePrograms) addTable(t pathTable) error {
	outer := p.outerMaps()[t.size]
	if hasKey(outer, t.id) {
		return nil
	}
	if n := countKeys[[16]byte](outer); n >= manyTables {
		if err := p.sweepTables(); err != nil {
			return err
		}
	}
	return putTable(outer, t)
}

func (p *FilePrograms) outerMaps() []*ebpf.Map {
	m := &p.maps
	return []*ebpf.Map{m.TablesSmall, m.TablesMedium, m.TablesLarge, m.TablesHuge}
}

// sweepTables removes the tables that no guest uses. The caller holds the lock.
func (p *FilePrograms) sweepTables() error {
	used := make(map[[16]byte]bool)
	var id uint64
	var guest bpf.LSMGuest
	for guests := p.maps.Guests.Iterate(); guests.Next(&id, &guest); {
		used[guest.Table.Digest] = true
	}
	var errs []error
	for _, outer := range p.outerMaps() {
		for _, key := range keys[[16]byte](outer) {
			if !used[key] {
				errs = append(errs, ignoreMissing(outer.Delete(key)))
			}
		}
	}
	return errors.Join(errs...)
}

// keys lists the keys of a map.
func keys[K any](m *ebpf.Map) []K {
	var out []K
	var key K
	err := m.NextKey(nil, &key)
	for n := uint32(0); err == nil && n <= m.MaxEntries(); n++ {
		out = append(out, key)
		err = m.NextKey(key, &key)
	}
	return out
}

// hasKey reports whether a hash of maps has a key. To look one up there waits, before Linux 6.8, until
// no program runs that could see what was there before: 8 ms. To ask for the next key does not: that of one
// that is not there is the first, which follows none.
func hasKey[K comparable](m *ebpf.Map, key K) bool {
	for {
		var first, next, again K
		if m.NextKey(nil, &first) != nil {
			return false
		}
		if err := m.NextKey(key, &next); err != nil {
			return errors.Is(err, ebpf.ErrKeyNotExist) // it is the last
		}
		if next == first {
			return false
		}
		if m.NextKey(nil, &again) == nil && again == first {
			return true // and nobody has changed which is the first
		}
	}
}

func countKeys[K any](m *ebpf.Map) int { return len(keys[K](m)) }

// forgetGone removes the guests whose cgroup is gone. The caller holds the lock.
func (p *FilePrograms) forgetGone() error {
	gone, _, err := goneGuests(p.maps.Guests, cgroup2Root())
	for _, id := range gone {
		err = errors.Join(err, p.forget(id))
	}
	if err = errors.Join(err, p.sweepRings()); err != nil {
		return fmt.Errorf("removing guests that are gone: %w", err)
	}
	return nil
}

// goneGuests lists the guests whose cgroup is gone, and counts the others. dir is any
// directory of the hierarchy that they are in.
func goneGuests(guests *ebpf.Map, dir string) (gone []uint64, live int, err error) {
	ids := keys[uint64](guests)
	if len(ids) == 0 {
		return nil, 0, nil
	}
	hierarchy, err := os.Open(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the hierarchy of cgroups: %w", err)
	}
	defer hierarchy.Close()
	for _, id := range ids {
		there, err := cgroupExists(hierarchy, id)
		if err != nil {
			return nil, 0, err
		}
		if there {
			live++
		} else {
			gone = append(gone, id)
		}
	}
	return gone, live, nil
}

// cgroup2Root is where the hierarchy is mounted.
func cgroup2Root() string {
	const hybrid = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(hybrid + "/cgroup.procs"); err == nil {
		return hybrid
	}
	return "/sys/fs/cgroup"
}
