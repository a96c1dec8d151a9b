package netproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestConnectionLimit(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{MaxConns: 2}, addr)
	one, two := mustDial(t, netns, addr), mustDial(t, netns, addr)
	wantEcho(t, one)
	wantEcho(t, two)
	wantRefused(t, netns, addr)
	one.Close()
	eventually(t, "a place is free", func() bool { return p.Stats().Active == 1 })
	wantEcho(t, mustDial(t, netns, addr))
	if n := p.Stats().Refused[TooMany]; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
}

func TestIdleTimeout(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{IdleTimeout: 200 * time.Millisecond}, addr)
	busy, idle := mustDial(t, netns, addr), mustDial(t, netns, addr)
	for range 10 {
		wantEcho(t, busy)
		time.Sleep(50 * time.Millisecond)
	}
	wantReset(t, idle)
	wantReset(t, busy) // now it is idle too
	eventually(t, "both are counted", func() bool { return p.Stats().Refused[Idle] == 2 })
}

func TestBackpressure(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	const blocks = 64
	var want [sha256.Size]byte
	{
		h := sha256.New()
		for range blocks {
			h.Write(block)
		}
		copy(want[:], h.Sum(nil))
	}
	sent := make(chan struct{})
	addr := server(t, "127.0.0.1:0", func(c *net.TCPConn) {
		for range blocks {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
		close(sent)
	})
	echoAddr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{}, addr, echoAddr)
	c := mustDial(t, netns, addr)
	var last uint64
	for end := 0; end < 20; end++ { // until nothing has moved for a while
		time.Sleep(10 * time.Millisecond)
		if now := p.Stats().BytesIn; now != last {
			last, end = now, 0
		}
	}
	select {
	case <-sent:
		t.Fatalf("the server sent everything to a guest that does not read")
	default:
	}
	wantEcho(t, mustDial(t, netns, echoAddr)) // others go on
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("the guest got other bytes than were sent")
	}
}

func TestCloseEndsEverything(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	hang := make(chan struct{})
	p := open(t, netns, Options{Dial: func(ctx context.Context, network, a string) (net.Conn, error) {
		if a != addr {
			close(hang)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, a)
	}}, addr, "10.0.0.1:80")
	c, dialling := mustDial(t, netns, addr), mustDial(t, netns, "10.0.0.1:80")
	wantEcho(t, c)
	<-hang
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantReset(t, c)
	wantReset(t, dialling)
	if _, err := guestDial(netns, addr); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
	if err := p.Update(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("updating a closed proxy: %v", err)
	}
	if s := p.Stats(); s.Active != 0 || len(s.Refused) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestManyConnections(t *testing.T) {
	// A machine whose hard limit is 4096 may allow root to raise it.
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur < 8192 {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 8192, Max: max(limit.Max, 8192)})
	}
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{}, addr)
	const many = 1000
	conns := make([]net.Conn, many)
	start := time.Now()
	if err := inside(netns, func() error {
		for i := range conns {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			conns[i] = c
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var all sync.WaitGroup
		for _, c := range conns {
			all.Go(func() {
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				wantEcho(t, c)
			})
		}
		all.Wait()
	}
	// Here: 4 descriptors a connection (guest, proxy twice, server), and no pipe.
	eventually(t, "everything is counted", func() bool {
		s := p.Stats()
		return s.Active == many && s.BytesIn == 3*5*many && len(s.Refused) == 0
	})
	t.Logf("%d connections, three echoes each, in %v; %d descriptors", many, time.Since(start), countFDs(t))
	if fds := countFDs(t); fds > 4*many+2*keepPipes+100 {
		t.Errorf("%d descriptors for %d connections", fds, many)
	}
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "no connection is left", func() bool { return p.Stats().Active == 0 })
}

// The memory of the guest is shared among the connections that it may have, and the
// first ones have more.
func TestBuffersAreShared(t *testing.T) {
	for _, test := range []struct {
		memory      int64
		conns, open int
		want        int
	}{
		{256 << 20, 256, 0, 512 << 10},
		{256 << 20, 256, 7, 256 << 10},
		{256 << 20, 256, 15, 128 << 10},
		{256 << 20, 256, 255, 64 << 10},
		{256 << 20, 64, 63, 256 << 10},
		{8 << 20, 16, 0, 64 << 10},
	} {
		if got := bufferSize(test.memory, test.conns, test.open); got != test.want {
			t.Errorf("%d bytes for %d connections: buffers of %d bytes for one beside %d, want %d", test.memory, test.conns, got, test.open, test.want)
		}
	}
	for conns := 16; conns <= 1024; conns++ {
		memory, sum := int64(conns)<<20, int64(0)
		for open := range conns {
			sum += buffersPerConn * int64(bufferSize(memory, conns, open))
		}
		if sum > 2*memory {
			t.Fatalf("%d connections may hold %d bytes, of a guest with %d", conns, sum, memory)
		}
	}
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Memory: 16 << 20, MaxConns: 16}, addr)
	seen := make(map[*conn]bool)
	next := func(want int) { // opens one more; the kernel doubles what is asked for
		t.Helper()
		wantEcho(t, mustDial(t, netns, addr))
		p.mu.Lock()
		defer p.mu.Unlock()
		for c := range p.conns {
			if seen[c] {
				continue
			}
			seen[c] = true
			for side, socket := range map[string]net.Conn{"host": c.host, "guest": c.guest} {
				for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
					if got := intOption(t, socket, unix.SOL_SOCKET, option); got != 2*want {
						t.Errorf("connection %d, %s, option %d: a buffer of %d bytes, want twice %d", len(seen), side, option, got, want)
					}
				}
			}
		}
	}
	next(128 << 10) // most hosts allow 208 KiB (net.core.rmem_max)
	next(64 << 10)
	p.SetLimits(8, 0, 0, 16<<20)
	next(128 << 10)
	err := inside(netns, func() error {
		for name, want := range map[string]string{"tcp_rmem": "131072", "tcp_wmem": "262144"} {
			text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			if err != nil {
				return err
			}
			if got := strings.Fields(string(text))[2]; got != want {
				t.Errorf("%s: the guest's sockets may have %s bytes, want %s", name, got, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The host may pace what its own connections send; inside a machine that costs half of
// the speed.
func TestNobodyPaces(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{}, addr)
	c := mustDial(t, netns, addr)
	wantEcho(t, c)
	p.mu.Lock()
	defer p.mu.Unlock()
	for own := range p.conns {
		for side, socket := range map[string]net.Conn{"the guest's": c, "the proxy's": own.guest, "the host's": own.host} {
			var name string
			control(t, socket, func(fd int) (err error) {
				name, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
				return err
			})
			if name != "reno" {
				t.Errorf("%s socket sends by %q", side, name)
			}
		}
	}
}

func intOption(t *testing.T, c net.Conn, level, option int) (value int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, level, option)
		return err
	})
	return value
}

func control(t *testing.T, c net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}
