package netproxy

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// Steer makes connections to ranges of ports find their listeners; enforce.Steer is
// meant. listeners are descriptors of TCP over IPv4 and IPv6 and of UDP over IPv4 and
// IPv6, -1 where there is none. Closing the result ends it.
type Steer func(netns *os.File, entries []endpoint.Entry, listeners [4]int) (io.Closer, error)

// hasRanges reports whether the list needs steering: a port of its own listener is
// enough for every other rule.
func hasRanges(list endpoint.List) bool {
	for _, protocol := range []endpoint.Protocol{endpoint.TCP, endpoint.UDP} {
		for _, ipv6 := range []bool{false, true} {
			for _, ports := range list.Ports(protocol, ipv6) {
				if ports.First != ports.Last {
					return true
				}
			}
		}
	}
	return false
}

// steer brings the ranges of ports of rules to the range listeners, which exist. The
// caller holds change, and closes what is returned in place of p.steering.
func (p *Proxy) steer(r rules) (io.Closer, error) {
	if !hasRanges(r.list) {
		return nopCloser{}, nil
	}
	if p.opts.Steer == nil {
		return nil, errors.New("the policy has ranges of ports, which this host cannot serve: write one rule for each port")
	}
	entries, err := r.list.Entries(addresses(r.hosts))
	if err != nil {
		return nil, err
	}
	listeners := [4]int{-1, -1, -1, -1}
	for s, l := range p.listeners {
		if s.port != 0 {
			continue
		}
		fd, err := descriptor(l)
		if err != nil {
			return nil, err
		}
		listeners[s.slot()] = fd
	}
	closer, err := p.opts.Steer(p.netns, entries, listeners)
	if err != nil {
		return nil, fmt.Errorf("opening ranges of ports to the guest: %w", err)
	}
	return closer, nil
}

// slot is where Steer expects the socket.
func (s socket) slot() int {
	slot := 0
	if s.udp {
		slot = 2
	}
	if s.ipv6 {
		slot++
	}
	return slot
}

// descriptor returns that of a socket, which stays its own.
func descriptor(l syscall.Conn) (fd int, err error) {
	raw, err := l.SyscallConn()
	if err == nil {
		err = raw.Control(func(d uintptr) { fd = int(d) })
	}
	if err != nil {
		return -1, fmt.Errorf("reading a listener's descriptor: %w", err)
	}
	return fd, nil
}

// addresses are those at which the guest finds each name, as a table wants them.
func addresses(hosts map[string]netip.Addr) map[string][]netip.Addr {
	out := make(map[string][]netip.Addr, len(hosts))
	for name, addr := range hosts {
		out[name] = []netip.Addr{addr}
	}
	return out
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }
