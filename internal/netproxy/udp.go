package netproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// Datagrams have no connections, so the proxy makes some: a flow is a port of the guest
// and a destination. Its first datagram comes to a listener; then a socket in the guest's
// namespace, bound to the destination and connected to the guest's port, gets the others,
// and sends the answers from where the guest expects them. A flow counts as a connection,
// and ends when nothing was sent for a while. Datagrams get lost where a stream would
// wait.
const (
	// maxFlows bounds the flows of a guest, each of which has buffers for two datagrams.
	maxFlows = 128
	// maxDatagram is the largest there is, less the headers.
	maxDatagram = 65507
	// flowIdle is after how long without a datagram a flow ends.
	flowIdle = 60 * time.Second
)

// flow is what tells the datagrams of a guest apart.
type flow struct{ from, to netip.AddrPort }

// listenUDP opens a socket that gets datagrams to every local address at port, and is
// told where they were sent to.
func listenUDP(s socket) (*net.UDPConn, error) {
	level, option := unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR
	if s.ipv6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	c, err := socketUDP(s.where(), netip.AddrPort{}, func(fd int) error { return unix.SetsockoptInt(fd, level, option, 1) })
	if err != nil {
		return nil, fmt.Errorf("listening for datagrams at port %d in the guest's network namespace: %w", s.port, err)
	}
	return c, nil
}

// socketUDP opens a socket of this thread's namespace, bound, and connected if to is
// valid.
func socketUDP(bound, to netip.AddrPort, prepare func(fd int) error) (*net.UDPConn, error) {
	family := unix.AF_INET
	if bound.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "datagrams")
	defer f.Close() // net.FilePacketConn has a copy
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 2*minBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*minBuffer))
	if err == nil && prepare != nil {
		err = prepare(fd)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(bound))
	}
	if err == nil && to.IsValid() {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil {
		return nil, err
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// freebind permits to bind to an address that only a route makes local: for IPv6 the
// kernel asks for one of an interface.
func freebind(a netip.AddrPort) func(fd int) error {
	if a.Addr().Is4() {
		return nil
	}
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) }
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// receive starts a flow for each datagram of one that there is not yet, until the
// listener is closed.
func (p *Proxy) receive(l *net.UDPConn) {
	buf, control := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, size, _, from, err := l.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		to, ok := destination(control[:size])
		if err != nil || !ok {
			continue
		}
		key := flow{netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port()), to}
		if p.claim(key) {
			first := append([]byte(nil), buf[:n]...)
			p.served.Go(func() { p.serveFlow(key, first) })
		}
	}
}

// claim enters a flow into the books. It fails for one that is there: its socket gets
// the datagrams as soon as it is connected.
func (p *Proxy) claim(key flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed || p.flows[key]:
		return false
	case len(p.flows) >= min(maxFlows, p.maxConns):
		p.refused[TooMany]++
		return false
	}
	p.flows[key] = true
	return true
}

// destination reads where a datagram was sent to.
func destination(control []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_ORIGDSTADDR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR
		switch {
		case v4 && len(m.Data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:8])), binary.BigEndian.Uint16(m.Data[2:])), true
		case v6 && len(m.Data) >= 24:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:24])).Unmap(), binary.BigEndian.Uint16(m.Data[2:])), true
		}
	}
	return netip.AddrPort{}, false
}

// serveFlow is the life of one flow.
func (p *Proxy) serveFlow(key flow, first []byte) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.flows, key)
	}()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var guest *net.UDPConn
	err := inside(p.netns, func() (err error) {
		guest, err = socketUDP(key.to, key.from, freebind(key.to))
		return err
	})
	if err != nil {
		p.opts.OnRefuse(Refusal{Protocol: endpoint.UDP, Dest: key.to, Reason: NoResources, Err: err})
		return
	}
	defer guest.Close()
	c := &conn{guest: guest, ctx: ctx, cancel: cancel, dest: key.to, protocol: endpoint.UDP}
	if p.admit(c) {
		reason, err := p.exchange(c, key, first)
		p.release(c, reason)
		if c.reason != "" && c.reason != closing {
			p.opts.OnRefuse(Refusal{Protocol: c.protocol, Dest: c.dest, Name: c.name, Reason: c.reason, Err: err})
		}
		return
	}
	if c.reason != closing {
		p.opts.OnRefuse(Refusal{Protocol: c.protocol, Dest: c.dest, Name: c.name, Reason: c.reason})
	}
}

// exchange moves datagrams both ways until the flow is idle or cut.
func (p *Proxy) exchange(c *conn, key flow, first []byte) (Reason, error) {
	ctx, cancel := context.WithTimeout(c.ctx, p.opts.DialTimeout)
	defer cancel()
	host, reason, err := p.connect(ctx, c)
	if err != nil {
		return reason, err
	}
	defer host.Close()
	p.mu.Lock()
	cut := c.reason != ""
	c.host = host
	p.mu.Unlock()
	if cut {
		return "", nil
	}
	c.last.Store(time.Now().UnixNano())
	up, down := meter{p, c, &p.bytesOut}, meter{p, c, &p.bytesIn}
	if err := up.send(host, first); err != nil {
		return Exhausted, err
	}
	done := make(chan error, 1)
	go func() { done <- p.datagrams(down, c.guest, host, nil) }()
	err = p.datagrams(up, host, c.guest, func(from netip.AddrPort) bool { return from == key.from })
	c.guest.Close()
	host.Close()
	if err = errors.Join(err, <-done); errors.Is(err, errExhausted) {
		return Exhausted, err
	}
	return "", nil // a flow has no end that could fail
}

// send pays for a datagram and sends it. Only that it could not be paid for is an
// error: a datagram may get lost.
func (m meter) send(to net.Conn, datagram []byte) error {
	if err := m.p.quota.spend(len(datagram)); err != nil {
		return err
	}
	if _, err := to.Write(datagram); err == nil {
		m.c.last.Store(time.Now().UnixNano())
		m.moved(len(datagram))
	}
	return nil
}

// datagrams moves them one way until the flow is idle or closed. expected says whose
// are taken: before it was connected, a socket may have got others'.
func (p *Proxy) datagrams(m meter, to, from net.Conn, expected func(netip.AddrPort) bool) error {
	buf := make([]byte, maxDatagram)
	for {
		_ = from.SetReadDeadline(time.Unix(0, m.c.last.Load()).Add(p.flowIdle()))
		n, err := readDatagram(from, buf, expected)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(time.Unix(0, m.c.last.Load())) >= p.flowIdle() {
				to.Close()
				return nil
			}
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EMSGSIZE):
			// of a datagram that was sent; another may arrive
		case err != nil:
			to.Close()
			return nil
		case n >= 0:
			if err := m.send(to, buf[:n]); err != nil {
				to.Close()
				from.Close()
				return err
			}
		}
	}
}

func (p *Proxy) flowIdle() time.Duration {
	if p.opts.IdleTimeout > 0 {
		return min(p.opts.IdleTimeout, flowIdle)
	}
	return flowIdle
}

// readDatagram reads one; n is -1 for one of somebody else.
func readDatagram(from net.Conn, buf []byte, expected func(netip.AddrPort) bool) (n int, err error) {
	c, ok := from.(*net.UDPConn)
	if !ok || expected == nil {
		return from.Read(buf)
	}
	n, sender, err := c.ReadFromUDPAddrPort(buf)
	if err == nil && !expected(netip.AddrPortFrom(sender.Addr().Unmap().WithZone(""), sender.Port())) {
		return -1, nil
	}
	return n, err
}
