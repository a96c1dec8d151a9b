package endpoint_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

func compile(t testing.TB, texts ...string) endpoint.List {
	t.Helper()
	var eps []policy.Endpoint
	for _, text := range texts {
		ep, err := policy.ParseEndpoint(text)
		if err != nil {
			t.Fatal(err)
		}
		eps = append(eps, ep)
	}
	l, err := endpoint.Compile(eps)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAllowsAddr(t *testing.T) {
	for _, tt := range []struct {
		rules []string
		dest  string
		want  bool
	}{
		{nil, "127.0.0.1:80", false},
		{[]string{"127.0.0.1:9200"}, "127.0.0.1:9200", true},
		{[]string{"127.0.0.1:9200"}, "[::ffff:127.0.0.1]:9200", true},
		{[]string{"127.0.0.1:9200"}, "127.0.0.1:9201", false},
		{[]string{"127.0.0.1:9200"}, "127.0.0.2:9200", false},
		{[]string{"127.0.0.1:9200"}, "0.0.0.0:9200", false},
		{[]string{"127.0.0.1:9200"}, "[::1]:9200", false},
		{[]string{"[::1]:80"}, "[::1]:80", true},
		{[]string{"[::1]:80"}, "[::]:80", false},
		{[]string{"10.0.0.0/8:80"}, "10.255.0.1:80", true},
		{[]string{"10.0.0.0/8:80"}, "11.0.0.0:80", false},
		{[]string{"10.0.0.0/8:80", "10.1.0.0/16:81"}, "10.1.0.1:80", true},
		{[]string{"10.0.0.0/8:80", "10.1.0.0/16:81"}, "10.2.0.1:81", false},
		// a wide block does not give what it merely happens to contain
		{[]string{"0.0.0.0/0:80"}, "8.8.8.8:80", true},
		{[]string{"0.0.0.0/0:80"}, "10.0.0.1:80", true},
		{[]string{"0.0.0.0/0:80"}, "127.0.0.1:80", false},
		{[]string{"0.0.0.0/0:80"}, "0.0.0.0:80", false},
		{[]string{"0.0.0.0/0:80"}, "169.254.169.254:80", false},
		{[]string{"0.0.0.0/0:80"}, "169.254.1.1:80", false},
		{[]string{"0.0.0.0/0:80"}, "168.63.129.16:80", false},
		{[]string{"0.0.0.0/0:80"}, "255.255.255.255:80", false},
		{[]string{"0.0.0.0/0:80"}, "[2606:4700::1]:80", false},
		{[]string{"100.64.0.0/10:80"}, "100.100.100.200:80", false},
		{[]string{"[::/0]:80"}, "[2606:4700::1]:80", true},
		{[]string{"[::/0]:80"}, "8.8.8.8:80", false},
		{[]string{"[::/0]:80"}, "[::ffff:8.8.8.8]:80", false},
		{[]string{"[::/0]:80"}, "[::1]:80", false},
		{[]string{"[::/0]:80"}, "[::7f00:1]:80", false},
		{[]string{"[::/0]:80"}, "[fe80::1]:80", false},
		{[]string{"[::/0]:80"}, "[fe80::1%lo]:80", false},
		{[]string{"[::/0]:80"}, "[64:ff9b::7f00:1]:80", false},
		{[]string{"[::/0]:80"}, "[2002:7f00:1::]:80", false},
		{[]string{"[::/0]:80"}, "[fd00:ec2::254]:80", false},
		// a block or address that lies inside a reserved range means it
		{[]string{"0.0.0.0/0:80", "127.0.0.1:80"}, "127.0.0.1:80", true},
		{[]string{"0.0.0.0/0:80", "127.0.0.1:80"}, "127.0.0.2:80", false},
		{[]string{"127.0.0.0/8:80"}, "127.3.2.1:80", true},
		{[]string{"127.0.0.0/8:80"}, "127.65.0.1:80", false},
		{[]string{"169.254.0.0/16:80"}, "169.254.3.4:80", true},
		{[]string{"169.254.0.0/16:80"}, "169.254.169.254:80", false},
		{[]string{"169.254.169.254:80"}, "169.254.169.254:80", true},
		{[]string{"[fe80::/64]:80"}, "[fe80::1]:80", true},
	} {
		dest := netip.MustParseAddrPort(tt.dest)
		if got := compile(t, tt.rules...).AllowsAddr(dest.Addr(), dest.Port()); got != tt.want {
			t.Errorf("rules %v, destination %s: allowed %v, want %v", tt.rules, tt.dest, got, tt.want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, tt := range []struct {
		ep   policy.Endpoint
		want string
	}{
		{policy.Endpoint{Host: "127.0.0.1"}, "port 0"},
		{policy.Endpoint{Host: "127.65.1.2", Port: 80}, "stand for names"},
		{policy.Endpoint{Host: "127.65.0.0/20", Port: 80}, "stand for names"},
		{policy.Endpoint{Host: "127.1", Port: 80}, "neither an address"},
		{policy.Endpoint{Host: "0x7f.0x1", Port: 80}, "neither an address"},
		{policy.Endpoint{Host: "", Port: 80}, "neither an address"},
		{policy.Endpoint{Host: "a.example.", Port: 80}, "neither an address"},
		{policy.Endpoint{Host: "*", Port: 80}, "neither an address"},
		{policy.Endpoint{Host: "a\x00.example", Port: 80}, "neither an address"},
	} {
		_, err := endpoint.Compile([]policy.Endpoint{tt.ep})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.ep, err, tt.want)
		}
	}
}

func TestListContents(t *testing.T) {
	l := compile(t, "b.example:443", "a.example:443", "a.example:80", "10.0.0.0/8:22", "10.0.0.0/8:23", "[::1]:22", "[fd00::/8]:1", "10.0.0.0/8:22")
	if got := strings.Join(l.Names(), " "); got != "a.example b.example" {
		t.Errorf("names %q", got)
	}
	if got := l.Blocks(); len(got) != 3 {
		t.Errorf("blocks %v", got)
	}
	for v6, want := range map[bool][]uint16{false: {22, 23, 80, 443}, true: {1, 22}} {
		if got := l.Ports(endpoint.TCP, v6); !equal(got, want) {
			t.Errorf("IPv6 %v: ports %v, want %v", v6, got, want)
		}
	}
	if !l.AllowsName("a.example", 80) || l.AllowsName("b.example", 80) || l.AllowsName("A.example", 80) {
		t.Error("AllowsName is not exact")
	}
}

func equal(a []endpoint.Ports, b []uint16) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != (endpoint.Ports{First: b[i], Last: b[i]}) {
			return false
		}
	}
	return true
}

