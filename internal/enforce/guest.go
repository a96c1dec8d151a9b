package enforce

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

const (
	attachMulti    = 1 << 1 // BPF_F_ALLOW_MULTI: beside the programs of others; all must agree
	queryEffective = 1 << 0 // BPF_F_QUERY_EFFECTIVE: what the kernel really runs, ancestors included
)

// Guest is a cgroup that is held to a policy. It is safe for use by several
// goroutines.
type Guest struct {
	programs *Programs
	owned    bool   // programs are of this guest alone: closed with it
	cgroup   string // directory, for messages
	id       uint64 // of the cgroup

	mu     sync.Mutex // guards the fields below
	table  *table     // in force
	denied uint64     // the last count, once closed
	closed bool
}

// Attach is [Load] and [Programs.Attach] for a process with one guest.
func Attach(cgroupDir string, eps []policy.Endpoint, names map[string][]netip.Addr, exposed ...uint16) (*Guest, error) {
	p, err := Load()
	if err != nil {
		return nil, err
	}
	g, err := p.Attach(cgroupDir, eps, names, exposed...)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	g.owned = true
	return g, nil
}

// Attach holds every process of the cgroup2 directory cgroupDir, and of those
// below it, to eps. names gives the addresses at which the guest finds each name
// of eps, exposed the ports at which it may listen. On an error the cgroup is as it was. The error wraps [ErrNotSupported]
// when the host lacks something.
func (p *Programs) Attach(cgroupDir string, eps []policy.Endpoint, names map[string][]netip.Addr, exposed ...uint16) (*Guest, error) {
	entries, err := compile(eps, names)
	if err != nil {
		return nil, err
	}
	dir, id, err := openCgroup2(cgroupDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	t, err := p.table(entries, exposed)
	if err != nil {
		return nil, err
	}
	g := &Guest{programs: p, cgroup: cgroupDir, id: id, table: t}
	if err := attachAll(dir, p.hooks); err != nil {
		return nil, errors.Join(err, p.release(t))
	}
	err = p.denials.open(id)
	// From here on everything is denied, until this one write.
	if err == nil {
		err = g.use(t)
	}
	if err != nil {
		p.denials.end(id)
		return nil, errors.Join(err, detachAll(dir, p.hooks), p.release(t))
	}
	return g, nil
}

func compile(eps []policy.Endpoint, names map[string][]netip.Addr) ([]endpoint.Entry, error) {
	list, err := endpoint.Compile(eps)
	if err != nil {
		return nil, err
	}
	return list.Entries(names)
}

// attachAll attaches all programs to the cgroup, or none, and believes it only
// when the kernel lists them as what it runs there.
func attachAll(dir *os.File, hooks []hook) error {
	for i, h := range hooks {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: int(dir.Fd()), Program: h.program, Attach: h.attach, Flags: attachMulti,
		})
		if err != nil {
			return errors.Join(attachError(dir.Name(), h, err), detachAll(dir, hooks[:i]))
		}
		if err := checkEffective(dir, h); err != nil {
			return errors.Join(attachError(dir.Name(), h, err), detachAll(dir, hooks[:i+1]))
		}
	}
	return nil
}

func attachError(dir string, h hook, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("attaching %s to %s: the cgroup has this policy's programs already: %w", h.attach, dir, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("attaching %s to %s: a cgroup above has a program that allows none below it, or: %w", h.attach, dir, explain(err))
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("attaching %s to %s: the cgroup has 64 programs already, the kernel's limit: %w", h.attach, dir, err)
	}
	return fmt.Errorf("attaching %s to %s: %w", h.attach, dir, err)
}

func checkEffective(dir *os.File, h hook) error {
	result, err := link.QueryPrograms(link.QueryOptions{
		Target: int(dir.Fd()), Attach: h.attach, QueryFlags: queryEffective,
	})
	if err != nil {
		return fmt.Errorf("asking what runs there: %w", err)
	}
	if !slices.ContainsFunc(result.Programs, func(a link.AttachedProgram) bool { return a.ID == h.id }) {
		return errors.New("the kernel took the program but does not run it")
	}
	return nil
}

func detachAll(dir *os.File, hooks []hook) error {
	var errs []error
	for _, h := range hooks {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{
			Target: int(dir.Fd()), Program: h.program, Attach: h.attach,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("detaching %s from %s: %w", h.attach, dir.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// use makes a table the one in force, at once for every hook: the kernel swaps the
// whole value.
func (g *Guest) use(t *table) error {
	value := bpf.NetGuest{Policy: t.policy, Cgroup: g.id, Owner: g.programs.owner.number}
	if t.udp {
		value.Udp = 1
	}
	err := g.programs.objects.Guests.Put(g.id, value)
	if err != nil {
		return fmt.Errorf("setting the policy of cgroup %s: %w", g.cgroup, err)
	}
	return nil
}

// Update replaces the guest's endpoints and the ports that it may listen at. Each call of the guest sees the old list or
// the new one; what begins after Update has returned sees the new one. On an error the
// old list stays in force. Connections that exist are not touched.
func (g *Guest) Update(eps []policy.Endpoint, names map[string][]netip.Addr, exposed ...uint16) error {
	entries, err := compile(eps, names)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fmt.Errorf("updating the policy of cgroup %s: %w", g.cgroup, os.ErrClosed)
	}
	t, err := g.programs.table(entries, exposed)
	if err != nil {
		return err
	}
	if err := g.use(t); err != nil {
		return errors.Join(err, g.programs.release(t))
	}
	g.programs.retire(g.table)
	g.table = t
	return nil
}

// Denied returns how many calls of the guest were refused since Attach.
func (g *Guest) Denied() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return g.denied, nil
	}
	account, err := g.programs.denials.account(g.id)
	return account.Denied, err
}

// OnDenied has told called with each refused call of the guest from now on, as far as
// the kernel tells them apart (see [Denial]), one at a time. It must not block: one
// goroutine serves all guests. Call it once, before the guest runs.
func (g *Guest) OnDenied(told func(Denial)) error { return g.programs.denials.watch(g.id, told) }

// Close takes the guest's policy away: what is still running there is denied
// everything. The programs go when the cgroup is removed, and not before. When it
// returns, everything has been told and [Guest.Denied] keeps its last value. Closing
// again does nothing.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	var errs []error
	if err := g.use(&table{}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // the cgroup may be gone
		errs = append(errs, err)
	}
	g.denied = g.programs.denials.end(g.id).Denied
	errs = append(errs, g.programs.release(g.table))
	if g.owned {
		errs = append(errs, g.programs.Close())
	}
	return errors.Join(errs...)
}
