package endpoint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/pkg/policy"
)

// List is a compiled list of endpoints. It is immutable; the zero List allows
// nothing.
type List struct {
	blocks   map[uint16][]netip.Prefix // by port; canonical: masked, IPv4 as IPv4
	names    map[uint16][]string       // by port
	reserved []Range
}

// Compile reads the endpoints of a policy. It fails for an endpoint that is not
// in the form pkg/policy makes, and for addresses of [SyntheticRange], which
// stand for names inside a guest.
func Compile(eps []policy.Endpoint) (List, error) {
	l := List{
		blocks:   make(map[uint16][]netip.Prefix),
		names:    make(map[uint16][]string),
		reserved: Reserved(),
	}
	for _, ep := range eps {
		if ep.Port == 0 {
			return List{}, fmt.Errorf("reading endpoint %q: port 0 cannot be connected to: name the port", ep)
		}
		block, ok := ep.Prefix()
		if !ok {
			if err := checkName(ep); err != nil {
				return List{}, err
			}
			if !slices.Contains(l.names[ep.Port], ep.Host) {
				l.names[ep.Port] = append(l.names[ep.Port], ep.Host)
			}
			continue
		}
		block = canonical(block)
		if inside(block, SyntheticRange()) {
			return List{}, fmt.Errorf("reading endpoint %q: addresses of %s stand for names inside a guest: use another loopback address",
				ep, SyntheticRange())
		}
		if !slices.Contains(l.blocks[ep.Port], block) {
			l.blocks[ep.Port] = append(l.blocks[ep.Port], block)
		}
	}
	return l, nil
}

// checkName refuses what a resolver might take for an address, or cut short.
func checkName(ep policy.Endpoint) error {
	last := ep.Host[strings.LastIndexByte(ep.Host, '.')+1:]
	numeric := strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")
	if numeric || strings.ContainsAny(ep.Host, "\x00/:%* \t\n") {
		return fmt.Errorf("reading endpoint %q: the host is neither an address, a block of addresses nor a name: write it as in api.example.com:443", ep)
	}
	return nil
}

// canonical returns the one form of a block: masked, and IPv4 when it holds only
// IPv4-mapped addresses.
func canonical(block netip.Prefix) netip.Prefix {
	if block.Addr().Is4In6() && block.Bits() >= 96 {
		block = netip.PrefixFrom(block.Addr().Unmap(), block.Bits()-96)
	}
	return block.Masked()
}

// inside reports whether every address of inner is one of outer.
func inside(inner, outer netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// AllowsAddr reports whether an address rule covers addr and port. It is the
// reference: one look at every rule.
func (l List) AllowsAddr(addr netip.Addr, port uint16) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(l.blocks[port], func(block netip.Prefix) bool {
		return block.Contains(addr) && !slices.ContainsFunc(l.reserved, func(r Range) bool {
			return r.Prefix.Contains(addr) && !inside(block, r.Prefix)
		})
	})
}

// AllowsName reports whether a rule names exactly this name and port.
func (l List) AllowsName(name string, port uint16) bool {
	return slices.Contains(l.names[port], name)
}

// Names returns the names of the list, sorted, each once.
func (l List) Names() []string {
	var all []string
	for _, names := range l.names {
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Blocks returns the address rules' blocks of every port, sorted, each once.
func (l List) Blocks() []netip.Prefix {
	var all []netip.Prefix
	for _, blocks := range l.blocks {
		all = append(all, blocks...)
	}
	slices.SortFunc(all, comparePrefixes)
	return slices.Compact(all)
}

// Ports returns the ports, sorted, at which something of the family (IPv6 or
// IPv4) is allowed. Names count as IPv4: their synthetic addresses are.
func (l List) Ports(ipv6 bool) []uint16 {
	var all []uint16
	for port, blocks := range l.blocks {
		if slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Addr().Is6() == ipv6 }) {
			all = append(all, port)
		}
	}
	for port := range l.names {
		if !ipv6 {
			all = append(all, port)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
