package netproxy

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

func TestNames(t *testing.T) {
	eps := endpoints(t, "b.example:443", "a.example:80", "10.0.0.0/8:80", "a.example:443")
	names := Names(eps)
	if len(names) != 2 || !maps.Equal(names, Names(eps[1:])) && len(Names(eps[1:])) != 1 {
		t.Errorf("%v", names)
	}
	p := open(t, newNetns(t), Options{}, "b.example:443", "a.example:80", "a.example:443")
	if !maps.Equal(p.Hosts(), names) {
		t.Errorf("Open gives %v, Names %v", p.Hosts(), names)
	}
	if err := p.Update(endpoints(t, "c.example:1", "a.example:80")); err != nil {
		t.Fatal(err)
	}
	hosts := p.Hosts()
	for name, addr := range names {
		if hosts[name] != addr {
			t.Errorf("%s moved from %s to %s", name, addr, hosts[name])
		}
	}
	if !endpoint.SyntheticRange().Contains(hosts["c.example"]) {
		t.Errorf("the new name has %v", hosts["c.example"])
	}
}

// fakeDNS is a resolver whose zone the test writes.
type fakeDNS map[string][]string

func (zone fakeDNS) resolve(_ context.Context, name string) ([]netip.Addr, error) {
	if zone[name] == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	var addrs []netip.Addr
	for _, a := range zone[name] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, nil
}

func TestNameIsResolvedOnTheHost(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	target := server(t, "127.0.0.1:0", echo)
	zone := fakeDNS{
		"one.example":   {"8.8.8.8"},
		"two.example":   {"2606:4700::1", "8.8.4.4"}, // the first does not answer
		"mixed.example": {"127.0.0.1", "::ffff:8.8.8.8"},
	}
	var mu sync.Mutex
	var dialled []string
	opts := Options{
		Resolve: zone.resolve,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			dialled = append(dialled, addr)
			mu.Unlock()
			if strings.HasPrefix(addr, "[2606:") {
				return nil, errors.New("no route")
			}
			return new(net.Dialer).DialContext(ctx, network, target)
		},
	}
	p := open(t, netns, opts, "one.example:443", "two.example:443", "mixed.example:80")
	for name, want := range map[string]string{
		"one.example":   "8.8.8.8:443",
		"two.example":   "[2606:4700::1]:443 8.8.4.4:443",
		"mixed.example": "8.8.8.8:80",
	} {
		dialled = nil
		port := uint16(443)
		if name == "mixed.example" {
			port = 80
		}
		wantEcho(t, mustDial(t, netns, netip.AddrPortFrom(p.Hosts()[name], port).String()))
		mu.Lock()
		if got := strings.Join(dialled, " "); got != want {
			t.Errorf("%s: dialled %s, want %s", name, got, want)
		}
		mu.Unlock()
	}
	// The right name at the wrong port.
	wantRefused(t, netns, netip.AddrPortFrom(p.Hosts()["one.example"], 80).String())
	// A synthetic address that is nobody's.
	wantRefused(t, netns, "127.65.250.250:443")
	if n := p.Stats().Refused[NotAllowed]; n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
}

func TestRebindingIsRefused(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	zone := fakeDNS{"none.example": {}}
	for name, addr := range map[string]string{
		"loopback": "127.0.0.1", "loopback6": "::1", "mapped": "::ffff:127.0.0.1", "nat64": "64:ff9b::7f00:1", "sixtofour": "2002:7f00:1::",
		"linklocal": "169.254.1.1", "linklocal6": "fe80::1", "private": "10.0.0.1", "private6": "fd00::1", "carrier": "100.64.0.1",
		"metadata": "169.254.169.254", "metadata6": "fd00:ec2::254", "unspecified": "0.0.0.0", "unspecified6": "::",
		"multicast": "224.0.0.1", "multicast6": "ff02::1", "broadcast": "255.255.255.255", "synthetic": "127.65.0.1",
	} {
		zone[name+".example"] = []string{addr}
	}
	zone["two.example"] = []string{"10.0.0.1", "127.0.0.1"}
	var texts []string
	for name := range zone {
		texts = append(texts, name+":80")
	}
	texts = append(texts, "missing.example:80")
	var mu sync.Mutex
	said := make(map[string]string)
	p := open(t, netns, Options{
		Resolve: zone.resolve,
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			t.Errorf("%s was dialled", addr)
			return nil, errors.New("refused by the test")
		},
		OnRefuse: func(r Refusal) {
			mu.Lock()
			defer mu.Unlock()
			said[r.Name] = r.Error()
		},
	}, texts...)
	for _, addr := range p.Hosts() {
		wantRefused(t, netns, netip.AddrPortFrom(addr, 80).String())
	}
	eventually(t, "all are counted", func() bool {
		s := p.Stats()
		return s.Refused[Rebound] == uint64(len(zone)-1) && s.Refused[Unresolved] == 2
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"loopback.example": `connecting the guest to loopback.example:80: rebound: the name resolved to 127.0.0.1 (loopback), where a name must not lead: if that is meant, allow the address itself: "127.0.0.1:80"`,
		"two.example":      "10.0.0.1 (private), 127.0.0.1 (loopback)",
		"mapped.example":   "127.0.0.1 (loopback)",
		"missing.example":  "no such host",
		"none.example":     "no address",
	} {
		if !strings.Contains(said[name], want) {
			t.Errorf("%s: %q, want %q in it", name, said[name], want)
		}
	}
}

// The host's own resolver, with a name that it has without asking anyone.
func TestHostResolver(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p, err := Open(netns, []policy.Endpoint{{Host: "localhost", Port: 80}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wantRefused(t, netns, netip.AddrPortFrom(p.Hosts()["localhost"], 80).String())
	eventually(t, "it is counted", func() bool { return p.Stats().Refused[Rebound] == 1 })
}
