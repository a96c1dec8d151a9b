package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
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

// inside runs f on a thread that is in the network namespace: this one, which serves
// nobody else meanwhile. It returns when the thread is back.
func inside(netns *os.File, f func() error) error {
	home, err := home()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the guest's network namespace: %w", err)
	}
	defer func() {
		// Only for lack of kernel memory; whatever came next would be in the guest's namespace.
		for unix.Setns(home, unix.CLONE_NEWNET) != nil {
			time.Sleep(time.Millisecond)
		}
	}()
	return f()
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

// listen opens a socket that accepts connections to every local address at port.
// Which of them are served is decided for each connection. Its buffers are left alone
// ([boundBuffers] holds them): fixed ones would bound the window of what it accepts for good. Port 0 is for what is
// steered to it: the socket itself is bound where nobody looks for it.
func listen(ipv6 bool, port uint16) (listener, error) {
	network, where := "tcp4", netip.IPv4Unspecified()
	switch {
	case ipv6 && port == 0:
		network, where = "tcp6", netip.IPv6Loopback()
	case ipv6:
		network, where = "tcp6", netip.IPv6Unspecified()
	case port == 0:
		where = endpoint.Resolver().Addr()
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	// On this thread, and so in the guest's namespace, because there is no name to look up.
	// The backlog is as long as the kernel allows (net.core.somaxconn): a guest that
	// connects a thousand times at once waits for nobody.
	l, err := config.Listen(context.Background(), network, net.JoinHostPort(where.String(), strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("listening at port %d in the guest's network namespace: %w", port, err)
	}
	return l.(*net.TCPListener), nil
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
