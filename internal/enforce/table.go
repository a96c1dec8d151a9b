package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/internal/endpoint"
)

// Values of the map of endpoints; net.bpf.c has the same.
const (
	verdictDeny  uint32 = 0
	verdictAllow uint32 = 1
)

// prefixFixed is the number of bits of a key before the address or the port.
const prefixFixed = 96

// table is one policy in the maps. Guests that may do the same share one.
type table struct {
	policy uint64
	udp    bool
	ports  []bpf.NetPort
	keys   []bpf.NetEndpoint

	says   string // what it says, for those who look for one
	guests int    // that have it; guarded by Programs.mu
}

// listening stands in the place of a protocol for the ports at which the guest may
// listen; net.bpf.c has the same number.
const listening endpoint.Protocol = 254

// table returns the table that says this, for one guest, which has to release or retire it.
func (p *Programs) table(entries []endpoint.Entry, exposed []uint16) (*table, error) {
	says := string(contents(entries, exposed))
	if t := p.join(says, nil); t != nil {
		return t, nil
	}
	made, err := p.write(entries, exposed)
	if err != nil {
		return nil, err
	}
	t := p.join(says, &made)
	if t != &made {
		_ = p.erase(made) // what cannot be deleted is in no guest's use and goes with the map
	}
	return t, nil
}

// contents are equal for tables that say the same, and for no others.
func contents(entries []endpoint.Entry, exposed []uint16) []byte {
	says := binary.NativeEndian.AppendUint32(nil, uint32(len(exposed)))
	for _, port := range exposed {
		says = binary.NativeEndian.AppendUint16(says, port)
	}
	for _, e := range entries {
		addr := e.Block.Addr().As16()
		says = append(says, byte(e.Protocol), byte(e.Block.Bits()), 0)
		if e.Allow {
			says[len(says)-1] = 1
		}
		says = binary.NativeEndian.AppendUint16(says, e.Ports.First)
		says = binary.NativeEndian.AppendUint16(says, e.Ports.Last)
		says = append(says, addr[:]...)
	}
	return says
}

// join counts one more guest of the table that says this. If there is none yet, made
// becomes it.
func (p *Programs) join(says string, made *table) *table {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tables[says]
	if t == nil && made != nil {
		t, made.says = made, says
		p.tables[says] = made
	}
	if t != nil {
		t.guests++
	}
	return t
}

// release erases a table that one guest has let go of, if it was the last.
func (p *Programs) release(t *table) error {
	p.mu.Lock()
	last := p.leaveLocked(t)
	p.mu.Unlock()
	if !last {
		return nil
	}
	return p.erase(*t)
}

// leaveLocked counts one guest less, and says whether it was the last: nobody finds the
// table then.
func (p *Programs) leaveLocked(t *table) (last bool) {
	if t.guests--; t.guests > 0 {
		return false
	}
	delete(p.tables, t.says)
	return true
}

// write puts entries into the maps under a new policy number, which no guest
// uses yet, and the ports at which the guest may listen. On an error nothing is left
// there.
func (p *Programs) write(entries []endpoint.Entry, exposed []uint16) (table, error) {
	t := table{policy: p.nextPolicy()}
	for _, port := range exposed {
		e := endpoint.Entry{Protocol: listening, Ports: endpoint.Ports{First: port, Last: port}}
		if err := p.writePorts(&t, e, rangeNumber(e)); err != nil {
			return table{}, errors.Join(err, p.erase(t))
		}
	}
	ranges := make(map[uint32]bool) // those that are in the trie of ports
	for _, e := range entries {
		t.udp = t.udp || e.Protocol == endpoint.UDP
		if number := rangeNumber(e); !ranges[number] {
			ranges[number] = true
			if err := p.writePorts(&t, e, number); err != nil {
				return table{}, errors.Join(err, p.erase(t))
			}
		}
		verdict := verdictDeny
		if e.Allow {
			verdict = verdictAllow
		}
		key := mapKey(t.policy, e)
		if err := p.owner.maps.endpoints.Put(key, verdict); err != nil {
			err = fmt.Errorf("writing rule %s port %s: %w", e.Block, e.Ports, full(err, p.owner.maps.endpoints, "rules of all guests"))
			return table{}, errors.Join(err, p.erase(t))
		}
		t.keys = append(t.keys, key)
	}
	return t, nil
}

