package endpoint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Protocol is a protocol of IP, by its number there.
type Protocol uint8

// The protocols that a guest may use.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns the protocol's name as documents write it.
func (p Protocol) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

func (p Ports) contains(port uint16) bool { return p.First <= port && port <= p.Last }

// List is a compiled list of endpoints. It is immutable; the zero List allows
// nothing.
type List struct {
	blocks   []blockRule
	names    []policy.Endpoint // those that deny too
	reserved []Range
}

// blockRule is a rule about addresses. Its block is canonical: masked, IPv4 as IPv4.
type blockRule struct {
	protocol Protocol
	ports    Ports
	block    netip.Prefix
}

// Compile reads the endpoints of a policy. It fails for an endpoint that is not
// in the form pkg/policy makes, and for addresses of [SyntheticRange], which
// stand for names inside a guest.
func Compile(eps []policy.Endpoint) (List, error) {
	l := List{reserved: Reserved()}
	for _, ep := range eps {
		first, last := ep.Ports()
		if first == 0 {
			return List{}, fmt.Errorf("reading endpoint %q: port 0 cannot be connected to: name the port", ep)
		}
		block, ok := ep.Prefix()
		if !ok {
			if err := checkName(ep); err != nil {
				return List{}, err
			}
			if !slices.Contains(l.names, ep) {
				l.names = append(l.names, ep)
			}
			continue
		}
		if ep.Deny {
			return List{}, fmt.Errorf("reading endpoint %q: a denied address is taken out of the blocks that contain it (policy.Policy.TCP), and cannot be told apart later", ep)
		}
		block = canonical(block)
		if inside(block, SyntheticRange()) {
			return List{}, fmt.Errorf("reading endpoint %q: addresses of %s stand for names inside a guest: use another loopback address",
				ep, SyntheticRange())
		}
		if rule := (blockRule{protocolOf(ep), Ports{first, last}, block}); !slices.Contains(l.blocks, rule) {
			l.blocks = append(l.blocks, rule)
		}
	}
	return l, nil
}

func protocolOf(ep policy.Endpoint) Protocol {
	if ep.UDP {
		return UDP
	}
	return TCP
}

// checkName refuses what a resolver might take for an address, or cut short.
func checkName(ep policy.Endpoint) error {
	name := strings.TrimPrefix(ep.Host, "*.")
	last := name[strings.LastIndexByte(name, '.')+1:]
	numeric := strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")
	if numeric || strings.ContainsAny(name, "\x00/:%* \t\n") {
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

// AllowsAddr reports whether an address rule for TCP covers addr and port.
func (l List) AllowsAddr(addr netip.Addr, port uint16) bool { return l.Allows(TCP, addr, port) }

// Allows reports whether an address rule covers addr and port. It is the
// reference: one look at every rule.
func (l List) Allows(protocol Protocol, addr netip.Addr, port uint16) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(l.blocks, func(r blockRule) bool {
		return r.protocol == protocol && r.ports.contains(port) && r.block.Contains(addr) &&
			!slices.ContainsFunc(l.reserved, func(reserved Range) bool {
				return reserved.Prefix.Contains(addr) && !inside(r.block, reserved.Prefix)
			})
	})
}

// AllowsName reports whether a rule for TCP covers this name and port.
func (l List) AllowsName(name string, port uint16) bool {
	allowed, _ := l.Name(TCP, name, port)
	return allowed
}

// Name reports whether rules cover this name and port, and none denies them; and
// whether one of them lets the name lead to private addresses.
func (l List) Name(protocol Protocol, name string, port uint16) (allowed, private bool) {
	for _, ep := range l.names {
		first, last := ep.Ports()
		if protocolOf(ep) != protocol || !(Ports{first, last}).contains(port) || !ep.CoversName(name) {
			continue
		}
		if ep.Deny {
			return false, false
		}
		allowed, private = true, private || ep.Private
	}
	return allowed, private
}

// Names returns the exact names of the list, sorted, each once.
func (l List) Names() []string {
	var all []string
	for _, ep := range l.names {
		if !ep.Deny && !ep.IsWildcard() {
			all = append(all, ep.Host)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// HasWildcards reports whether there are names that nobody knows beforehand.
func (l List) HasWildcards() bool {
	return slices.ContainsFunc(l.names, func(ep policy.Endpoint) bool { return !ep.Deny && ep.IsWildcard() })
}

// Knows reports whether a guest may be told an address for the name: some port of it is
// allowed.
func (l List) Knows(name string) bool {
	return slices.ContainsFunc(l.names, func(ep policy.Endpoint) bool {
		return !ep.Deny && ep.CoversName(name) && slices.ContainsFunc(l.portsLeft(ep), func(port uint16) bool {
			allowed, _ := l.Name(protocolOf(ep), name, port)
			return allowed
		})
	})
}

// portsLeft returns ports of ep that stand for all: its first one, and the first one
// behind each rule that denies.
func (l List) portsLeft(ep policy.Endpoint) []uint16 {
	first, last := ep.Ports()
	ports := []uint16{first}
	for _, d := range l.names {
		if _, end := d.Ports(); d.Deny && end >= first && end < last {
			ports = append(ports, end+1)
		}
	}
	return ports
}

// Blocks returns the address rules' blocks, sorted, each once.
func (l List) Blocks() []netip.Prefix {
	var all []netip.Prefix
	for _, r := range l.blocks {
		all = append(all, r.block)
	}
	slices.SortFunc(all, comparePrefixes)
	return slices.Compact(all)
}

// Ports returns the ranges of ports, sorted, at which something of the protocol and
// family (IPv6 or IPv4) is allowed. They may overlap. Names count as IPv4: their
// synthetic addresses are.
func (l List) Ports(protocol Protocol, ipv6 bool) []Ports {
	var all []Ports
	for _, r := range l.blocks {
		if r.protocol == protocol && r.block.Addr().Is6() == ipv6 {
			all = append(all, r.ports)
		}
	}
	for _, ep := range l.names {
		if first, last := ep.Ports(); protocolOf(ep) == protocol && !ep.Deny && !ipv6 {
			all = append(all, Ports{first, last})
		}
	}
	slices.SortFunc(all, comparePorts)
	return slices.Compact(all)
}
