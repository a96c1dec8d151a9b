package netproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// closing is why Close cuts a connection; it is nobody's refusal.
const closing Reason = "closing"

// conn is one connection of the guest, or a flow of datagrams.
type conn struct {
	guest    net.Conn
	protocol endpoint.Protocol
	dest     netip.AddrPort
	name     string          // that dest stands for, or ""
	private  bool            // the name may lead to private addresses
	buffer   int             // bytes of each of its sockets' buffers
	ctx      context.Context // ends when the connection is cut
	cancel   context.CancelFunc
	last     atomic.Int64 // when bytes moved, in nanoseconds of the Unix clock

	// Guarded by Proxy.mu.
	host   net.Conn // nil until it is dialled
	reason Reason   // why it was cut, or ""
}

// cut counts why, and resets the connection, whatever it is doing. The first
// reason is the one that counts: others come from it. The caller holds mu.
func (p *Proxy) cut(c *conn, why Reason) {
	if c.reason != "" {
		return
	}
	c.reason = why
	if why != closing {
		p.refused[why]++
	}
	c.cancel()
	reset(c.guest)
	if c.host != nil {
		reset(c.host)
	}
}

// reset closes a connection such that the peer gets ECONNRESET, not end of file.
func reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0) // fails only if the socket is closed already
	}
	c.Close()
}

// accept serves the connections of one listener until it is closed.
func (p *Proxy) accept(l net.Listener) {
	const pause = 10 * time.Millisecond
	for {
		c, err := l.Accept()
		if err == nil {
			p.served.Go(func() { p.serve(c.(*net.TCPConn)) })
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// The host is short of descriptors or memory; the guest waits in the backlog.
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// serve is the life of one connection.
func (p *Proxy) serve(guest *net.TCPConn) {
	local, ok := guest.LocalAddr().(*net.TCPAddr)
	if !ok { // the kernel no longer knows
		reset(guest)
		return
	}
	dest := local.AddrPort()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	c := &conn{guest: guest, protocol: endpoint.TCP, ctx: ctx, cancel: cancel, dest: netip.AddrPortFrom(dest.Addr().Unmap().WithZone(""), dest.Port())}
	var failed error
	if p.admit(c) {
		_ = guest.SetReadBuffer(c.buffer) // fails only if it is cut already
		_ = guest.SetWriteBuffer(c.buffer)
		reason, err := p.handle(c)
		p.release(c, reason)
		failed = err
	}
	if c.reason != "" && c.reason != closing {
		p.opts.OnRefuse(Refusal{Protocol: c.protocol, Dest: c.dest, Name: c.name, Reason: c.reason, Err: failed})
	}
}

// handle serves an admitted connection to its end.
func (p *Proxy) handle(c *conn) (Reason, error) {
	if c.dest == endpoint.Resolver() {
		p.serveDNS(c.guest)
		return "", nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, p.opts.DialTimeout)
	defer cancel()
	host, reason, err := p.connect(ctx, c)
	if err != nil {
		return reason, err
	}
	return p.join(c, host)
}

// admit judges the connection and enters it into the books, or cuts it.
func (p *Proxy) admit(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted++
	var allowed bool
	c.name, c.private, allowed = p.judge(c.protocol, c.dest)
	switch {
	case p.closed:
		p.cut(c, closing)
	case !allowed:
		p.cut(c, NotAllowed)
	case p.quota.exhausted():
		p.cut(c, Exhausted)
	case len(p.conns) >= p.maxConns:
		p.cut(c, TooMany)
	case !p.opts.Budget.take(len(p.conns)):
		p.cut(c, NoResources)
	default:
		c.buffer = bufferSize(p.memory, p.maxConns, len(p.conns))
		p.conns[c] = true
		return true
	}
	return false
}

// join gives the connection its other end, and moves bytes until both are done.
func (p *Proxy) join(c *conn, host net.Conn) (Reason, error) {
	p.mu.Lock()
	if c.reason != "" { // cut while it was being dialled
		p.mu.Unlock()
		reset(host)
		return "", nil
	}
	c.host = host
	p.mu.Unlock()
	if p.opts.IdleTimeout > 0 {
		defer p.watchIdle(c)()
	}
	err := p.relay(c)
	switch {
	case errors.Is(err, errNoPipe):
		return NoResources, err
	case errors.Is(err, errExhausted):
		return Exhausted, err
	}
	return "", nil // how the peers end their conversation is theirs to know
}

// release takes the connection out of the books. It is closed on both sides then,
// and nobody else will cut it.
func (p *Proxy) release(c *conn, reason Reason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	p.opts.Budget.give()
	if reason != "" {
		p.cut(c, reason)
	}
}

// watchIdle cuts the connection when no byte has moved for IdleTimeout. The
// returned function ends the watch.
func (p *Proxy) watchIdle(c *conn) (stop func() bool) {
	limit := p.opts.IdleTimeout
	c.last.Store(time.Now().UnixNano())
	var timer *time.Timer
	ready := make(chan struct{})
	timer = time.AfterFunc(limit, func() {
		<-ready
		idle := time.Since(time.Unix(0, c.last.Load()))
		if idle < limit {
			timer.Reset(limit - idle)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.conns[c] {
			p.cut(c, Idle)
		}
	})
	close(ready)
	return timer.Stop
}