// full says which limit was reached.
func full(err error, m *ebpf.Map, what string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("there can be at most %d %s at a time: close some: %w", m.MaxEntries(), what, err)
	}
	return err
}

// writePorts puts the range of ports of an entry into the trie of ports.
func (p *Programs) writePorts(t *table, e endpoint.Entry, number uint32) error {
	for _, block := range e.Ports.Prefixes() {
		key := bpf.NetPort{
			Prefixlen: uint32(prefixFixed + block.Bits),
			Protocol:  uint32(e.Protocol),
			Policy:    t.policy,
			Port:      networkOrder(block.Port),
		}
		if err := p.owner.maps.ports.Put(key, number); err != nil {
			return fmt.Errorf("writing ports %s: %w", e.Ports, full(err, p.owner.maps.ports, "ranges of ports of all guests"))
		}
		t.ports = append(t.ports, key)
	}
	return nil
}

// rangeNumber is the number of an entry's range of ports: no other range of the table
// and protocol begins where it does.
func rangeNumber(e endpoint.Entry) uint32 {
	return uint32(e.Protocol)<<16 | uint32(e.Ports.First)
}

// networkOrder returns a port such that its bytes in memory are those of the network.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// mapKey returns the key of an entry as net.bpf.c makes it.
func mapKey(policy uint64, e endpoint.Entry) bpf.NetEndpoint {
	return bpf.NetEndpoint{
		Prefixlen: uint32(prefixFixed + e.Block.Bits()),
		Range:     rangeNumber(e),
		Policy:    policy,
		Addr:      words(e.Block.Addr().As16()),
	}
}

// words returns an address such that its bytes in memory are those of the network.
func words(addr [16]byte) (out [4]uint32) {
	for i := range out {
		out[i] = binary.NativeEndian.Uint32(addr[4*i:])
	}
	return out
}

// erase removes a policy from the maps.
func (p *Programs) erase(t table) error {
	var errs []error
	for _, key := range t.keys {
		if err := p.owner.maps.endpoints.Delete(key); err != nil {
			errs = append(errs, fmt.Errorf("removing a rule of policy %d: %w", t.policy, err))
		}
	}
	for _, key := range t.ports {
		if err := p.owner.maps.ports.Delete(key); err != nil {
			errs = append(errs, fmt.Errorf("removing ports of policy %d: %w", t.policy, err))
		}
	}
	return errors.Join(errs...)
}

// retire is release for a guest that goes on with another table. The old one is erased
// once no program can be in the middle of reading it: half of a list must never be in force (a hole gone before its
// block). Waiting for that takes milliseconds, so it is done behind the caller's back,
// for all policies that were retired meanwhile at once.
func (p *Programs) retire(t *table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.leaveLocked(t) {
		return
	}
	p.retired = append(p.retired, t)
	if len(p.retired) == 1 && !p.erasing {
		p.erasing = true
		p.eraser.Go(p.eraseRetired)
	}
}

func (p *Programs) eraseRetired() {
	for {
		p.mu.Lock()
		batch := p.retired
		p.retired = nil
		p.erasing = len(batch) > 0
		p.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		awaitPrograms()
		for _, t := range batch {
			// What cannot be deleted is in no guest's use and goes with the map.
			_ = p.erase(*t)
		}
	}
}

// awaitPrograms returns when every eBPF program that runs now has ended. The global
// membarrier is synchronize_rcu by another name. Kernels with nohz_full cpus refuse
// it; a program that only looks things up is done long before the second is over.
func awaitPrograms() {
	const membarrierCmdGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0); errno != 0 {
		time.Sleep(time.Second)
	}
}
