package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// maxAddresses is how many addresses of a name are tried. Whoever answers for the
// name decides how many there are.
const maxAddresses = 8

// connect makes the host's side of a connection.
func (p *Proxy) connect(ctx context.Context, c *conn) (net.Conn, Reason, error) {
	addrs := []netip.Addr{c.dest.Addr()}
	if c.name != "" {
		var reason Reason
		var err error
		if addrs, reason, err = p.resolve(ctx, c); err != nil {
			return nil, reason, err
		}
	}
	host, err := p.dialFirst(ctx, c, addrs)
	if err != nil {
		return nil, Unreachable, err
	}
	return host, "", nil
}

// resolve returns the addresses of the connection's name that may be dialled.
func (p *Proxy) resolve(ctx context.Context, c *conn) ([]netip.Addr, Reason, error) {
	found, err := p.opts.Resolve(ctx, c.name)
	if err != nil {
		return nil, Unresolved, err
	}
	var good []netip.Addr
	var bad []string
	for _, addr := range found[:min(len(found), maxAddresses)] {
		addr = addr.Unmap()
		if reason := endpoint.RefuseResolved(addr, c.private); reason != "" {
			bad = append(bad, fmt.Sprintf("%s (%s)", addr, reason))
			continue
		}
		good = append(good, addr)
	}
	switch {
	case len(good) > 0:
		return good, "", nil
	case len(bad) == 0:
		return nil, Unresolved, errors.New("the name has no address")
	}
	return nil, Rebound, fmt.Errorf("the name resolved to %s, where a name must not lead: if that is meant, allow the address itself: %q, or the name with private: true",
		strings.Join(bad, ", "), netip.AddrPortFrom(found[0].Unmap(), c.dest.Port()))
}

// dialFirst connects to the first address that answers. Each gets an equal share
// of the time that is left, but not less than two seconds.
func (p *Proxy) dialFirst(ctx context.Context, c *conn, addrs []netip.Addr) (net.Conn, error) {
	const least = 2 * time.Second
	network := "tcp"
	if c.protocol == endpoint.UDP {
		network = "udp"
	}
	dial := p.opts.Dial
	if dial == nil {
		dial = c.dial
	}
	var errs []error
	for i, addr := range addrs {
		share := p.opts.DialTimeout
		if deadline, ok := ctx.Deadline(); ok {
			share = max(time.Until(deadline)/time.Duration(len(addrs)-i), least)
		}
		attempt, cancel := context.WithTimeout(ctx, share)
		host, err := dial(attempt, network, netip.AddrPortFrom(addr, c.dest.Port()).String())
		cancel()
		if err == nil {
			return host, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dial connects from the host's network, with buffers of the connection's size. How to
// send to other machines is the host's to say, but not to this one: see plainCongestion.
func (c *conn) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		control := raw.Control(func(fd uintptr) {
			err = setBuffers(int(fd), c.buffer)
			if c.protocol == endpoint.TCP && to.Addr().IsLoopback() {
				err = errors.Join(err, unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"))
			}
		})
		return errors.Join(control, err)
	}}
	return dialer.DialContext(ctx, network, addr)
}
