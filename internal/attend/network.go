package attend

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/internal/netproxy"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Enforcement names a rule of the policy and the mechanism that holds it.
type Enforcement struct {
	Rule string `json:"rule"`
	By   string `json:"by"`
}

// Budget is what the proxies of a process share.
type Budget = netproxy.Budget

// NewBudget shares half of the descriptors that this process may open.
func NewBudget() (*Budget, error) { return netproxy.NewBudget() }

// network is the guest's allowed endpoints: reachable through proxy, and held a
// second time by guest's programs.
type network struct {
	guest       *enforce.Guest // nil when the policy lets the guest do without
	unsupported error          // why there is no guest
	pairs       bool           // of datagram sockets lead nowhere, by programs
	proxy       *netproxy.Proxy
}

// RootFiles are the files by which a guest with this policy finds names: /etc/hosts has
// localhost and an address of the guest's own for each host name that it may connect
// to; /etc/resolv.conf, where there are wildcards, the address at which the proxy
// answers. They have to be in the guest's root before it starts.
func RootFiles(p policy.Policy) map[string][]byte {
	files := map[string][]byte{"/etc/hosts": hostsFile(netproxy.Names(p.Endpoints()))}
	if AsksForNames(p) {
		// use-vc: by TCP, because most guests have no datagrams.
		files["/etc/resolv.conf"] = fmt.Appendf(nil, "nameserver %s\noptions use-vc timeout:2 attempts:1\n", endpoint.Resolver().Addr())
	}
	return files
}

// AsksForNames reports whether a guest with this policy has a name server, which its
// /etc/resolv.conf has to say when it starts.
func AsksForNames(p policy.Policy) bool {
	return slices.ContainsFunc(p.Endpoints(), func(e policy.Endpoint) bool { return e.IsWildcard() && !e.Deny })
}

func hostsFile(names map[string]netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n") // as a root has it
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprintf(&b, "%s\t%s\n", names[name], name)
	}
	return []byte(b.String())
}

// Hosts is what the guest's /etc/hosts has to say once its policy is p. Names keep the
// addresses that they had.
func (a *Attendant) Hosts(p policy.Policy) ([]byte, error) {
	names, err := a.net.proxy.HostsWith(p.Endpoints())
	if err != nil {
		return nil, err
	}
	return hostsFile(names), nil
}

// openNetwork puts the programs on the guest's cgroup first, so that nothing is
// reachable before it is held.
func openNetwork(c Container, p policy.Policy, opts Options) (n network, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("opening the guest's network: %w", err), n.close())
		}
	}()
	eps := p.Endpoints()
	if opts.Filter {
		n.guest, err = attach(c, addressesOnly(eps), nil, opts.Programs)
		if err != nil && p.AllowDegraded() && errors.Is(err, enforce.ErrNotSupported) && !opts.Pairs {
			return n, nil
		}
		if err == nil {
			err = holdPairs(c, opts)
		}
		return n, err
	}
	if n.guest, err = attach(c, eps, p.Expose(), opts.Programs); err != nil {
		// Without endpoints the empty network namespace holds all there is to hold.
		if n.unsupported = err; !errors.Is(err, enforce.ErrNotSupported) || !n.mayLack(p) || opts.Pairs {
			return n, err
		}
	}
	if err := holdPairs(c, opts); err != nil {
		return n, err
	}
	n.pairs = opts.Pairs
	netns, err := c.NetNS()
	if err != nil {
		return n, err
	}
	defer netns.Close()
	if opts.Net.Steer == nil {
		opts.Net.Steer = steer
	}
	opts.Net.Budget, opts.Net.Ahead = opts.Budget, opts.Ahead
	opts.Net.MaxConns, opts.Net.Rate, opts.Net.Total, opts.Net.Memory = netLimits(p.Limits())
	if n.proxy, err = netproxy.Open(netns, eps, opts.Net); err == nil && len(p.Expose()) > 0 {
		err = n.proxy.Prepare()
	}
	return n, err
}

// mayLack says whether a guest with this policy can do without the programs.
func (n *network) mayLack(p policy.Policy) bool {
	return len(p.Endpoints())+len(p.Expose()) == 0 || p.AllowDegraded()
}

// enforced tells which mechanism holds the network rules; an engine's are told of elsewhere.
func (n *network) enforced(p policy.Policy) []Enforcement {
	if n.proxy == nil {
		return nil
	}
	list := []Enforcement{{"network", "empty network namespace, cgroup eBPF"}}
	if n.unsupported != nil {
		list[0].By = "empty network namespace only: " + n.unsupported.Error()
	}
	if n.pairs {
		list = append(list, Enforcement{"pairs of datagram sockets", "cgroup eBPF"})
	}
	unserved := n.proxy.Unserved()
	for _, e := range p.Endpoints() {
		by := "proxy"
		if slices.Contains(unserved, e) {
			by = "nothing to hold: out of the guest's reach, because this host has no IPv6"
		}
		list = append(list, Enforcement{rule(e), by})
	}
	for _, port := range p.Expose() {
		list = append(list, Enforcement{fmt.Sprintf("expose %d", port), "sockets of the guest's network namespace, on request"})
	}
	return list
}

