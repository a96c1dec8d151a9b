package netproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Proxy serves the network of one guest. It is safe for use by several
// goroutines.
type Proxy struct {
	opts   Options
	netns  *os.File
	pipes  pipePool
	ctx    context.Context // of every connection; ends with Close
	cancel context.CancelFunc
	served sync.WaitGroup // accept loops and connections

	// change is held while what exists in the namespace changes.
	change    sync.Mutex
	namespace namespace
	prepared  bool
	ipv6      bool // the guest's namespace has it; known once it is prepared
	listeners map[socket]listener
	routes    map[netip.Prefix]bool
	steering  io.Closer

	// mu guards what connections look at. A connection is judged and entered into
	// conns under it, so that Update finds every one that the old rules let in.
	mu       sync.Mutex
	rules    rules
	maxConns int
	memory   int64
	conns    map[*conn]bool
	// connecting counts the connections to the guest that are being made.
	connecting int
	flows      map[flow]bool // those that have a conn, or will
	closed     bool
	accepted   uint64
	refused    map[Reason]uint64

	dynamic           dynamicNames
	quota             quota
	bytesOut, bytesIn atomic.Uint64
}

// rules is the policy as a connection needs it.
type rules struct {
	eps   []policy.Endpoint
	list  endpoint.List
	hosts map[string]netip.Addr // every name that was ever given an address
	names map[netip.Addr]string // the same, the other way round
}

// Names returns the address at which a guest with these endpoints finds each
// name: what its /etc/hosts has to say before it starts. [Open] uses the same
// ones. It returns nil for endpoints that Open refuses, which says why.
func Names(eps []policy.Endpoint) map[string]netip.Addr {
	r, err := newRules(eps, nil)
	if err != nil {
		return nil
	}
	return r.hosts
}

func newRules(eps []policy.Endpoint, taken map[string]netip.Addr) (rules, error) {
	list, err := endpoint.Compile(eps)
	if err != nil {
		return rules{}, err
	}
	hosts, err := endpoint.Synthetic(list.Names(), taken)
	if err != nil {
		return rules{}, err
	}
	r := rules{eps: slices.Clone(eps), list: list, hosts: hosts, names: make(map[netip.Addr]string, len(hosts))}
	for name, addr := range hosts {
		r.names[addr] = name
	}
	return r, nil
}

// judge says whether the guest may connect to dest, which name dest stands for, if
// any, and whether that may lead to private addresses. The caller holds mu.
func (p *Proxy) judge(protocol endpoint.Protocol, dest netip.AddrPort) (name string, private, allowed bool) {
	r := p.rules
	if dest == endpoint.Resolver() && protocol == endpoint.TCP {
		return "", false, r.list.HasWildcards()
	}
	name, ok := r.names[dest.Addr()]
	if !ok {
		name = p.dynamic.name(dest.Addr())
	}
	if name != "" {
		allowed, private = r.list.Name(protocol, name, dest.Port())
		return name, private, allowed
	}
	return "", false, r.list.Allows(protocol, dest.Addr(), dest.Port())
}

// Open makes the endpoints exist in the network namespace netns, which must have
// nothing but a loopback, and serves them until Close. If there are none the namespace is
// left as it is: see [Proxy.Prepare] and [Options.Ahead]. netns remains the caller's. The caller needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN over the namespace. On an error nothing serves.
func Open(netns *os.File, eps []policy.Endpoint, opts Options) (*Proxy, error) {
	fd, err := unix.FcntlInt(netns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keeping the guest's network namespace: %w", err)
	}
	p := &Proxy{
		opts:      opts.withDefaults(),
		netns:     os.NewFile(uintptr(fd), netns.Name()),
		namespace: namespace{netlink: routes{-1}},
		listeners: make(map[socket]listener),
		routes:    make(map[netip.Prefix]bool),
		conns:     make(map[*conn]bool),
		flows:     make(map[flow]bool),
		refused:   make(map[Reason]uint64),
		steering:  nopCloser{},
	}
	p.SetLimits(p.opts.MaxConns, p.opts.Rate, p.opts.Total, p.opts.Memory)
	p.namespace.netns = p.netns
	p.ctx, p.cancel = context.WithCancel(context.Background())
	err = p.Update(eps)
	if err == nil && p.opts.Ahead {
		err = p.ahead()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Prepare brings the namespace's loopback up and sets what its sockets are like. The first
// endpoint does so too; a guest that listens ([Proxy.Connect]) needs it without one.
func (p *Proxy) Prepare() error {
	p.change.Lock()
	defer p.change.Unlock()
	if p.prepared {
		return nil
	}
	defer p.namespace.rest()
	return p.prepare()
}

// prepare is Prepare for who holds change.
func (p *Proxy) prepare() (err error) {
	if !p.prepared {
		p.ipv6, err = p.namespace.prepare()
		p.prepared = err == nil
	}
	return err
}

// ahead is Prepare for endpoints that come later, and leaves open what they need.
func (p *Proxy) ahead() error {
	p.change.Lock()
	defer p.change.Unlock()
	defer p.namespace.leave()
	if err := p.prepare(); err != nil {
		return err
	}
	return p.namespace.spare()
}

// Hosts returns the address at which the guest finds each name, as [Names] does,
// and those of names that earlier lists had.
func (p *Proxy) Hosts() map[string]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.rules.hosts)
}