// longest looks an address up as the kernel's trie does.
func longest(entries []endpoint.Entry, addr netip.Addr, port uint16) bool {
	return longestOf(entries, endpoint.TCP, addr, port)
}

func longestOf(entries []endpoint.Entry, protocol endpoint.Protocol, addr netip.Addr, port uint16) bool {
	addr = netip.AddrFrom16(addr.As16())
	best, allow := -1, false
	for _, e := range entries {
		if e.Protocol == protocol && inRange(e.Ports, port) && e.Block.Bits() > best && contains(e.Block, addr) {
			best, allow = e.Block.Bits(), e.Allow
		}
	}
	return allow
}

// inRange looks a port up as the kernel's trie of ports does.
func inRange(ports endpoint.Ports, port uint16) bool {
	for _, p := range ports.Prefixes() {
		if (p.Port^port)>>(16-p.Bits) == 0 {
			return true
		}
	}
	return false
}

// contains compares bits: netip would tell mapped addresses from others.
func contains(block netip.Prefix, addr netip.Addr) bool {
	b, a := block.Addr().As16(), addr.As16()
	for i := range block.Bits() {
		if (b[i/8]^a[i/8])&(0x80>>(i%8)) != 0 {
			return false
		}
	}
	return true
}

// randomEndpoint is biased to the edges: reserved ranges, their neighbours and
// whatever contains them.
func randomEndpoint(r *rand.Rand) policy.Endpoint {
	block := randomBlock(r)
	e := policy.Endpoint{Host: block.String(), Port: uint16(80 + r.IntN(2)), UDP: r.IntN(4) == 0}
	if r.IntN(2) == 0 {
		e.Last = e.Port + uint16(1+r.IntN(3))
	}
	return e
}

func randomBlock(r *rand.Rand) netip.Prefix {
	addr := randomAddr(r)
	return netip.PrefixFrom(addr, r.IntN(addr.BitLen()+1)).Masked()
}

func randomAddr(r *rand.Rand) netip.Addr {
	switch r.IntN(5) {
	case 0:
		return netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	case 1:
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return netip.AddrFrom16(b).Unmap()
	}
	all := endpoint.Reserved()
	block := all[r.IntN(len(all))].Prefix
	addr := block.Addr()
	b := addr.As16()
	if addr.Is4() {
		b[12+r.IntN(4)] ^= byte(r.Uint32()) >> r.IntN(8)
	} else {
		b[r.IntN(16)] ^= byte(r.Uint32()) >> r.IntN(8)
	}
	return netip.AddrFrom16(b).Unmap()
}

// checkEntries holds the table to the reference, for one list.
func checkEntries(t *testing.T, r *rand.Rand) {
	t.Helper()
	var eps []policy.Endpoint
	for range r.IntN(8) {
		eps = append(eps, randomEndpoint(r))
	}
	list, err := endpoint.Compile(eps)
	if err != nil {
		return // a block of synthetic addresses
	}
	entries, err := list.Entries(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		addr, port := randomAddr(r), uint16(79+r.IntN(7))
		for _, protocol := range []endpoint.Protocol{endpoint.TCP, endpoint.UDP} {
			if got, want := longestOf(entries, protocol, addr, port), list.Allows(protocol, addr, port); got != want {
				t.Fatalf("rules %+v, destination %s port %d of %d: the table says %v, the rules %v\n%v", eps, addr, port, protocol, got, want, entries)
			}
		}
	}
	for i, e := range entries {
		for _, other := range entries[:i] {
			if e.Protocol == other.Protocol && e.Ports != other.Ports && e.Ports.First <= other.Ports.Last && other.Ports.First <= e.Ports.Last {
				t.Fatalf("rules %+v: the ranges %s and %s overlap", eps, e.Ports, other.Ports)
			}
		}
	}
}

