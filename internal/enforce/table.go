package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"

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

// prefixFixed is the number of bits of a key before the address.
const prefixFixed = 96

// table is one policy in the maps.
type table struct {
	policy uint64
	keys   []bpf.NetEndpoint
}

// write puts entries into the maps under a new policy number, which no guest
// uses yet. On an error nothing is left there.
func (p *Programs) write(entries []endpoint.Entry) (table, error) {
	t := table{policy: p.nextPolicy()}
	if err := p.objects.Denied.Put(t.policy, uint64(0)); err != nil {
		return table{}, fmt.Errorf("counting denials: %w", full(err, p.objects.Denied, "guests"))
	}
	for _, e := range entries {
		verdict := verdictDeny
		if e.Allow {
			verdict = verdictAllow
		}
		key := mapKey(t.policy, e)
		if err := p.objects.Endpoints.Put(key, verdict); err != nil {
			err = fmt.Errorf("writing rule %s port %d: %w", e.Block, e.Port, full(err, p.objects.Endpoints, "rules of all guests"))
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

// mapKey returns the key of an entry as net.bpf.c makes it.
func mapKey(policy uint64, e endpoint.Entry) bpf.NetEndpoint {
	var port [4]byte
	binary.BigEndian.PutUint16(port[:], e.Port)
	addr := e.Block.Addr().As16()
	key := bpf.NetEndpoint{
		Prefixlen: uint32(prefixFixed + e.Block.Bits()),
		Port:      binary.NativeEndian.Uint32(port[:]),
		Policy:    policy,
	}
	for i := range key.Addr {
		key.Addr[i] = binary.NativeEndian.Uint32(addr[4*i:])
	}
	return key
}

// erase removes a policy from the maps.
func (p *Programs) erase(t table) error {
	var errs []error
	for _, key := range t.keys {
		if err := p.objects.Endpoints.Delete(key); err != nil {
			errs = append(errs, fmt.Errorf("removing a rule of policy %d: %w", t.policy, err))
		}
	}
	if err := p.objects.Denied.Delete(t.policy); err != nil {
		errs = append(errs, fmt.Errorf("removing the counter of policy %d: %w", t.policy, err))
	}
	return errors.Join(errs...)
}

// count returns the denials of a policy that is in the maps.
func (p *Programs) count(t table) (n uint64, err error) {
	if err := p.objects.Denied.Lookup(t.policy, &n); err != nil {
		return 0, fmt.Errorf("reading the denials of policy %d: %w", t.policy, err)
	}
	return n, nil
}
