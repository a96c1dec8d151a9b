package netproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// source sends size bytes and closes.
func source(size int) func(*net.TCPConn) {
	return func(c *net.TCPConn) { _, _ = c.Write(make([]byte, size)) }
}

func TestRate(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	const size, rate = 300 << 10, 1 << 20
	addr := server(t, "127.0.0.1:0", source(size))
	p := open(t, netns, Options{Rate: rate}, addr)
	start := time.Now()
	var all sync.WaitGroup
	for range 3 { // the rate is of all connections together
		c := mustDial(t, netns, addr)
		all.Go(func() {
			if n, err := io.Copy(io.Discard, c); n != size || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	all.Wait()
	// 900 KiB less what may be ahead, at 1 MiB a second; nobody is fast by chance.
	if took := time.Since(start); took < 600*time.Millisecond {
		t.Errorf("%d bytes took %v", 3*size, took)
	}
	p.SetLimits(0, 0, 0, 0)
	c := mustDial(t, netns, addr)
	if n, err := io.Copy(io.Discard, c); n != size || err != nil {
		t.Errorf("without a rate: %d bytes, %v", n, err)
	}
}

// A connection that waits for its turn is cut like any other.
func TestSlowConnectionIsCut(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", source(1<<20))
	p := open(t, netns, Options{Rate: 1 << 10}, addr)
	c := mustDial(t, netns, addr)
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Update(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v", err)
	}
	eventually(t, "the connection is gone", func() bool { return p.Stats().Active == 0 })
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("cutting it took %v", took)
	}
}

func TestTotal(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Total: 1000}, addr)
	one, two := mustDial(t, netns, addr), mustDial(t, netns, addr)
	for range 50 { // 10 bytes each: 5 out, 5 in
		wantEcho(t, one)
		wantEcho(t, two)
	}
	if _, err := one.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	wantReset(t, one)
	eventually(t, "why is counted", func() bool { return p.Stats().Refused[Exhausted] > 0 })
	if s := p.Stats(); s.BytesIn+s.BytesOut != 1000 {
		t.Errorf("%+v", s)
	}
	wantRefused(t, netns, addr)
	p.SetLimits(0, 0, 2000, 0)
	wantEcho(t, mustDial(t, netns, addr))
}
