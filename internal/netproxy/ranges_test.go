package netproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/internal/enforce"
)

// realSteer is what attend gives the proxy.
func realSteer(netns *os.File, entries []endpoint.Entry, listeners [4]int) (io.Closer, error) {
	return enforce.Steer(netns, entries, listeners)
}

// dialTo connects every dial to one server, and tells where it should have gone.
func dialTo(server string, dialled chan<- string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled <- addr
		return new(net.Dialer).DialContext(ctx, network, server)
	}
}

func TestRangesOfPorts(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	target := server(t, "127.0.0.1:0", echo)
	dialled := make(chan string, 100)
	opts := Options{Steer: realSteer, Dial: dialTo(target, dialled)}
	p := open(t, netns, opts, "10.0.0.0/8:8000-8100", "10.1.0.0/16:8050-9000", "10.2.3.4:8060", "[fd00::/8]:1-65535", "0.0.0.0/0:100-200")
	for _, dest := range []string{
		"10.0.0.1:8000", "10.255.0.1:8100", "10.1.2.3:8050", "10.1.2.3:9000", "10.1.2.3:8060", "10.2.3.4:8060",
		"[fd00::1]:1", "[fd12::1]:65535", "8.8.8.8:150",
	} {
		c := mustDial(t, netns, dest)
		wantEcho(t, c)
		if got := <-dialled; got != dest {
			t.Errorf("%s leads to %s", dest, got)
		}
		c.Close()
	}
	// Nothing listens there: the kernel says so, and not the proxy.
	for _, dest := range []string{
		"10.0.0.1:7999", "10.0.0.1:8101", "10.2.0.1:9000", "10.1.2.3:9001", "127.0.0.1:8000", "127.0.0.1:150",
		"169.254.169.254:150", "[::1]:8000", "[::1]:150",
	} {
		c, err := guestDial(netns, dest)
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %v", dest, err)
		}
		if err == nil {
			c.Close()
		}
	}
	if s := p.Stats(); len(s.Refused) != 0 {
		t.Errorf("%+v", s.Refused)
	}
}

func TestUpdateOfRanges(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	target := server(t, "127.0.0.1:0", echo)
	dialled := make(chan string, 100)
	p := open(t, netns, Options{Steer: realSteer, Dial: dialTo(target, dialled)}, "10.0.0.0/8:1000-2000")
	c := mustDial(t, netns, "10.0.0.1:1500")
	wantEcho(t, c)
	if err := p.Update(endpoints(t, "10.0.0.0/8:1500-1600")); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c) // still allowed
	if _, err := guestDial(netns, "10.0.0.1:1400"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port that is no longer in the range: %v", err)
	}
	if err := p.Update(endpoints(t, "10.0.0.0/8:1600-1700")); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	if err := p.Update(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := guestDial(netns, "10.0.0.1:1650"); err == nil {
		t.Error("a range is open after an update to nothing")
	}
}

// Without a way to steer a range is an error, and nothing of the update is left.
func TestRangesNeedSteering(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	if p, err := Open(netns, endpoints(t, "10.0.0.0/8:1-2"), Options{}); err == nil {
		p.Close()
		t.Fatal("a range of ports without steering: no error")
	}
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Steer: func(*os.File, []endpoint.Entry, [4]int) (io.Closer, error) {
		return nil, fmt.Errorf("no: %w", enforce.ErrNotSupported)
	}}, addr)
	if err := p.Update(endpoints(t, "10.0.0.0/8:1-2", "10.0.0.1:80")); !errors.Is(err, enforce.ErrNotSupported) {
		t.Errorf("error %v", err)
	}
	if len(p.listeners) != 1 || len(p.routes) != 0 {
		t.Errorf("listeners %v, routes %v are left", p.listeners, p.routes)
	}
	wantEcho(t, mustDial(t, netns, addr))
}
