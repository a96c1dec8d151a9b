package netproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A socket buffer is what each of a connection's sockets may hold in either direction,
// in bytes (the kernel doubles it for its own book-keeping). Left to the kernel's tuning
// it grows to several MiB, which a guest with a thousand connections to somebody who does
// not read turns into gigabytes of the host's. So the guest's memory is shared among the
// connections that it may have. A relay with larger buffers than 128 KiB sleeps less, and
// is up to twice as fast.
const (
	minBuffer = 64 << 10
	maxBuffer = 512 << 10
	// buffersPerConn: four sockets, two directions, twice what was asked for.
	buffersPerConn = 16
	// firstPart of the memory is what connections that come first share once more: the n-th
	// gets 1/n of it. All of them together stay below twice the memory.
	firstPart = 8
)

// bufferSize is for the connection that comes when open others are there, of conns that
// there may be.
func bufferSize(memory int64, conns, open int) int {
	share := max(memory/int64(conns), memory/firstPart/int64(open+1))
	return int(min(max(share/buffersPerConn, minBuffer), maxBuffer))
}

// setBuffers fixes the buffers of a socket. Where net.core.rmem_max or wmem_max is less, that much is what they get.
func setBuffers(fd, size int) error {
	return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size))
}

// home is this process's own network namespace, and stays open.
var home = sync.OnceValues(func() (int, error) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening this process's network namespace: %w", err)
	}
	return fd, nil
})

// stay is this thread's in a network namespace.
type stay struct {
	netns *os.File
	there bool
}

// enter begins it, if it has not begun. The thread serves nobody else until leave.
func (s *stay) enter() error {
	if s.there {
		return nil
	}
	if _, err := home(); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(s.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the guest's network namespace: %w", err)
	}
	s.there = true
	return nil
}

// leave ends it, if it has begun.
func (s *stay) leave() {
	if !s.there {
		return
	}
	home, _ := home()
	// Only for lack of kernel memory; whatever came next would be in the guest's namespace.
	for unix.Setns(home, unix.CLONE_NEWNET) != nil {
		time.Sleep(time.Millisecond)
	}
	s.there = false
	runtime.UnlockOSThread()
}

// inside runs f on a thread that is in the network namespace. It returns when the thread is
// back.
func inside(netns *os.File, f func() error) error {
	there := stay{netns: netns}
	defer there.leave()
	if err := there.enter(); err != nil {
		return err
	}
	return f()
}

// namespace is the guest's while something in it changes. Sockets belong to it wherever they
// are used, so a thread goes there only to open what is not open yet, and once for all of it.
// Between changes nothing is, but for what [Options.Ahead] has opened.
type namespace struct {
	stay
	netlink routes
	tcp     *net.TCPListener // over IPv4; it listens nowhere yet
}

// routes are those of the namespace.
func (n *namespace) routes() (_ routes, err error) {
	if n.netlink.fd < 0 {
		if err = n.enter(); err == nil {
			n.netlink, err = openRoutes()
		}
	}
	return n.netlink, err
}

// prepare brings the loopback up and sets what the namespace's sockets are like.
func (n *namespace) prepare() (ipv6 bool, err error) {
	if err := n.enter(); err != nil {
		return false, err
	}
	routes, err := n.routes()
	if err == nil {
		err = errors.Join(routes.loopbackUp(), boundBuffers(), plainCongestion())
	}
	return hasIPv6(), err
}

// spare opens what most endpoints need.
func (n *namespace) spare() (err error) {
	if err = n.enter(); err == nil {
		n.tcp, err = openTCP(false)
	}
	return err
}

// listen opens a listener.
func (n *namespace) listen(s socket) (listener, error) {
	if !s.udp && !s.ipv6 && n.tcp != nil {
		l := n.tcp
		n.tcp = nil
		return listen(l, s)
	}
	if err := n.enter(); err != nil {
		return nil, err
	}
	if s.udp {
		return listenUDP(s)
	}
	l, err := openTCP(s.ipv6)
	if err != nil {
		return nil, err
	}
	return listen(l, s)
}

// rest ends a change.
func (n *namespace) rest() {
	n.leave()
	n.netlink.close()
	n.netlink = routes{-1}
	if n.tcp != nil {
		_ = n.tcp.Close()
		n.tcp = nil
	}
}

// boundBuffers keeps the kernel from growing the buffers of the guest's own sockets:
// the limits of tcp belong to the network namespace of the thread that writes them.
// Receiving is faster with small ones, as what is read is still in the cache; sending
// wants four of the largest segments, or who sends sleeps after each.
func boundBuffers() error {
	for name, most := range map[string]int{"tcp_rmem": 2 * minBuffer, "tcp_wmem": 4 * minBuffer} {
		if err := setTCP(name, fmt.Sprintf("4096 %d %d", minBuffer, most)); err != nil {
			return fmt.Errorf("bounding the guest's socket buffers: %w", err)
		}
	}
	return nil
}

// plainCongestion takes the congestion control that every kernel has: there is no network
// here to be congested, and one that paces what is sent (bbr) halves the speed of a
// connection. The namespace would have the host's.
func plainCongestion() error {
	if err := setTCP("tcp_congestion_control", "reno"); err != nil {
		return fmt.Errorf("choosing how the guest's sockets send: %w", err)
	}
	return nil
}

func setTCP(name, value string) error {
	// Not by os.WriteFile, which would first make a file to wait for.
	path := "/proc/sys/net/ipv4/" + name
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// isLocalAnyway reports whether loopback already has the block's addresses.
func isLocalAnyway(block netip.Prefix) bool {
	return block.Addr().Is4() && block.Bits() >= 8 && block.Addr().IsLoopback() ||
		block == netip.PrefixFrom(netip.IPv6Loopback(), 128)
}

// hasIPv6 reports whether the namespace of this thread has IPv6: the kernel may
// have none, or the administrator may have disabled it.
func hasIPv6() bool {
	fd, err := unix.Open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var disabled [2]byte
	n, err := unix.Read(fd, disabled[:])
	return err == nil && string(disabled[:n]) == "0\n"
}
