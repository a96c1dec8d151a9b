package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The ways in which a guest does not take a connection, to be wrapped.
var (
	ErrNotListening = errors.New("nothing listens there")
	ErrNotAccepting = errors.New("nothing has accepted the connection")
)

// Connect connects to a port that the guest listens at, on the guest's own loopback
// (IPv4 before IPv6), and returns the connected socket, which blocks; it is the
// caller's. The socket was made in the guest's namespace, so no address of the host is
// involved, and nobody relays: what is sent goes from process to process, and the
// kernel closes it when either end does. The guest sees a peer at its own loopback that
// is not itself: it cannot connect there.
//
// Whether the port is one that the guest may listen at is the caller's to know. The namespace
// has to be prepared ([Proxy.Prepare]).
func (p *Proxy) Connect(ctx context.Context, port uint16) (*os.File, error) {
	leave, err := p.enterConnect()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(os.ErrClosed) })()
	return connectInside(ctx, port, func(family int) (fd int, err error) {
		p.change.Lock() // Close closes the namespace under it
		defer p.change.Unlock()
		return socketInside(p.netns, family)
	})
}

// ConnectInside is [Proxy.Connect] for a guest whose namespace another process serves.
func ConnectInside(ctx context.Context, netns *os.File, port uint16) (*os.File, error) {
	return connectInside(ctx, port, func(family int) (fd int, err error) { return socketInside(netns, family) })
}

// connectInside tries the guest's loopbacks with sockets that open made in its namespace.
func connectInside(ctx context.Context, port uint16, open func(family int) (fd int, err error)) (*os.File, error) {
	var errs []error
	for _, loopback := range []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: netip.IPv6Loopback().As16()},
	} {
		f, err := connectSocket(ctx, loopback, open)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, ErrNotListening) {
			break
		}
	}
	// Where there is no IPv6, what is said of IPv4 counts.
	return nil, fmt.Errorf("connecting to port %d of the guest: %w", port, errs[0])
}

// socketInside makes a socket in the namespace. Only that needs a thread there.
func socketInside(netns *os.File, family int) (fd int, err error) {
	err = inside(netns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// enterConnect takes what a connection that is being made may take of the process.
func (p *Proxy) enterConnect() (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, fmt.Errorf("connecting to the guest: %w", os.ErrClosed)
	case p.connecting >= p.maxConns || !p.opts.Budget.take(len(p.conns)+p.connecting):
		return nil, fmt.Errorf("connecting to the guest: %d connections to it are being made already: wait for some of them", p.connecting)
	}
	p.connecting++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.connecting--
		p.opts.Budget.give()
	}, nil
}

// connectSocket makes a socket and connects it.
func connectSocket(ctx context.Context, where unix.Sockaddr, open func(family int) (fd int, err error)) (*os.File, error) {
	family := unix.AF_INET
	if _, ok := where.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := open(family)
	if err != nil {
		return nil, fmt.Errorf("opening a socket in its network namespace: %w", err)
	}
	if err := unix.Connect(fd, where); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return nil, notConnected(err)
	}
	pending := os.NewFile(uintptr(fd), "connection to the guest")
	defer pending.Close()
	defer context.AfterFunc(ctx, func() { _ = pending.SetDeadline(time.Unix(1, 0)) })()
	if err := awaitConnected(pending); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: %w", ErrNotAccepting, cause)
		}
		return nil, err
	}
	return blocking(pending)
}

// awaitConnected waits until the kernel has an answer for a socket that connects.
func awaitConnected(pending *os.File) error {
	raw, err := pending.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	waited := raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			failed = errors.Join(err, notConnected(unix.Errno(code)))
			return true
		}
		peer, err := unix.Getpeername(int(fd))
		if err != nil {
			return false
		}
		// Where nobody listens, a socket whose own port is the one it connects to meets itself.
		if own, err := unix.Getsockname(int(fd)); err == nil && sameAddress(own, peer) {
			// By a reset, so that nothing of it is in the way of who listens there next.
			failed = errors.Join(ErrNotListening, unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		}
		return true
	})
	return errors.Join(waited, failed)
}

func notConnected(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		return ErrNotListening
	}
	return err
}

func sameAddress(a, b unix.Sockaddr) bool {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		b, ok := b.(*unix.SockaddrInet4)
		return ok && a.Port == b.Port && a.Addr == b.Addr
	case *unix.SockaddrInet6:
		b, ok := b.(*unix.SockaddrInet6)
		return ok && a.Port == b.Port && a.Addr == b.Addr
	}
	return false
}

// blocking returns a copy of a descriptor, as whoever gets it expects one.
func blocking(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var out *os.File
	var failed error
	err = raw.Control(func(fd uintptr) {
		var copied int
		if copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed != nil {
			return
		}
		if failed = unix.SetNonblock(copied, false); failed != nil {
			_ = unix.Close(copied)
			return
		}
		out = os.NewFile(uintptr(copied), f.Name())
	})
	return out, errors.Join(err, failed)
}