// addressesOnly leaves names out: what an engine's container resolves is its own affair.
func addressesOnly(eps []policy.Endpoint) []policy.Endpoint {
	return slices.DeleteFunc(slices.Clone(eps), func(e policy.Endpoint) bool {
		_, ok := e.Prefix()
		return !ok
	})
}

// rule names an endpoint as documents do.
func rule(e policy.Endpoint) string {
	kind := "tcp "
	if e.UDP {
		kind = "udp "
	}
	if e.Deny {
		kind += "deny "
	}
	return kind + e.String()
}

// steer is enforce.Steer as the proxy wants it.
func steer(netns *os.File, entries []endpoint.Entry, listeners [4]int) (io.Closer, error) {
	return enforce.Steer(netns, entries, listeners)
}

func netLimits(l policy.Limits) (conns int, rate, total, memory int64) {
	return int(l.Connections()), l.NetRate, l.NetBytes, l.Mem
}

func attach(c Container, eps []policy.Endpoint, exposed []uint16, programs *enforce.Programs) (*enforce.Guest, error) {
	dir, err := c.UnifiedCgroup()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", enforce.ErrNotSupported, err)
	}
	names := addresses(netproxy.Names(eps))
	if programs != nil {
		return programs.Attach(dir, eps, names, exposed...)
	}
	return enforce.Attach(dir, eps, names, exposed...)
}

// holdPairs sees to it that the guest's pairs of datagram sockets lead nowhere, if it may make any.
func holdPairs(c Container, opts Options) error {
	if !opts.Pairs {
		return nil
	}
	if opts.Programs == nil {
		return errors.New("holding the guest's pairs of datagram sockets: the programs at its cgroup could not be loaded")
	}
	dir, err := c.UnifiedCgroup()
	if err == nil {
		err = opts.Programs.HoldPairs(dir)
	}
	if err != nil {
		return fmt.Errorf("holding the guest's pairs of datagram sockets: %w", err)
	}
	return nil
}

// addresses are those at which the guest finds each name, as enforce wants them.
func addresses(names map[string]netip.Addr) map[string][]netip.Addr {
	out := make(map[string][]netip.Addr, len(names))
	for name, address := range names {
		out[name] = []netip.Addr{address}
	}
	return out
}

// update lets go of what is no longer allowed in the kernel first, and opens what is
// new in the proxy last: at no moment is more reachable than one of the two lists
// allows.
func (n *network) update(before, p policy.Policy) error {
	old, eps := before.Endpoints(), p.Endpoints()
	if n.proxy == nil {
		if n.guest == nil || slices.Equal(old, eps) {
			return nil
		}
		return n.guest.Update(addressesOnly(eps), nil)
	}
	if n.unsupported != nil && !n.mayLack(p) {
		return n.unsupported
	}
	if !slices.Equal(old, eps) || !slices.Equal(before.Expose(), p.Expose()) {
		if err := n.updateBoth(before, p); err != nil {
			return err
		}
	}
	n.proxy.SetLimits(netLimits(p.Limits()))
	return nil
}

// updateBoth puts other endpoints and ports into force, in the programs and the proxy.
func (n *network) updateBoth(before, p policy.Policy) error {
	old, eps := before.Endpoints(), p.Endpoints()
	if n.guest != nil {
		// Names keep the addresses that the guest's /etc/hosts has.
		names, err := n.proxy.HostsWith(eps)
		if err == nil {
			err = n.guest.Update(eps, addresses(names), p.Expose()...)
		}
		if err != nil {
			return fmt.Errorf("updating the network programs: %w", err)
		}
	}
	if err := n.proxy.Update(eps); err != nil {
		err = fmt.Errorf("updating the network proxy: %w", err)
		if n.guest != nil {
			err = errors.Join(err, n.guest.Update(old, addresses(n.proxy.Hosts()), before.Expose()...))
		}
		return err
	}
	return nil
}

// name is what an address stands for in the guest, or "": always under an engine, which
// makes the network itself.
func (n *network) name(addr netip.Addr) string {
	if n.proxy == nil {
		return ""
	}
	return n.proxy.NameOf(addr)
}

func (n *network) close() error {
	var errs []error
	if n.proxy != nil {
		errs = append(errs, n.proxy.Close())
	}
	if n.guest != nil {
		errs = append(errs, n.guest.Close())
	}
	return errors.Join(errs...)
}
