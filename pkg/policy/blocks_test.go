package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
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

// randomPorts makes an endpoint of the block, at a few ports.
func randomPorts(r *rand.Rand, block netip.Prefix) policy.Endpoint {
	e := policy.Endpoint{Host: block.String(), Port: uint16(80 + r.IntN(3))}
	if r.IntN(2) == 0 {
		e.Last = e.Port + 1 + uint16(r.IntN(3))
	}
	return e
}

// TestPropertyDeniedNames does the same for names, wildcards among them.
func TestPropertyDeniedNames(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 12))
	hosts := []string{"a.x.org", "b.x.org", "a.b.x.org", "*.x.org", "*.b.x.org", "x.org", "*.y.org"}
	names := append([]string{"c.x.org", "c.b.x.org", "yx.org", "z.y.org"}, hosts[:3]...)
	open := 0
	for range 2000 {
		p := policy.Defaults()
		var allowed, denied []policy.Endpoint
		for i := range 4 {
			e := policy.Endpoint{Host: hosts[r.IntN(len(hosts))], Port: uint16(80 + r.IntN(3))}
			if r.IntN(2) == 0 {
				e.Last = e.Port + 1 + uint16(r.IntN(3))
			}
			add, list := p.AllowTCP, &allowed
			if i%2 == 1 {
				add, list = p.DenyTCP, &denied
			}
			var err error
			if p, err = add(e.String()); err != nil {
				t.Fatal(err)
			}
			*list = append(*list, e)
		}
		list, err := endpoint.Compile(p.TCP())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			for port := uint16(79); port < 87; port++ {
				covers := func(e policy.Endpoint) bool {
					first, last := e.Ports()
					return e.CoversName(name) && first <= port && port <= last
				}
				want := slices.ContainsFunc(allowed, covers) && !slices.ContainsFunc(denied, covers)
				if got := list.AllowsName(name, port); got != want {
					t.Fatalf("%s: %s:%d is open: %v: %+v", p.Canonical(), name, port, got, p.TCP())
				}
				if want {
					open++
				}
			}
		}
	}
	if open < 1000 {
		t.Errorf("only %d were open", open)
	}
}

// TestPropertyCompareEndpoints: what Compare gives as an example is open in the second
// policy and closed in the first, and where it finds nothing there is nothing.
func TestPropertyCompareEndpoints(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 13))
	hosts := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "8.0.0.0/5", "a.x.org", "*.x.org", "*.b.x.org"}
	random := func() policy.Policy {
		p := policy.Defaults()
		for range 4 {
			e := policy.Endpoint{Host: hosts[r.IntN(len(hosts))], Port: uint16(80 + r.IntN(4)), Last: uint16(r.IntN(2) * (84 + r.IntN(3)))}
			q, err := p.AllowTCP(e.String())
			if r.IntN(3) == 0 {
				q, err = p.DenyTCP(e.String())
			}
			if err == nil {
				p = q
			}
		}
		return p
	}
	opens := func(p policy.Policy, host string, port uint16) bool {
		list, err := endpoint.Compile(p.TCP())
		if err != nil {
			t.Fatal(err)
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			return list.AllowsAddr(addr, port)
		}
		return list.AllowsName(host, port)
	}
	different := 0
	for range 2000 {
		a, b := random(), random()
		found, err := policy.Compare(a, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range found {
			e, err := policy.ParseEndpoint(d.Example)
			if err != nil {
				t.Fatal(err)
			}
			different++
			if e.IsWildcard() {
				continue // of which some name is new
			}
			if opens(a, e.Host, e.Port) || !opens(b, e.Host, e.Port) {
				t.Fatalf("%s and %s: %v is no difference", a.Canonical(), b.Canonical(), d)
			}
		}
		for _, host := range []string{"10.0.0.1", "10.1.0.1", "10.1.2.3", "9.1.1.1", "a.x.org", "c.b.x.org", "c.x.org"} {
			for port := uint16(79); port < 88; port++ {
				if len(found) == 0 && opens(b, host, port) && !opens(a, host, port) {
					t.Fatalf("%s and %s: %s:%d is not found", a.Canonical(), b.Canonical(), host, port)
				}
			}
		}
	}
	if different < 300 {
		t.Errorf("only %d differences", different)
	}
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
		var deniedPorts [][2]uint16
		for range 1 + r.IntN(3) {
			if q, err := p.AllowTCP(randomPorts(r, randomBlock(r)).String()); err == nil {
				p = q
			}
		}
		for range 1 + r.IntN(3) {
			block := randomBlock(r)
			e := randomPorts(r, block)
			if q, err := p.DenyTCP(e.String()); err == nil {
				first, last := e.Ports()
				p, denied, deniedPorts = q, append(denied, block), append(deniedPorts, [2]uint16{first, last})
			}
		}
		allowed, _ = p.TCPRules()
		before, err := endpoint.Compile(allowed)
		if err != nil {
			t.Fatal(err)
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
			port := uint16(80 + r.IntN(3))
			want := before.AllowsAddr(addr, port)
			for i, d := range denied {
				want = want && (!d.Contains(addr) || port < deniedPorts[i][0] || port > deniedPorts[i][1])
			}
			tried++
			if want {
				open++
			}
			if got := after.AllowsAddr(addr, port); got != want {
				t.Fatalf("%s: %s port %d is open: %v, want %v: %v", p.Canonical(), addr, port, got, want, p.TCP())
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
			if block.Contains(addr) && endpoint.RefuseResolved(addr, false) == "" {
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
