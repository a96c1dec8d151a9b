package netproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

func TestHostLoopbackIsReached(t *testing.T) {
	watchLeaks(t)
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		netns := newNetns(t)
		addr := server(t, host, echo)
		p := open(t, netns, Options{}, addr)
		c := mustDial(t, netns, addr)
		wantEcho(t, c)
		eventually(t, "everything is counted", func() bool {
			s := p.Stats()
			return s.Accepted == 1 && s.Active == 1 && s.BytesOut == 5 && s.BytesIn == 5 && len(s.Refused) == 0
		})
		c.Close()
		eventually(t, "the connection is gone", func() bool { return p.Stats().Active == 0 })
	}
}

func TestNothingElseIsReached(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	secret := server(t, "127.0.0.1:0", echo) // another port of the host
	var dialled []string
	var mu sync.Mutex
	p := open(t, netns, Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled = append(dialled, addr)
		return new(net.Dialer).DialContext(ctx, network, secret)
	}}, "127.0.0.1:7", "10.0.0.0/8:80", "[fd00::/8]:81", "0.0.0.0/0:90")
	for _, addr := range []string{
		secret, "127.0.0.1:8", "10.1.2.3:443", "[::1]:7", "[fd00::1]:80", "[::ffff:127.0.0.1]:8",
	} {
		if _, err := guestDial(netns, addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want ECONNREFUSED", addr, err)
		}
	}
	// Where a port is served for other addresses, the proxy refuses.
	refused := []string{"127.0.0.2:7", "0.0.0.0:80", "127.0.0.1:80", "192.0.2.1:80", "[::1]:81", "127.0.0.1:90", "169.254.169.254:90", "127.65.0.1:90"}
	for _, addr := range refused {
		wantRefused(t, netns, addr)
	}
	if s := p.Stats(); s.Refused[NotAllowed] != uint64(len(refused)) {
		t.Errorf("%+v, want %d refused", s, len(refused))
	}
	allowed := []string{"127.0.0.1:7", "10.200.3.4:80", "[fd12::9]:81", "8.8.8.8:90", "[::ffff:10.9.9.9]:80"}
	for _, addr := range allowed {
		wantEcho(t, mustDial(t, netns, addr))
	}
	mu.Lock()
	defer mu.Unlock()
	if want := append(allowed[:4:4], "10.9.9.9:80"); !equal(dialled, want) {
		t.Errorf("dialled %q, want %q", dialled, want)
	}
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestHalfClose(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	// Answers only when it has seen the end of the question.
	addr := server(t, "127.0.0.1:0", func(c *net.TCPConn) {
		question, err := io.ReadAll(c)
		if err == nil {
			_, _ = c.Write(append([]byte("you said "), question...))
		}
	})
	open(t, netns, Options{}, addr)
	c := mustDial(t, netns, addr)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); string(answer) != "you said hello" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}

	// And the other way: the server ends first, then listens.
	heard := make(chan string, 1)
	addr = server(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		rest, _ := io.ReadAll(c)
		heard <- string(rest)
	})
	p := open(t, newNetns(t), Options{}, addr)
	c = mustDial(t, p.netns, addr)
	if answer, err := io.ReadAll(c); string(answer) != "bye" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Error(err)
	}
	c.Close()
	if rest := <-heard; rest != "still here" {
		t.Errorf("the server heard %q", rest)
	}
}

func TestResetsCross(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	serverSaw := make(chan error, 1)
	addr := server(t, "127.0.0.1:0", func(c *net.TCPConn) {
		var b [1]byte
		if _, err := c.Read(b[:]); err == nil && b[0] == 'r' {
			_ = c.SetLinger(0) // and return: a reset
			return
		}
		_, err := c.Read(b[:])
		serverSaw <- err
	})
	p := open(t, netns, Options{}, addr)
	c := mustDial(t, netns, addr)
	_, _ = c.Write([]byte("r"))
	wantReset(t, c)

	c = mustDial(t, netns, addr)
	_, _ = c.Write([]byte("g"))
	eventually(t, "the byte is through", func() bool { return p.Stats().BytesOut == 2 })
	reset(c)
	if err := <-serverSaw; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server saw %v, want ECONNRESET", err)
	}
	eventually(t, "no connection is left", func() bool { return p.Stats().Active == 0 })
}

func TestUnreachable(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close() // nobody listens there now
	var got Refusal
	p := open(t, netns, Options{OnRefuse: func(r Refusal) { got = r }}, addr)
	wantRefused(t, netns, addr)
	eventually(t, "the refusal is counted", func() bool { return p.Stats().Refused[Unreachable] == 1 })
	if err := p.Close(); err != nil { // and got is complete
		t.Fatal(err)
	}
	if got.Dest != addrPort(addr) || got.Reason != Unreachable || !errors.Is(got, unix.ECONNREFUSED) {
		t.Errorf("refusal %v", got)
	}
}

func TestDialTimeout(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := open(t, netns, Options{
		DialTimeout: 50 * time.Millisecond,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}, "10.0.0.1:80")
	wantRefused(t, netns, "10.0.0.1:80")
	eventually(t, "the refusal is counted", func() bool { return p.Stats().Refused[Unreachable] == 1 })
}

func TestNoIPv6(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	if err := inside(netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{}, addr, "[::1]:80", "[fd00::/8]:80")
	wantEcho(t, mustDial(t, netns, addr))
	if _, err := guestDial(netns, "[::1]:80"); err == nil {
		t.Error("IPv6 is reached")
	}
	if got := p.Unserved(); len(got) != 2 || got[0].Host != "::1" {
		t.Errorf("unserved %v", got)
	}
}

func TestOpenFails(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := Open(null, []policy.Endpoint{{Host: "10.0.0.1", Port: 80}}, Options{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("not a namespace: %v", err)
	}
	if _, err := Open(netns, []policy.Endpoint{{Host: "10.0.0.1"}}, Options{}); err == nil {
		t.Error("port 0: no error")
	}
}

func TestNoEndpoints(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := open(t, netns, Options{})
	for _, want := range []error{unix.ENETUNREACH, unix.ECONNREFUSED} { // then lo is up
		if _, err := guestDial(netns, "127.0.0.1:80"); !errors.Is(err, want) {
			t.Errorf("loopback: %v, want %v", err, want)
		}
		if err := p.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{"8.8.8.8:53", "[2606:4700::1]:53"} {
		if _, err := guestDial(netns, addr); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %v, want ENETUNREACH", addr, err)
		}
	}
}
