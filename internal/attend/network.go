package attend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/internal/netproxy"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Enforcement names a rule of the policy and the mechanism that holds it.
type Enforcement struct {
	Rule string `json:"rule"`
	By   string `json:"by"`
}

// network is the guest's allowed endpoints: reachable through proxy, and held a
// second time by guest's programs.
type network struct {
	guest    *enforce.Guest // nil when the policy lets the guest do without
	proxy    *netproxy.Proxy
	enforced []Enforcement
}

// Hosts is the /etc/hosts of a guest with this policy: localhost, and an address of
// the guest's own for each host name it may connect to. It has to be in the guest's
// root before the guest starts.
func Hosts(p policy.Policy) []byte { return hostsFile(netproxy.Names(p.TCP())) }

func hostsFile(names map[string]netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
	for _, name := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprintf(&b, "%s\t%s\n", names[name], name)
	}
	return []byte(b.String())
}

// Hosts is what the guest's /etc/hosts has to say once its policy is p. Names keep the
// addresses that they had.
func (a *Attendant) Hosts(p policy.Policy) ([]byte, error) {
	names, err := a.net.proxy.HostsWith(p.TCP())
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
	eps := p.TCP()
	if opts.Filter {
		n.guest, err = attach(c, addressesOnly(eps), opts.Programs)
		if err != nil && p.AllowDegraded() && errors.Is(err, enforce.ErrNotSupported) {
			err = nil
		}
		return n, err
	}
	if n.guest, err = attach(c, eps, opts.Programs); err != nil {
		// Without endpoints the empty network namespace holds all there is to hold.
		if !errors.Is(err, enforce.ErrNotSupported) || len(eps) > 0 && !p.AllowDegraded() {
			return n, err
		}
		n.enforced = append(n.enforced, Enforcement{"network", "empty network namespace only: " + err.Error()})
	} else {
		n.enforced = append(n.enforced, Enforcement{"network", "empty network namespace, cgroup eBPF"})
	}
	for _, e := range eps {
		n.enforced = append(n.enforced, Enforcement{"tcp " + e.String(), "proxy"})
	}
	netns, err := c.NetNS()
	if err != nil {
		return n, err
	}
	defer netns.Close()
	if opts.Net.MaxConns == 0 {
		opts.Net.MaxConns = connections(p.Limits().Mem)
	}
	n.proxy, err = netproxy.Open(netns, eps, opts.Net)
	return n, err
}

// addressesOnly leaves names out: what an engine's container resolves is its own affair.
func addressesOnly(eps []policy.Endpoint) []policy.Endpoint {
	return slices.DeleteFunc(slices.Clone(eps), func(e policy.Endpoint) bool {
		_, ok := e.Prefix()
		return !ok
	})
}

// connections is how many connections a guest with so much memory may have at a time: what
// their sockets hold is not always counted against its cgroup, and amounts to up to 1 MiB each.
func connections(memory int64) int {
	return int(min(max(memory>>20, 16), 1024))
}

func attach(c Container, eps []policy.Endpoint, programs *enforce.Programs) (*enforce.Guest, error) {
	dir, err := c.UnifiedCgroup()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", enforce.ErrNotSupported, err)
	}
	names := addresses(netproxy.Names(eps))
	if programs != nil {
		return programs.Attach(dir, eps, names)
	}
	return enforce.Attach(dir, eps, names)
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
func (n *network) update(old, eps []policy.Endpoint) error {
	if n.proxy == nil {
		if n.guest == nil {
			return nil
		}
		return n.guest.Update(addressesOnly(eps), nil)
	}
	if n.guest != nil {
		// Names keep the addresses that the guest's /etc/hosts has.
		names, err := n.proxy.HostsWith(eps)
		if err == nil {
			err = n.guest.Update(eps, addresses(names))
		}
		if err != nil {
			return fmt.Errorf("updating the network programs: %w", err)
		}
	}
	if err := n.proxy.Update(eps); err != nil {
		err = fmt.Errorf("updating the network proxy: %w", err)
		if n.guest != nil {
			err = errors.Join(err, n.guest.Update(old, addresses(n.proxy.Hosts())))
		}
		return err
	}
	return nil
}

// proxyHosts are the addresses that stand for names in the guest: none under an engine, which
// makes the network itself.
func (n *network) proxyHosts() map[string]netip.Addr {
	if n.proxy == nil {
		return nil
	}
	return n.proxy.Hosts()
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