// NameOf returns the name that an address stands for in the guest, or "".
func (p *Proxy) NameOf(addr netip.Addr) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if name, ok := p.rules.names[addr]; ok {
		return name
	}
	return p.dynamic.name(addr)
}

// HostsWith returns what Hosts would after an Update with eps.
func (p *Proxy) HostsWith(eps []policy.Endpoint) (map[string]netip.Addr, error) {
	r, err := newRules(eps, p.Hosts())
	return r.hosts, err
}

// Unserved returns the IPv6 endpoints that the guest cannot reach because its
// network namespace has no IPv6.
func (p *Proxy) Unserved() []policy.Endpoint {
	p.change.Lock()
	ipv6 := p.ipv6
	p.change.Unlock()
	if ipv6 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var eps []policy.Endpoint
	for _, ep := range p.rules.eps {
		if block, ok := ep.Prefix(); ok && block.Addr().Is6() {
			eps = append(eps, ep)
		}
	}
	return eps
}

// Update replaces the endpoints. A connection is judged by the old list or by the
// new one; those to endpoints that are no longer in the list are reset. Names
// keep their addresses; one that is new has an address ([Proxy.Hosts]) which
// nobody has told the guest. On an error the old list stays in force.
func (p *Proxy) Update(eps []policy.Endpoint) error {
	p.change.Lock()
	defer p.change.Unlock()
	p.mu.Lock()
	taken, closed := p.rules.hosts, p.closed
	p.mu.Unlock()
	if closed {
		return fmt.Errorf("changing the guest's endpoints: %w", os.ErrClosed)
	}
	r, err := newRules(eps, taken)
	if err != nil {
		return err
	}
	defer p.namespace.rest()
	plan, err := p.extend(r)
	if err != nil {
		return err
	}
	steering, err := p.steer(r)
	if err != nil {
		return errors.Join(err, p.withdraw(plan.undo()))
	}
	p.use(r)
	p.listen(plan.newSockets)
	old := p.steering
	p.steering = steering
	return errors.Join(old.Close(), p.withdraw(plan))
}

// SetLimits replaces what [Options] says of connections, bytes and memory, from now on;
// what was moved already counts, and connections keep the buffers that they have. 0 means
// what it means there.
func (p *Proxy) SetLimits(maxConns int, rate, total, memory int64) {
	if maxConns == 0 {
		maxConns = defaultMaxConns
	}
	if memory == 0 {
		memory = int64(maxConns) << 20
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.maxConns, p.memory = maxConns, memory
	p.quota.rate.Store(rate)
	p.quota.total.Store(total)
}

// use puts rules in force and cuts what they no longer allow.
func (p *Proxy) use(r rules) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = r
	for c := range p.conns {
		if name, private, allowed := p.judge(c.protocol, c.dest); !allowed || name != c.name || c.private && !private {
			p.cut(c, Revoked)
		}
	}
}

// Stats returns the counters.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{
		Accepted: p.accepted,
		Active:   uint64(len(p.conns)),
		BytesOut: p.bytesOut.Load(),
		BytesIn:  p.bytesIn.Load(),
		Refused:  maps.Clone(p.refused),
	}
}

// Close stops serving, resets every connection and returns when nothing of the
// proxy runs. Routes stay in the namespace, where they lead nowhere. Closing again
// does nothing.
func (p *Proxy) Close() error {
	p.change.Lock()
	defer p.change.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	for c := range p.conns {
		p.cut(c, closing)
	}
	p.mu.Unlock()
	p.cancel()
	for _, l := range p.listeners {
		l.Close()
	}
	p.namespace.rest()
	p.served.Wait()
	p.pipes.close()
	if err := errors.Join(p.steering.Close(), p.netns.Close()); err != nil {
		return fmt.Errorf("letting go of the guest's network namespace: %w", err)
	}
	return nil
}
