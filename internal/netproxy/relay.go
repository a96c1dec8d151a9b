package netproxy

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

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
	err := p.pipes.copy(dst, src, func(n int) {
		count.Add(uint64(n))
		if p.opts.IdleTimeout > 0 {
			c.last.Store(time.Now().UnixNano())
		}
	})
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
// both are sockets. moved is told of each piece. A failure to write wraps errWrite.
func (pool *pipePool) copy(dst, src net.Conn, moved func(int)) error {
	from, err := rawConn(src)
	if err != nil {
		return copyThrough(dst, src, moved)
	}
	to, err := rawConn(dst)
	if err != nil {
		return copyThrough(dst, src, moved)
	}
	for {
		pi, n, err := pool.fill(from)
		if err != nil || n == 0 {
			return err
		}
		if err := pi.drain(to, n); err != nil {
			pi.close()
			return errors.Join(errWrite, err)
		}
		pool.put(pi)
		moved(n)
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
func copyThrough(dst, src net.Conn, moved func(int)) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return errors.Join(errWrite, err)
			}
			moved(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
