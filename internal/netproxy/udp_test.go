package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// udpServer answers each datagram with its own text and what it got.
func udpServer(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from) // the guest may be gone
		}
	}()
	return c.LocalAddr().String()
}

func udpEndpoints(t testing.TB, texts ...string) []policy.Endpoint {
	t.Helper()
	p := policy.Defaults()
	for _, text := range texts {
		var err error
		if p, err = p.AllowUDP(text); err != nil {
			t.Fatal(err)
		}
	}
	return p.UDP()
}

func openUDP(t testing.TB, netns *os.File, opts Options, texts ...string) *Proxy {
	t.Helper()
	p, err := Open(netns, udpEndpoints(t, texts...), opts)
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

func guestUDP(t testing.TB, netns *os.File, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := inside(netns, func() error {
		c, err := net.Dial("udp", addr)
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// talk sends a datagram until it comes back: one may get lost.
func talk(t testing.TB, c net.Conn, text string) error {
	t.Helper()
	buf := make([]byte, maxDatagram)
	for range 20 {
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		n, err := c.Read(buf)
		if err == nil && string(buf[:n]) != text {
			return fmt.Errorf("sent %d bytes, got %d", len(text), n)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return os.ErrDeadlineExceeded
}

func TestDatagrams(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := udpServer(t)
	zone := fakeDNS{"ntp.example.org": {"8.8.8.8"}, "rebind.example.org": {"10.0.0.1"}}
	dialled := make(chan string, 100)
	opts := Options{Steer: realSteer, Resolve: zone.resolve, Dial: func(ctx context.Context, network, to string) (net.Conn, error) {
		dialled <- network + " " + to
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	p := openUDP(t, netns, opts, addr, "10.0.0.0/8:5000-6000", "[fd00::/8]:53", "ntp.example.org:123", "rebind.example.org:123")
	ntp := p.Hosts()["ntp.example.org"].String()
	for dest, want := range map[string]string{
		addr: addr, "10.1.2.3:5001": "10.1.2.3:5001", "10.1.2.3:6000": "10.1.2.3:6000", "[fd00::1]:53": "[fd00::1]:53", ntp + ":123": "8.8.8.8:123",
	} {
		c := guestUDP(t, netns, dest)
		for _, text := range []string{"hello", strings.Repeat("x", maxDatagram), "", "again"} {
			if text == "" {
				continue
			}
			if err := talk(t, c, text); err != nil {
				t.Errorf("%s: %v", dest, err)
			}
		}
		if got := <-dialled; got != "udp "+want {
			t.Errorf("%s leads to %s", dest, got)
		}
		c.Close()
	}
	for len(dialled) > 0 {
		t.Errorf("a flow was dialled twice: %s", <-dialled)
	}
	for _, dest := range []string{"127.0.0.1:1", "10.1.2.3:6001", "10.1.2.3:4999", "[fd00::1]:54", "127.0.0.2:" + strings.Split(addr, ":")[1], "169.254.169.254:5000", p.Hosts()["rebind.example.org"].String() + ":123"} {
		var err error
		if e := inside(netns, func() error {
			c, dialErr := net.Dial("udp", dest)
			if dialErr != nil {
				err = dialErr
				return nil
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if err == nil {
				_, err = c.Read(make([]byte, 8))
			}
			return nil
		}); e != nil {
			t.Fatal(e)
		}
		if err == nil {
			t.Errorf("%s answers", dest)
		}
	}
	if _, err := guestDial(netns, addr); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TCP to an endpoint of UDP: %v", err)
	}
}

func TestFlowsAreBounded(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := udpServer(t)
	p := openUDP(t, netns, Options{IdleTimeout: 8 * time.Second}, addr) // an emulated machine is slow
	for range maxFlows + 50 {
		c := guestUDP(t, netns, addr)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the flows beyond are refused", func() bool { return p.Stats().Refused[TooMany] > 0 })
	if n := p.Stats().Active; n > maxFlows {
		t.Errorf("%d flows", n)
	}
	if err := p.Update(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are cut", func() bool { return p.Stats().Active == 0 })
	if err := p.Update(udpEndpoints(t, addr)); err != nil {
		t.Fatal(err)
	}
	if err := talk(t, guestUDP(t, netns, addr), "hello"); err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

func TestSilentFlowsEnd(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := udpServer(t)
	p := openUDP(t, netns, Options{IdleTimeout: 300 * time.Millisecond}, addr)
	c := guestUDP(t, netns, addr)
	for range 2 { // a flow that has ended begins again
		if err := talk(t, c, "hello"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the silent flow has ended", func() bool { return p.Stats().Active == 0 })
	}
}

func TestUpdateEndsFlows(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := udpServer(t)
	p := openUDP(t, netns, Options{}, addr)
	c := guestUDP(t, netns, addr)
	if err := talk(t, c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := p.Update(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flow is cut", func() bool { return p.Stats().Active == 0 })
	if err := talk(t, c, "hello"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the update: %v", err)
	}
	if n := p.Stats().Refused[Revoked]; n != 1 {
		t.Errorf("%d revoked", n)
	}
}

func TestTotalOfDatagrams(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := udpServer(t)
	p := openUDP(t, netns, Options{Total: 1000}, addr)
	c := guestUDP(t, netns, addr)
	if err := talk(t, c, strings.Repeat("x", 400)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 400)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flow is cut", func() bool { return p.Stats().Refused[Exhausted] > 0 })
	if s := p.Stats(); s.BytesIn+s.BytesOut > 1000 {
		t.Errorf("%+v", s)
	}
}

func TestDestinationOfMalformedControl(t *testing.T) {
	for _, bad := range [][]byte{nil, {1}, make([]byte, 16), make([]byte, 256)} {
		if to, ok := destination(bad); ok {
			t.Errorf("%v leads to %v", bad, to)
		}
	}
}
