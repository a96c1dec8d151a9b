package netproxy

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// listener is a *net.TCPListener or a *net.UDPConn.
type listener interface {
	io.Closer
	syscall.Conn
}

// socket is what a listener listens at.
type socket struct {
	udp  bool
	ipv6 bool
	port uint16 // 0: that of every range of ports
}

// where is the address that it is bound to: every local one; or, for what is steered to it,
// one where nobody looks for it.
func (s socket) where() netip.AddrPort {
	addr := netip.IPv4Unspecified()
	switch {
	case s.ipv6 && s.port == 0:
		addr = netip.IPv6Loopback()
	case s.ipv6:
		addr = netip.IPv6Unspecified()
	case s.port == 0:
		addr = endpoint.Resolver().Addr()
	}
	return netip.AddrPortFrom(addr, s.port)
}

// openTCP opens a socket in the namespace of this thread, for listen. Its buffers are left
// alone ([boundBuffers] holds them): fixed ones would bound the window of what it accepts for
// good.
func openTCP(ipv6 bool) (*net.TCPListener, error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // net.FileListener has a copy
	if ipv6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// listen has a socket of openTCP's accept connections. Which of them are served is decided for
// each. The backlog is as long as the kernel allows (net.core.somaxconn): a guest that connects
// a thousand times at once waits for nobody. On an error the socket is closed.
func listen(l *net.TCPListener, s socket) (listener, error) {
	fd, err := descriptor(l)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(s.where())))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, math.MaxInt32))
	}
	if err != nil {
		return nil, fmt.Errorf("listening at port %d in the guest's network namespace: %w", s.port, errors.Join(err, l.Close()))
	}
	return l, nil
}