func TestEntriesAgreeWithAllowsAddr(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		checkEntries(t, r)
	}
}

func FuzzEntries(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		checkEntries(t, rand.New(rand.NewPCG(a, b)))
	})
}

func TestEntriesOfNames(t *testing.T) {
	l := compile(t, "a.example:443", "127.0.0.0/8:443")
	if _, err := l.Entries(nil); err == nil || !strings.Contains(err.Error(), "a.example:443") {
		t.Errorf("a name without an address: error %v", err)
	}
	synthetic := netip.MustParseAddr("127.65.3.4")
	entries, err := l.Entries(map[string][]netip.Addr{"a.example": {synthetic}})
	if err != nil {
		t.Fatal(err)
	}
	for dest, want := range map[string]bool{
		"127.65.3.4:443": true, "127.65.3.5:443": false, "127.65.3.4:80": false, "127.0.0.1:443": true,
	} {
		d := netip.MustParseAddrPort(dest)
		if got := longest(entries, d.Addr(), d.Port()); got != want {
			t.Errorf("%s: %v, want %v", dest, got, want)
		}
	}
}

func TestPrefixesOfPorts(t *testing.T) {
	for _, ports := range []endpoint.Ports{{1, 65535}, {80, 80}, {8000, 8100}, {1024, 2047}, {1, 1}, {65535, 65535}, {3, 60001}} {
		prefixes := ports.Prefixes()
		if len(prefixes) > 30 {
			t.Errorf("%s comes to %d blocks", ports, len(prefixes))
		}
		for port := range 1 << 16 {
			if got, want := inRange(ports, uint16(port)), int(ports.First) <= port && port <= int(ports.Last); got != want {
				t.Fatalf("%s contains %d: %v", ports, port, got)
			}
		}
	}
}

func TestRangesThatCutEachOtherAreBounded(t *testing.T) {
	var eps []policy.Endpoint
	for i := range 2000 {
		eps = append(eps, policy.Endpoint{Host: "0.0.0.0/0", Port: uint16(1 + i), Last: uint16(30000 + 2*i)})
	}
	list, err := endpoint.Compile(eps)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list.Entries(nil); err == nil || !strings.Contains(err.Error(), "more than 65536 entries") {
		t.Errorf("error %v", err)
	}
}

func TestNamesOfWildcards(t *testing.T) {
	l, err := endpoint.Compile([]policy.Endpoint{
		{Host: "*.example.org", Port: 443, Last: 450},
		{Host: "*.example.org", Port: 80, Private: true},
		{Host: "db.example.net", Port: 5432, Private: true},
		{Host: "secret.example.org", Port: 443, Last: 449, Deny: true},
		{Host: "*.dark.example.org", Port: 1, Last: 65535, Deny: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name                    string
		port                    uint16
		allowed, private, known bool
	}{
		{"a.example.org", 443, true, false, true},
		{"a.b.example.org", 450, true, false, true},
		{"a.example.org", 80, true, true, true},
		{"a.example.org", 451, false, false, true},
		{"example.org", 443, false, false, false},
		{"badexample.org", 443, false, false, false},
		{".example.org", 443, false, false, false},
		{"secret.example.org", 443, false, false, true},
		{"secret.example.org", 450, true, false, true},
		{"x.dark.example.org", 443, false, false, false},
		{"db.example.net", 5432, true, true, true},
		{"x.db.example.net", 5432, false, false, false},
	} {
		allowed, private := l.Name(endpoint.TCP, tt.name, tt.port)
		if known := l.Knows(tt.name); allowed != tt.allowed || private != tt.private || known != tt.known {
			t.Errorf("%s:%d: allowed %v, private %v, known %v", tt.name, tt.port, allowed, private, known)
		}
	}
	entries, err := l.Entries(map[string][]netip.Addr{"db.example.net": {netip.MustParseAddr("127.65.0.9")}})
	if err != nil {
		t.Fatal(err)
	}
	for dest, want := range map[string]bool{
		"127.65.128.0:53": true, "127.65.128.1:53": false, "127.65.128.1:443": true, "127.65.200.1:80": true,
		"127.65.0.9:5432": true, "127.65.0.9:443": false, "127.65.128.0:443": true, "127.65.1.1:443": false,
	} {
		d := netip.MustParseAddrPort(dest)
		if got := longest(entries, d.Addr(), d.Port()); got != want {
			t.Errorf("%s: %v, want %v", dest, got, want)
		}
	}
}
