package netproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guestListen listens as a guest does, from inside the namespace.
func guestListen(t *testing.T, netns *os.File, addr string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	err := inside(netns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// portOf returns the port of a listener.
func portOf(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// hostConn connects to the guest, and fails the test if that fails.
func hostConn(t *testing.T, p *Proxy, port uint16) net.Conn {
	t.Helper()
	f, err := p.Connect(within(t, 10*time.Second), port)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// openPrepared is open for a guest that listens and has no endpoints.
func openPrepared(t *testing.T, netns *os.File, opts Options) *Proxy {
	t.Helper()
	p := open(t, netns, opts)
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConnectReachesTheGuest(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := openPrepared(t, netns, Options{})
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		l := guestListen(t, netns, addr)
		served := make(chan net.Addr, 1)
		go func() {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			served <- c.RemoteAddr()
			echo(c)
			c.Close()
		}()
		c := hostConn(t, p, portOf(l))
		wantEcho(t, c)
		if from := (<-served).(*net.TCPAddr); !from.IP.IsLoopback() {
			t.Errorf("%s: the guest sees a client at %v", addr, from)
		}
		// Half-close crosses.
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
			t.Errorf("%s: after the end %q, %v", addr, rest, err)
		}
	}
}

// The port is one of the guest's namespace: the host has nothing there.
func TestConnectIsNotTheHostsOwnPort(t *testing.T) {
	watchLeaks(t)
	p := openPrepared(t, newNetns(t), Options{})
	addr := server(t, "127.0.0.1:0", echo)
	if f, err := p.Connect(within(t, 5*time.Second), addrPort(addr).Port()); !errors.Is(err, ErrNotListening) {
		t.Errorf("connecting to a port at which only the host listens: %v, %v", f, err)
	}
}

// A socket whose own port the kernel chose to be the one that it connects to would meet
// itself: with one port to choose from it always does.
func TestConnectDoesNotMeetItself(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := openPrepared(t, netns, Options{})
	err := inside(netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40000"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if f, err := p.Connect(within(t, 5*time.Second), 40000); !errors.Is(err, ErrNotListening) {
			t.Fatalf("connecting to a port at which nobody listens: %v, %v", f, err)
		}
	}
}

// A guest that does not accept keeps nobody longer than he wants to wait.
func TestConnectToAFullBacklog(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := openPrepared(t, netns, Options{})
	l := guestListen(t, netns, "127.0.0.1:0")
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 1) }); err != nil {
		t.Fatal(err)
	}
	var held []*os.File
	defer func() {
		for _, f := range held {
			f.Close()
		}
	}()
	for range 8 {
		begin := time.Now()
		f, err := p.Connect(within(t, 200*time.Millisecond), portOf(l))
		if err == nil {
			held = append(held, f)
			continue
		}
		if !errors.Is(err, ErrNotAccepting) || !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
			t.Errorf("connecting to a full backlog: %v after %v", err, time.Since(begin))
		}
		return
	}
	t.Errorf("%d connections, and nobody has accepted one", len(held))
}

// What is under way when the guest ends, ends.
func TestConnectEndsWithTheProxy(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p := openPrepared(t, netns, Options{MaxConns: 4})
	l := guestListen(t, netns, "127.0.0.1:0")
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	errs := make(chan error, 16)
	for range cap(errs) {
		waiting.Go(func() {
			f, err := p.Connect(context.Background(), portOf(l))
			if err == nil {
				f.Close()
			}
			errs <- err
		})
	}
	refused := 0
	for err := range errs { // those beyond the limit are refused at once
		if err != nil && strings.Contains(err.Error(), "being made already") {
			refused++
		}
		if refused >= 8 {
			break
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	waiting.Wait()
	if _, err := p.Connect(context.Background(), portOf(l)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("connecting after the end: %v", err)
	}
}
