package enforce_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

const eperm = syscall.EPERM

func endpoints(t testing.TB, texts ...string) []policy.Endpoint {
	t.Helper()
	var eps []policy.Endpoint
	for _, text := range texts {
		ep, err := policy.ParseEndpoint(text)
		if err != nil {
			t.Fatal(err)
		}
		eps = append(eps, ep)
	}
	return eps
}

func load(t testing.TB) *enforce.Programs {
	t.Helper()
	p, err := enforce.Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func attach(t testing.TB, p *enforce.Programs, dir string, texts ...string) *enforce.Guest {
	t.Helper()
	g, err := p.Attach(dir, endpoints(t, texts...), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestPolicyIsHeld(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	for _, network := range []string{"udp4", "udp6"} {
		if r := c.do(request{Op: "early", Net: network}); r.Errno != 0 {
			t.Fatal(r)
		}
	}
	// Without a policy everything works, so what fails below fails by the policy.
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp6", "[::1]:81", "", 0)
	c.expect("connect", "tcp6", "[::ffff:10.1.2.3]:81", "", 0)
	c.expect("sendto", "udp4", "10.0.0.1:80", "", 0)

	g := attach(t, load(t), dir, "127.0.0.1:80", "10.1.0.0/16:81", "[fd00::/16]:80")
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp6", "[::ffff:127.0.0.1]:80", "", 0)
	c.expect("connect", "tcp4", "10.1.255.255:81", "", 0)
	c.expect("connect", "tcp6", "[fd00:0:1::2]:80", "", 0)
	c.expect("fastopen", "tcp4", "127.0.0.1:80", "", 0)
	if n, err := g.Denied(); n != 0 || err != nil {
		t.Errorf("%d denials before the first (%v)", n, err)
	}
	denied := []struct{ op, network, addr, call string }{
		{"connect", "tcp4", "127.0.0.1:81", "connect"},
		{"connect", "tcp4", "127.0.0.2:80", "connect"},
		{"connect", "tcp4", "0.0.0.0:80", "connect"},
		{"connect", "tcp4", "10.2.0.1:81", "connect"},
		{"connect", "tcp4", "10.1.0.1:80", "connect"},
		{"connect", "tcp6", "[::1]:80", "connect"},
		{"connect", "tcp6", "[::]:80", "connect"},
		{"connect", "tcp6", "[::ffff:127.0.0.1]:81", "connect"},
		{"connect", "tcp6", "[::ffff:10.2.0.1]:81", "connect"},
		{"connect", "tcp6", "[fd01::1]:80", "connect"},
		{"connect", "tcp6", "[fd00::1]:81", "connect"},
		{"fastopen", "tcp4", "127.0.0.1:81", "sendto"},
		{"fastopen", "tcp6", "[::ffff:127.0.0.1]:81", "sendto"},
		{"bind", "tcp4", "127.0.0.1:0", "bind"},
		{"bind", "tcp4", "0.0.0.0:7000", "bind"},
		{"bind", "tcp6", "[::1]:0", "bind"},
		{"sendto", "udp4", "127.0.0.1:80", "sendto"}, // sockets from before the policy
		{"sendto", "udp6", "[fd00::1]:80", "sendto"},
		{"sendto", "udp6", "[::ffff:127.0.0.1]:80", "sendto"},
		{"connect", "udp4", "127.0.0.1:80", "connect"},
		{"connect", "udp6", "[fd00::1]:80", "connect"},
		{"connect", "raw4", "127.0.0.1:80", "socket"},
		{"connect", "raw6", "[fd00::1]:80", "socket"},
		{"connect", "ping4", "127.0.0.1:80", "socket"},
		{"connect", "udplite4", "127.0.0.1:80", "socket"},
	}
	for _, d := range denied {
		c.expect(d.op, d.network, d.addr, d.call, eperm)
	}
	if n, err := g.Denied(); n != uint64(len(denied)) || err != nil {
		t.Errorf("%d denials counted, want %d (%v)", n, len(denied), err)
	}
}

func TestNewSocketsAreTCPOnly(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	attach(t, load(t), dir, "127.0.0.1:80")
	for _, network := range []string{"udp4", "udp6", "raw4", "raw6", "ping4"} {
		c.expect("connect", network, "127.0.0.1:80", "socket", eperm)
	}
	for _, network := range []string{"sctp4", "mptcp4"} { // the kernel may have neither
		r := c.do(request{Op: "connect", Net: network, Addr: "127.0.0.1:80"})
		if r.Call != "socket" {
			t.Errorf("%s: a socket was made (%v)", network, r.Errno)
		}
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
}

func TestWideBlockHasHoles(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	g := attach(t, load(t), dir, "0.0.0.0/0:80", "[::/0]:80")
	c.expect("connect", "tcp4", "8.8.8.8:80", "", 0)
	c.expect("connect", "tcp4", "10.0.0.1:80", "", 0)
	c.expect("connect", "tcp6", "[fd00::1]:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
	c.expect("connect", "tcp4", "0.0.0.0:80", "connect", eperm)
	c.expect("connect", "tcp4", "169.254.169.254:80", "connect", eperm)
	c.expect("connect", "tcp6", "[::1]:80", "connect", eperm)
	c.expect("connect", "tcp6", "[::ffff:127.0.0.1]:80", "connect", eperm)
	c.expect("connect", "tcp6", "[fe80::1]:80", "connect", eperm)
	if err := g.Update(endpoints(t, "0.0.0.0/0:80", "127.0.0.1:80"), nil); err != nil {
		t.Fatal(err)
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.2:80", "connect", eperm)
}

func TestNamesAndChildCgroups(t *testing.T) {
	dir := newCgroup(t)
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, below)
	p := load(t)
	if _, err := p.Attach(dir, endpoints(t, "a.example:80"), nil); err == nil || !strings.Contains(err.Error(), "a.example:80") {
		t.Fatalf("a name without an address: %v", err)
	}
	c.expect("connect", "tcp4", "127.0.0.1:81", "", 0) // and nothing is attached

	g, err := p.Attach(dir, endpoints(t, "a.example:80"), map[string][]netip.Addr{
		"a.example": {netip.MustParseAddr("127.65.1.1"), netip.MustParseAddr("fd00::5")}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c.expect("connect", "tcp4", "127.65.1.1:80", "", 0)
	c.expect("connect", "tcp6", "[fd00::5]:80", "", 0)
	c.expect("connect", "tcp4", "127.65.1.2:80", "connect", eperm)
	c.expect("connect", "tcp4", "127.65.1.1:81", "connect", eperm)
}

func TestUpdateUnderLoad(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	g := attach(t, load(t), dir, "127.0.0.1:80", "10.0.0.1:80")
	c.send(request{Op: "storm", Net: "tcp4", Addr: "127.0.0.1:80", For: 2 * time.Second})
	updates := 0
	for end := time.Now().Add(1900 * time.Millisecond); time.Now().Before(end); updates++ {
		if err := g.Update(endpoints(t, "127.0.0.1:80", fmt.Sprintf("10.0.%d.0/24:81", updates%256)), nil); err != nil {
			t.Fatal(err)
		}
	}
	r := c.receive()
	t.Logf("%d updates, outcomes %v", updates, r.Counts)
	if denied := r.Counts[eperm.Error()]; denied != 0 {
		t.Errorf("%d spurious denials", denied)
	}
	if r.Counts[syscall.Errno(0).Error()] < 200 || updates < 20 {
		t.Errorf("too little happened to prove anything: %d updates, outcomes %v", updates, r.Counts)
	}
	// When Update returns the new list is in force.
	for i := range 20 {
		port := 80 + i%2
		if err := g.Update(endpoints(t, fmt.Sprintf("127.0.0.1:%d", port)), nil); err != nil {
			t.Fatal(err)
		}
		c.expect("connect", "tcp4", fmt.Sprintf("127.0.0.1:%d", port), "", 0)
		c.expect("connect", "tcp4", fmt.Sprintf("127.0.0.1:%d", 161-port), "connect", eperm)
	}
	if n, err := g.Denied(); n != 20 || err != nil {
		t.Errorf("%d denials over the updates, want 20 (%v)", n, err)
	}
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	g := attach(t, load(t), dir, "127.0.0.1:80")
	if err := g.Update(endpoints(t, "127.0.0.1:81", "a.example:80"), nil); err == nil {
		t.Fatal("a name without an address: no error")
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
}
