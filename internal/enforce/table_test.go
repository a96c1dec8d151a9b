package enforce

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

// kernelAllows asks the trie in the kernel what the programs would.
func kernelAllows(t *testing.T, p *Programs, policy uint64, addr netip.Addr, port uint16) bool {
	t.Helper()
	var verdict, number uint32
	at := bpf.NetPort{Prefixlen: prefixFixed + 16, Protocol: uint32(endpoint.TCP), Policy: policy, Port: networkOrder(port)}
	if err := p.owner.maps.ports.Lookup(at, &number); errors.Is(err, ebpf.ErrKeyNotExist) {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	whole := bpf.NetEndpoint{Prefixlen: prefixFixed + 128, Range: number, Policy: policy, Addr: words(addr.As16())}
	err := p.owner.maps.endpoints.Lookup(whole, &verdict)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return verdict == verdictAllow
}

func randomAddr(r *rand.Rand) netip.Addr {
	b := make([]byte, 16)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if all := endpoint.Reserved(); r.IntN(3) > 0 {
		from := all[r.IntN(len(all))].Prefix.Addr()
		b = from.AsSlice()
		b[r.IntN(len(b))] ^= byte(1 << r.IntN(8))
	} else if r.IntN(2) == 0 {
		b = b[:4]
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr.Unmap()
}

// The kernel's trie, with many policies in it at once, agrees with the plain
// reading of the rules.
func TestKernelTrieAgreesWithReference(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	p, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r := rand.New(rand.NewPCG(3, 4))
	type compiled struct {
		list endpoint.List
		t    table
	}
	var all []compiled
	for len(all) < 200 {
		var eps []policy.Endpoint
		for range r.IntN(10) {
			addr := randomAddr(r)
			block := netip.PrefixFrom(addr, r.IntN(addr.BitLen()+1)).Masked()
			eps = append(eps, policy.Endpoint{Host: block.String(), Port: uint16(80 + r.IntN(2)), Last: uint16(r.IntN(2) * (82 + r.IntN(3)))})
		}
		list, err := endpoint.Compile(eps)
		if err != nil {
			continue // a block of synthetic addresses
		}
		entries, err := list.Entries(nil)
		if err != nil {
			t.Fatal(err)
		}
		written, err := p.write(entries, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, compiled{list, written})
	}
	allowed := 0
	for range 20000 {
		c := all[r.IntN(len(all))]
		addr, port := randomAddr(r), uint16(79+r.IntN(7))
		if blocks := c.list.Blocks(); len(blocks) > 0 && r.IntN(2) == 0 { // or few answers are yes
			addr = blocks[r.IntN(len(blocks))].Addr()
		}
		got, want := kernelAllows(t, p, c.t.policy, addr, port), c.list.AllowsAddr(addr, port)
		if got != want {
			t.Fatalf("%s port %d: the kernel says %v, the rules %v: %+v", addr, port, got, want, c.list)
		}
		if got {
			allowed++
		}
	}
	if allowed < 1000 {
		t.Errorf("only %d of 20000 questions had the answer yes", allowed)
	}
	for _, c := range all {
		if err := p.erase(c.t); err != nil {
			t.Fatal(err)
		}
	}
	var key, value any = new([32]byte), new(uint32)
	if p.owner.maps.endpoints.Iterate().Next(key, value) || p.owner.maps.ports.Iterate().Next(new([24]byte), value) {
		t.Error("an entry is left in the trie")
	}
}

// TestTablesAreShared has guests come to and leave tables at once: those that say the same
// have one, and what nobody has is gone.
func TestTablesAreShared(t *testing.T) {
	p, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	entries := func(port uint16) []endpoint.Entry {
		return []endpoint.Entry{{Protocol: endpoint.TCP, Ports: endpoint.Ports{First: port, Last: port}, Block: netip.MustParsePrefix("::ffff:10.0.0.0/104"), Allow: true}}
	}
	one, err := p.table(entries(80), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]func() (*table, error){
		"another port":        func() (*table, error) { return p.table(entries(81), nil) },
		"a port to listen at": func() (*table, error) { return p.table(entries(80), []uint16{80}) },
	} {
		t2, err := other()
		if err != nil || t2.policy == one.policy {
			t.Errorf("%s: has the table of the others (%v)", name, err)
		}
		p.retire(t2)
	}
	var work sync.WaitGroup
	for worker := range 4 {
		work.Go(func() {
			for i := range 200 {
				mine, err := p.table(entries(80+uint16(i%2)), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 && mine != one {
					t.Error("a second table that says the same")
				}
				if !kernelAllows(t, p, mine.policy, netip.MustParseAddr("10.1.1.1"), 80+uint16(i%2)) {
					t.Error("a table that is in use says no")
				}
				if worker%2 == 0 {
					p.retire(mine)
				} else if err := p.release(mine); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if err := p.release(one); err != nil {
		t.Error(err)
	}
	p.eraser.Wait()
	if p.owner.maps.endpoints.Iterate().Next(new([32]byte), new(uint32)) || p.owner.maps.ports.Iterate().Next(new([24]byte), new(uint32)) || len(p.tables) != 0 {
		t.Errorf("something is left: %v", p.tables)
	}
}
