package netproxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// newNetns makes an empty network namespace, which lasts as long as the test.
func newNetns(t testing.TB) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: CAP_SYS_ADMIN to make a network namespace")
	}
	home, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	var made *os.File
	err = inside(home, func() error { // which also brings the thread back
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		made, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

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

func open(t testing.TB, netns *os.File, opts Options, texts ...string) *Proxy {
	t.Helper()
	p, err := Open(netns, endpoints(t, texts...), opts)
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

// guestDial connects as a guest does, from inside the namespace.
func guestDial(netns *os.File, addr string) (conn *net.TCPConn, err error) {
	err = inside(netns, func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

func mustDial(t testing.TB, netns *os.File, addr string) *net.TCPConn {
	t.Helper()
	c, err := guestDial(netns, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// server listens on the host and serves each connection with f, which need not
// close it.
func server(t testing.TB, addr string, f func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[net.Conn]bool)
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			served.Go(func() {
				defer func() {
					c.Close()
					mu.Lock()
					defer mu.Unlock()
					delete(conns, c)
				}()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		served.Wait()
	})
	return l.Addr().String()
}

// echo copies through memory: net's own splice would keep pipes open until the
// next garbage collection, and spoil the count of descriptors.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

// wantEcho checks that the connection reaches an echo server.
func wantEcho(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatalf("writing: %v", err)
	}
	var got [5]byte
	if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "hello" {
		t.Fatalf("echo %q, %v", got, err)
	}
}

// wantReset checks that the peer resets the connection and sends nothing.
func wantReset(t testing.TB, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%d bytes, then %v, want ECONNRESET", n, err)
	}
}

// wantRefused checks that a connection is accepted and reset at once.
func wantRefused(t testing.TB, netns *os.File, addr string) {
	t.Helper()
	c, err := guestDial(netns, addr)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		wantReset(t, c)
		return
	}
	if !errors.Is(err, unix.ECONNRESET) { // Go looked at the connection too late
		t.Errorf("%s: %v, want ECONNRESET", addr, err)
	}
}

// eventually waits for a condition that another goroutine or the kernel brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("after 5 seconds still not: %s", what)
}

// watchLeaks fails the test if, when it is over, there are more goroutines or
// descriptors than now, or a thread in another network namespace.
func watchLeaks(t testing.TB) {
	t.Helper()
	if _, err := home(); err != nil { // stays open
		t.Fatal(err)
	}
	// The poller has descriptors of its own, from the first socket on.
	warm, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	warm.Close()
	fds, goroutines := countFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "as many descriptors and goroutines as before", func() bool {
			return countFDs(t) <= fds && runtime.NumGoroutine() <= goroutines
		})
		if t.Failed() {
			buf := make([]byte, 1<<20)
			t.Logf("%d descriptors (%d before), %d goroutines (%d before)\n%s\n%s",
				countFDs(t), fds, runtime.NumGoroutine(), goroutines, describeFDs(), buf[:runtime.Stack(buf, true)])
		}
		wantThreadsAtHome(t)
	})
}

func countFDs(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func describeFDs() string {
	var all []string
	paths, _ := filepath.Glob("/proc/self/fd/*")
	for _, path := range paths {
		target, _ := os.Readlink(path)
		all = append(all, target)
	}
	return strings.Join(all, " ")
}

func wantThreadsAtHome(t testing.TB) {
	t.Helper()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "every thread in the host's network namespace", func() bool {
		all, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, path := range all {
			if ns, err := os.Readlink(path); err == nil && ns != home {
				return false
			}
		}
		return len(all) > 0
	})
}

func addrPort(addr string) netip.AddrPort { return netip.MustParseAddrPort(addr) }
