package netproxy

import (
	"errors"
	"maps"
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

// extend makes what the rules need and is missing, all or nothing. The caller holds change.
func (p *Proxy) extend(r rules) (change plan, err error) {
	n := &p.namespace
	defer n.leave()
	if len(r.eps) > 0 {
		if err := p.prepare(); err != nil {
			return change, err
		}
	}
	change = p.plan(r.list)
	var routes routes
	if len(change.newRoutes)+len(change.oldRoutes) > 0 {
		if routes, err = n.routes(); err == nil {
			err = routes.add(change.newRoutes)
		}
		if err != nil {
			return change, err
		}
	}
	listeners := make(map[socket]listener)
	for _, s := range change.newSockets {
		l, err := n.listen(s)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return change, errors.Join(err, routes.remove(change.newRoutes))
		}
		listeners[s] = l
	}
	maps.Copy(p.listeners, listeners)
	for _, block := range change.newRoutes {
		p.routes[block] = true
	}
	return change, nil
}

// listen begins to serve what comes to the sockets. The caller holds change.
func (p *Proxy) listen(sockets []socket) {
	for _, s := range sockets {
		l := p.listeners[s]
		p.served.Go(func() {
			switch l := l.(type) {
			case *net.UDPConn:
				p.receive(l)
			case *net.TCPListener:
				p.accept(l)
			}
		})
	}
}

// withdraw removes what is left over. Nothing there is allowed any more, so what
// fails to go is refused when it is used. The caller holds change.
func (p *Proxy) withdraw(change plan) error {
	for _, s := range change.oldSockets {
		p.listeners[s].Close()
		delete(p.listeners, s)
	}
	for _, block := range change.oldRoutes {
		delete(p.routes, block)
	}
	return p.namespace.netlink.remove(change.oldRoutes)
}
