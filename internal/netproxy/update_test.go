package netproxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// onlyLoopback keeps the test's traffic on this machine.
func onlyLoopback(ctx context.Context, network, addr string) (net.Conn, error) {
	if !addrPort(addr).Addr().IsLoopback() {
		return nil, unix.ENETUNREACH
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

func TestUpdate(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	one, two := server(t, "127.0.0.1:0", echo), server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Dial: onlyLoopback}, one, two)
	stays, goes := mustDial(t, netns, one), mustDial(t, netns, two)
	wantEcho(t, stays)
	wantEcho(t, goes)
	if err := p.Update(endpoints(t, one, "10.0.0.0/8:80")); err != nil {
		t.Fatal(err)
	}
	wantReset(t, goes)
	wantEcho(t, stays)
	if _, err := guestDial(netns, two); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a removed endpoint: %v, want ECONNREFUSED", err)
	}
	wantRefused(t, netns, "10.7.7.7:80") // a new endpoint: accepted, and then not reachable
	if err := p.Update(endpoints(t, one)); err != nil {
		t.Fatal(err)
	}
	if _, err := guestDial(netns, "10.7.7.7:80"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("a removed block: %v, want ENETUNREACH", err)
	}
	wantEcho(t, stays)
	eventually(t, "the cut connection is counted", func() bool { return p.Stats().Refused[Revoked] == 1 })
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Dial: onlyLoopback}, addr)
	var blocker net.Listener
	if err := inside(netns, func() (err error) { blocker, err = net.Listen("tcp", "127.0.0.1:81"); return err }); err != nil {
		t.Fatal(err)
	}
	defer blocker.Close()
	if err := p.Update(endpoints(t, "10.0.0.0/8:80", "10.0.0.0/8:81")); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that the guest uses: %v", err)
	}
	for _, e := range []policy.Endpoint{{Host: "127.65.0.1", Port: 80}, {Host: "10.0.0.1"}} {
		if err := p.Update([]policy.Endpoint{e}); err == nil {
			t.Errorf("%v: no error", e)
		}
	}
	wantEcho(t, mustDial(t, netns, addr))
	for _, addr := range []string{"10.1.1.1:80", "127.0.0.1:80"} {
		if _, err := guestDial(netns, addr); err == nil {
			t.Errorf("%s is reached", addr)
		}
	}
	if len(p.routes) != 0 || len(p.listeners) != 1 {
		t.Errorf("routes %v, listeners %v are left", p.routes, p.listeners)
	}
}

func TestUpdateUnderLoad(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{}, addr)
	stop := make(chan struct{})
	var load sync.WaitGroup
	var served atomic.Int64
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := guestDial(netns, addr)
				if err != nil {
					t.Error(err)
					return
				}
				wantEcho(t, c)
				reset(c)
				served.Add(1)
			}
		})
	}
	updates := 0
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); updates++ {
		eps := endpoints(t, addr, "10.0.0.0/8:80")
		if updates%2 == 1 {
			eps = endpoints(t, "[fd00::/8]:81", addr)
		}
		if err := p.Update(eps); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	load.Wait()
	t.Logf("%d updates, %d connections", updates, served.Load())
	if s := p.Stats(); len(s.Refused) != 0 {
		t.Errorf("spurious refusals: %v", s.Refused)
	}
	if updates < 20 || served.Load() < 20 { // an emulated machine is slow
		t.Error("too little happened to prove anything")
	}
}
