package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

// randomAddr is biased to reserved ranges and their edges.
func randomAddr(r *rand.Rand) netip.Addr {
	reserved := endpoint.Reserved()
	var addr netip.Addr
	switch r.IntN(4) {
	case 0:
		addr = netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	case 1:
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		addr = netip.AddrFrom16(b)
	default:
		addr = reserved[r.IntN(len(reserved))].Prefix.Addr()
		for range r.IntN(3) {
			addr = addr.Next()
		}
		if before := addr.Prev(); r.IntN(3) == 0 && before.IsValid() {
			addr = before
		}
	}
	return addr.Unmap()
}

func randomBlock(r *rand.Rand) netip.Prefix {
	addr := randomAddr(r)
	bits := r.IntN(addr.BitLen() + 1)
	if r.IntN(2) == 0 {
		bits = r.IntN(10)
	}
	block, err := addr.Prefix(bits)
	if err != nil {
		panic(err)
	}
	return block
}

// TestPropertyDeniedEndpoints adds random blocks to policies, allowed and denied,
// and compares what internal/endpoint makes of the result with the definition: an
// address is open if an allow rule covers it and no deny rule contains it.
func TestPropertyDeniedEndpoints(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	tried, open := 0, 0
	for range 1500 {
		p := policy.Defaults()
		var allowed []policy.Endpoint
		var denied []netip.Prefix
		for range 1 + r.IntN(3) {
			if q, err := p.AllowTCP(policy.Endpoint{Host: randomBlock(r).String(), Port: 80}.String()); err == nil {
				p = q
			}
		}
		for range 1 + r.IntN(3) {
			block := randomBlock(r)
			if q, err := p.DenyTCP(policy.Endpoint{Host: block.String(), Port: 80}.String()); err == nil {
				p, denied = q, append(denied, block)
			}
		}
		allowed, _ = p.TCPRules()
		before, err := endpoint.Compile(allowed)
		if err != nil {
			continue // a block of synthetic addresses
		}
		after, err := endpoint.Compile(p.TCP())
		if err != nil {
			t.Fatalf("%s: %v", p.Canonical(), err)
		}
		for range 60 {
			addr := randomAddr(r)
			if r.IntN(2) == 0 && len(denied) > 0 {
				addr = denied[r.IntN(len(denied))].Addr()
			}
			want := before.AllowsAddr(addr, 80)
			for _, d := range denied {
				want = want && !d.Contains(addr)
			}
			tried++
			if want {
				open++
			}
			if got := after.AllowsAddr(addr, 80); got != want {
				t.Fatalf("%s: %s is open: %v, want %v: %v", p.Canonical(), addr, got, want, p.TCP())
			}
		}
	}
	if open < tried/50 {
		t.Errorf("only %d of %d addresses were open", open, tried)
	}
}

// TestPrivateBlocksAreRefusedToNames holds the list of ranges whose deny needs
// nothing for names to the one that keeps names from them.
func TestPrivateBlocksAreRefusedToNames(t *testing.T) {
	for _, block := range policy.PrivateBlocks() {
		addr := block.Addr()
		for range 3 {
			if block.Contains(addr) && endpoint.RefuseResolved(addr) == "" {
				t.Errorf("a name may lead to %s", addr)
			}
			addr = addr.Next()
		}
	}
	for _, r := range endpoint.Reserved() {
		if !containsPrefix(policy.ReservedBlocks(), r.Prefix) {
			t.Errorf("%s is reserved, and not known here", r.Prefix)
		}
	}
	if len(policy.ReservedBlocks()) != len(endpoint.Reserved()) {
		t.Error("the lists differ")
	}
}

func containsPrefix(list []netip.Prefix, p netip.Prefix) bool {
	for _, other := range list {
		if other == p {
			return true
		}
	}
	return false
}
