package enforce

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Files are what a guest may do with files: see [policy.CompileGuest].
type Files struct {
	Own            []policy.FSRule // about its own root
	Rules          []policy.FSRule // of its policy
	Places         []string        // in which the policy's rules decide
	MountNamespace uint32          // inode number of the namespace in which the rules' paths are
	// Forked: the guest's program is one from outside of its mount namespace, and every
	// process in the cgroup is the guest's.
	Forked bool
}

// FileGuest is a cgroup whose processes are held to file rules, and to what no
// guest may do. It is safe for use by several goroutines.
type FileGuest struct {
	programs *FilePrograms
	denials  *denials
	cgroup   string
	id       uint64
	rules    atomic.Pointer[[]policy.FSRule] // in force

	mu        sync.Mutex
	namespace uint32
	past      uint64 // denials; kept for after Close
	closed    bool
}

// Attach holds every process of the cgroup2 directory cgroupDir, and of those below
// it, to files. Processes whose program comes from outside of the mount namespace
// (the runtime that makes a guest, or enters one) are held when they execute the
// guest's program; so Attach may be called at any time before that.
func (p *FilePrograms) Attach(cgroupDir string, files Files) (*FileGuest, error) {
	if files.MountNamespace == 0 {
		return nil, fmt.Errorf("attaching the file rules of cgroup %s: no mount namespace: whatever ran there would pass for the runtime", cgroupDir)
	}
	dir, id, err := openCgroup2(cgroupDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	depths, err := cgroupDepths(cgroupDir)
	if err != nil {
		return nil, err
	}
	g := &FileGuest{programs: p, cgroup: cgroupDir, id: id}
	err = p.change(func() error {
		g.denials = p.denials
		if err := errors.Join(p.addDepths(depths), p.denials.open(id)); err != nil {
			return fmt.Errorf("attaching the file rules of cgroup %s: %w", cgroupDir, err)
		}
		if err := g.put(files); err != nil {
			return errors.Join(err, p.maps.Accounts.Delete(id))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// change runs do with the programs pinned and the lock held: nobody else adds a
// guest, and nobody takes the programs away.
func (p *FilePrograms) change(do func() error) error {
	lock, err := lockPins()
	if err != nil {
		return err
	}
	defer lock.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.same() {
		// A collection has removed them since; perhaps somebody has loaded them again.
		if err := errors.Join(p.closeMaps(), p.open()); err != nil {
			return err
		}
	}
	return do()
}

// same reports whether the maps are those that are pinned.
func (p *FilePrograms) same() bool {
	pinned, err := ebpf.LoadPinnedMap(p.dir+"/guests", nil)
	if err != nil {
		return false
	}
	defer pinned.Close()
	return mapID(pinned) == mapID(p.maps.Guests)
}

func mapID(m *ebpf.Map) ebpf.MapID {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// addDepths adds to the depths at which the programs look for guests.
func (p *FilePrograms) addDepths(depths []uint32) error {
	var list bpf.LSMDepthList
	if err := p.maps.Depths.Lookup(uint32(0), &list); err != nil {
		return err
	}
	all := append(slices.DeleteFunc(list.Depth[:], func(d uint32) bool { return d == 0 }), depths...)
	slices.Sort(all)
	all = slices.Compact(all)
	slices.Reverse(all) // innermost first
	var next bpf.LSMDepthList
	if copy(next.Depth[:], all) < len(all) {
		return fmt.Errorf("guests at more than %d depths of the cgroup hierarchy: put them at the same", len(next.Depth))
	}
	return p.maps.Depths.Put(uint32(0), next)
}

// put makes files what the guest is held to, with one write. The caller holds the lock.
func (g *FileGuest) put(files Files) error {
	g.namespace = files.MountNamespace
	table, err := g.programs.tableOf(files)
	if err != nil {
		return err
	}
	if err := g.programs.needRing(); err != nil {
		return err
	}
	entry := bpf.LSMGuest{Size: table.size, MountNamespace: files.MountNamespace, Owner: g.programs.ring.key()}
	entry.Table.Digest = table.id
	if files.Forked {
		entry.Forked = 1
	}
	if err := g.programs.maps.Guests.Put(g.id, entry); err != nil {
		return fmt.Errorf("setting the file rules of cgroup %s: %w", g.cgroup, full(err, g.programs.maps.Guests, "guests"))
	}
	g.rules.Store(&files.Rules)
	return nil
}

// Update replaces the rules. Each call of the guest is decided by the old ones or
// by the new ones. Files that are open, and mappings, stay.
func (g *FileGuest) Update(files Files) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fmt.Errorf("updating the file rules of cgroup %s: %w", g.cgroup, os.ErrClosed)
	}
	return g.programs.change(func() error { return g.put(files) })
}

// Denied returns how many operations of the guest were refused since Attach.
func (g *FileGuest) Denied() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.denied()
}

func (g *FileGuest) denied() (uint64, error) {
	if g.closed {
		return g.past, nil
	}
	account, err := g.denials.account(g.id)
	return account.Denied, err
}

// OnDenied has told called with each refused operation of the guest from now on, as far
// as its rate allows (see [Denial]), on a goroutine of its own.
func (g *FileGuest) OnDenied(told func(Denial)) error {
	p := g.programs
	err := p.change(func() error {
		if g.denials != p.denials {
			return fmt.Errorf("watching the denials of cgroup %s: %w", g.cgroup, os.ErrClosed)
		}
		p.denials.ring = p.ring.buffer
		return nil
	})
	if err != nil {
		return err
	}
	return g.denials.watch(g.id, func(d Denial) {
		d.Rule = denyingRule(*g.rules.Load(), d)
		told(d)
	})
}

// denyingRule is the rule that denies a path, in the place of the kernel, whose table
// no longer knows rules.
func denyingRule(rules []policy.FSRule, d Denial) int {
	if !d.Kind.IsFile() || d.Path == "" {
		return NoRule
	}
	return slices.IndexFunc(rules, func(r policy.FSRule) bool { return r.Mode == policy.Deny && r.Matches(d.Path) })
}

// Close forgets the guest. A process that still runs in its cgroup is denied every
// file from then on, until [Collect] or the next [LoadFiles] finds the cgroup
// gone. Closing again does nothing.
func (g *FileGuest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	p := g.programs
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if populated(g.cgroup) {
		err = p.maps.Guests.Put(g.id, bpf.LSMGuest{MountNamespace: g.namespace}) // without a table
	} else {
		err = ignoreMissing(p.maps.Guests.Delete(g.id))
	}
	g.past = g.denials.end(g.id).Denied
	return err
}

// populated reports whether a process may be in the cgroup or below.
func populated(cgroup string) bool {
	events, err := os.ReadFile(cgroup + "/cgroup.events")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false
	}
	return err != nil || !strings.Contains(string(events), "populated 0")
}

func (p *FilePrograms) forget(id uint64) error {
	return errors.Join(ignoreMissing(p.maps.Guests.Delete(id)), ignoreMissing(p.maps.Accounts.Delete(id)))
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
