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
	for _, port := range list.Ports(false) {
		sockets[socket{false, port}] = true
	}
	if p.ipv6 {
		for _, port := range list.Ports(true) {
			sockets[socket{true, port}] = true
		}
	}
	var change plan
	change.newRoutes, change.oldRoutes = difference(routes, p.routes)
	change.newSockets, change.oldSockets = difference(sockets, p.listeners)
	return change
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

// extend makes what is missing, all or nothing. The caller holds change.
func (p *Proxy) extend(change plan) error {
	if len(change.newRoutes)+len(change.newSockets) == 0 {
		return nil
	}
	listeners := make(map[socket]net.Listener)
	err := inside(p.netns, func() error {
		n, err := openNetwork()
		if err != nil {
			return err
		}
		defer n.handle.Close()
		for i, block := range change.newRoutes {
			if err := n.addLocal(block); err != nil {
				return errors.Join(err, n.removeAll(change.newRoutes[:i]))
			}
		}
		for _, s := range change.newSockets {
			l, err := listen(s.ipv6, s.port)
			if err != nil {
				return errors.Join(err, n.removeAll(change.newRoutes))
			}
			listeners[s] = l
		}
		return nil
	})
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	for _, block := range change.newRoutes {
		p.routes[block] = true
	}
	for s, l := range listeners {
		p.listeners[s] = l
		p.served.Go(func() { p.accept(l) })
	}
	return nil
}

// withdraw removes what is left over. Nothing there is allowed any more, so what
// fails to go is refused when it is used. The caller holds change.
func (p *Proxy) withdraw(change plan) error {
	for _, s := range change.oldSockets {
		p.listeners[s].Close()
		delete(p.listeners, s)
	}
	if len(change.oldRoutes) == 0 {
		return nil
	}
	return inside(p.netns, func() error {
		n, err := openNetwork()
		if err != nil {
			return err
		}
		defer n.handle.Close()
		for _, block := range change.oldRoutes {
			delete(p.routes, block)
		}
		return n.removeAll(change.oldRoutes)
	})
}

func (n network) removeAll(blocks []netip.Prefix) error {
	var errs []error
	for _, block := range blocks {
		errs = append(errs, n.removeLocal(block))
	}
	return errors.Join(errs...)
}
