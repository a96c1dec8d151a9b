package netproxy

import (
	"errors"
	"net"
	"net/netip"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// plan is the way from what exists in the namespace to what a list needs there.
type plan struct {
	newRoutes, oldRoutes   []netip.Prefix
	newSockets, oldSockets []socket
}

func (p *Proxy) plan(list endpoint.List) plan {
	routes := make(map[netip.Prefix]bool)
	for _, block := range list.Blocks() {
		if !isLocalAnyway(block) && (p.ipv6 || block.Addr().Is4()) {
			routes[block] = true
		}
	}
	sockets := make(map[socket]bool)
	for _, ipv6 := range []bool{false, true} {
		if ipv6 && !p.ipv6 {
			continue
		}
		for _, protocol := range []endpoint.Protocol{endpoint.TCP, endpoint.UDP} {
			for _, ports := range list.Ports(protocol, ipv6) {
				if ports.First != ports.Last {
					ports.First = 0
				}
				sockets[socket{protocol == endpoint.UDP, ipv6, ports.First}] = true
			}
		}
	}
	if list.HasWildcards() {
		sockets[socket{port: endpoint.Resolver().Port()}] = true
	}
	var change plan
	change.newRoutes, change.oldRoutes = difference(routes, p.routes)
	change.newSockets, change.oldSockets = difference(sockets, p.listeners)
	return change
}

// undo is the way back from what extend made.
func (change plan) undo() plan {
	return plan{oldRoutes: change.newRoutes, oldSockets: change.newSockets}
}

// difference returns the keys that only want has, and those that only have has.
func difference[K comparable, A, B any](want map[K]A, have map[K]B) (missing, surplus []K) {
	for k := range want {
		if _, ok := have[k]; !ok {
			missing = append(missing, k)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			surplus = append(surplus, k)
		}
	}
	return missing, surplus
}

// extend makes what is missing, all or nothing. The routes are for withdraw, and the
// caller's to close. The caller holds change.
func (p *Proxy) extend(change plan) (routes, error) {
	namespace := routes{-1}
	routesChange := len(change.newRoutes)+len(change.oldRoutes) > 0
	if !routesChange && len(change.newSockets) == 0 {
		return namespace, nil
	}
	listeners := make(map[socket]listener)
	err := inside(p.netns, func() (err error) {
		if routesChange {
			if namespace, err = openRoutes(); err != nil {
				return err
			}
			if err := namespace.add(change.newRoutes); err != nil {
				return err
			}
		}
		for _, s := range change.newSockets {
			l, err := p.open(s)
			if err != nil {
				return errors.Join(err, namespace.remove(change.newRoutes))
			}
			listeners[s] = l
		}
		return nil
	})
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return namespace, err
	}
	for _, block := range change.newRoutes {
		p.routes[block] = true
	}
	for s, l := range listeners {
		p.listeners[s] = l
		p.served.Go(func() {
			switch l := l.(type) {
			case *net.UDPConn:
				p.receive(l)
			case *net.TCPListener:
				p.accept(l)
			}
		})
	}
	return namespace, nil
}

// open opens the socket in the namespace of this thread.
func (p *Proxy) open(s socket) (listener, error) {
	if s.udp {
		return listenUDP(s)
	}
	return listen(s.ipv6, s.port)
}

// withdraw removes what is left over. Nothing there is allowed any more, so what
// fails to go is refused when it is used. The caller holds change.
func (p *Proxy) withdraw(change plan, namespace routes) error {
	for _, s := range change.oldSockets {
		p.listeners[s].Close()
		delete(p.listeners, s)
	}
	for _, block := range change.oldRoutes {
		delete(p.routes, block)
	}
	return namespace.remove(change.oldRoutes)
}
