package netproxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// errWrite marks a failure of the side that is written to.
var errWrite = errors.New("writing")

// relay moves bytes both ways until both directions have ended, and closes both
// connections: as the peers did when both ended in order, else by a reset.
func (p *Proxy) relay(c *conn) error {
	up := make(chan error, 1)
	go func() { up <- p.direction(c, c.host, c.guest, &p.bytesOut) }()
	down := p.direction(c, c.guest, c.host, &p.bytesIn)
	if err := errors.Join(<-up, down); err != nil {
		reset(c.guest)
		reset(c.host)
		return err
	}
	c.guest.Close()
	c.host.Close()
	return nil
}

// direction moves bytes from src to dst until src says that there are no more, and
// says so to dst.
//
// A failure to read means that src was reset: both are, at once. A failure to
// write means that dst was reset; what dst had sent before is still to be
// delivered, and the other direction, which reads from dst, ends by itself.
func (p *Proxy) direction(c *conn, dst, src net.Conn, count *atomic.Uint64) error {
	err := p.pipes.copy(dst, src, meter{p, c, count})
	if err == nil {
		return closeWrite(dst)
	}
	if !errors.Is(err, errWrite) {
		reset(src)
		reset(dst)
	}
	return err
}

// closeWrite says end of file to the peer. That the peer has gone meanwhile is no
// failure: it was told everything.
func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return c.Close()
	}
	if err := half.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return err
	}
	return nil
}

// copy moves bytes from src to dst until end of file, without looking at them when
// both are sockets. m pays for each piece before it is written and is told of it
// afterwards. A failure to write wraps errWrite.
func (pool *pipePool) copy(dst, src net.Conn, m meter) error {
	from, err := rawConn(src)
	if err != nil {
		return copyThrough(dst, src, m)
	}
	to, err := rawConn(dst)
	if err != nil {
		return copyThrough(dst, src, m)
	}
	for {
		pi, n, err := pool.fill(from, m.p.quota.piece(min(2*m.c.buffer, pipeSize)))
		if err != nil || n == 0 {
			return err
		}
		if err := m.p.quota.spend(n); err != nil {
			pi.close()
			return err
		}
		if err := pi.drain(to, n); err != nil {
			pi.close()
			return errors.Join(errWrite, err)
		}
		pool.put(pi)
		m.moved(n)
	}
}

// rawConn returns the socket of a connection that splice works with.
func rawConn(c net.Conn) (syscall.RawConn, error) {
	switch c := c.(type) {
	case *net.TCPConn:
		return c.SyscallConn()
	case *net.UnixConn:
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// copyThrough copies through memory: [Options.Dial] may return any connection.
func copyThrough(dst, src net.Conn, m meter) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf[:m.p.quota.piece(len(buf))])
		if n > 0 {
			if err := m.p.quota.spend(n); err != nil {
				return err
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return errors.Join(errWrite, err)
			}
			m.moved(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
