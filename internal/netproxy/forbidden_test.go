package netproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownGroup is the number of this process's cgroup.
func ownGroup(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut("\n"+string(text), "\n0::")
	path, _, _ = strings.Cut(path, "\n")
	var st unix.Stat_t
	for _, top := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if err = unix.Stat(top+path, &st); err == nil {
			return st.Ino
		}
	}
	t.Fatalf("the cgroup %s: %v", path, err)
	return 0
}

// pair is a connection inside a network namespace.
type pair struct{ client, server net.Conn }

func connectAt(t *testing.T, netns *os.File, network, address string) (p pair) {
	t.Helper()
	err := inside(netns, func() error {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		l, err := config.Listen(context.Background(), network, address)
		if err != nil {
			return err
		}
		defer l.Close()
		// On this thread: a dialer without fallback makes its socket here.
		fd, err := unix.Socket(family(network), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		if err := unix.Connect(fd, sockaddr(at)); err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "client")
		defer f.Close()
		if p.client, err = net.FileConn(f); err != nil {
			return err
		}
		p.server, err = l.Accept()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.client.Close(); p.server.Close() })
	return p
}

func family(network string) int {
	if network == "tcp6" {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (p pair) alive(t *testing.T) bool {
	t.Helper()
	if _, err := p.client.Write([]byte("x")); err != nil {
		return false
	}
	_ = p.server.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := io.ReadFull(p.server, make([]byte, 1))
	return err == nil
}

// Connections of the cgroup to what is not allowed are cut, others are not, and neither
// are those of other cgroups in the same network.
func TestForbidden(t *testing.T) {
	netns := newNetns(t)
	if err := inside(netns, func() error {
		r, err := openRoutes()
		if err != nil {
			return err
		}
		defer r.close()
		return r.loopbackUp()
	}); err != nil {
		t.Fatal(err)
	}
	allowed, forbidden := connectAt(t, netns, "tcp4", "127.0.0.1:0"), connectAt(t, netns, "tcp4", "127.0.0.1:999")
	six := hasSix(netns)
	var forbidden6 pair
	if six {
		forbidden6 = connectAt(t, netns, "tcp6", "[::1]:998")
	}
	datagrams := map[int]int{} // by port
	for _, port := range []int{997, 2000} {
		if err := inside(netns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			datagrams[port] = fd
			return errors.Join(err, unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}))
		}); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(datagrams[port])
	}
	eps := endpoints(t, "127.0.0.1:1024-65535", "[::1]:1024-65535")
	udp := endpoints(t, "127.0.0.1:2000")
	udp[0].UDP = true
	eps = append(eps, udp...)

	f, err := FindForbidden(netns, map[uint64]bool{ownGroup(t) + 1_000_000: true}, eps, true)
	if err != nil || len(f.sockets) != 0 {
		t.Errorf("of another cgroup: %+v, %v", f, err)
	}
	if f, err = FindForbidden(netns, map[uint64]bool{ownGroup(t): true}, eps, true); err != nil {
		t.Fatal(err)
	}
	if !forbidden.alive(t) {
		t.Error("a connection was cut by looking at it")
	}
	for range 2 { // the second time they are gone, which is no error
		if err := f.Cut(); err != nil {
			t.Error(err)
		}
	}
	if !allowed.alive(t) || forbidden.alive(t) || six && forbidden6.alive(t) {
		t.Errorf("allowed %v, forbidden %v and %v", allowed.alive(t), forbidden.alive(t), six && forbidden6.alive(t))
	}
	for port, fd := range datagrams {
		_, err := unix.Write(fd, []byte("x"))
		if cut := errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ); cut != (port == 997) {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func hasSix(netns *os.File) (has bool) {
	_ = inside(netns, func() error { has = hasIPv6(); return nil })
	return has
}

func TestSocketMessages(t *testing.T) {
	for _, m := range [][]byte{nil, make([]byte, diagMessage-1), make([]byte, diagMessage), append(make([]byte, diagMessage), 1, 0, cgroupID, 0)} {
		if _, _, err := parseSocket(m, unix.IPPROTO_TCP); err == nil {
			t.Errorf("%d bytes: no error", len(m))
		}
	}
	closed := make([]byte, diagMessage)
	closed[1] = finWait2
	if _, group, err := parseSocket(closed, unix.IPPROTO_TCP); group != 0 || err != nil {
		t.Errorf("%d, %v", group, err)
	}
}
