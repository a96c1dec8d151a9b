package endpoint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Entry is one line of a longest-prefix table: of all entries of the protocol and
// port whose block contains an address, the longest says whether it is allowed; none
// means that it is not. Block is always IPv6: IPv4 blocks are given as IPv4-mapped.
// The ranges of ports of one table are equal or disjoint.
type Entry struct {
	Protocol Protocol
	Ports    Ports
	Block    netip.Prefix
	Allow    bool
}

// maxEntries bounds a table, reserved ranges aside. Each range of ports that begins or ends inside another
// cuts it, so that few rules can make many entries.
const maxEntries = 1 << 16

// Entries returns the list as a longest-prefix table, sorted, one entry a protocol,
// range of ports and block. names gives the addresses at which a guest finds each
// exact name: its synthetic one, or what it resolves to where an engine made the
// network. A name without an address is an error, because its rule could not be held.
// Names that wildcards cover have addresses of [DynamicRange]; if there are wildcards,
// [Resolver] is allowed too.
//
// Each rule is an entry that allows; each reserved range that is strictly inside
// a rule is one that denies, a hole. A rule inside a hole is longer than the
// hole and wins again, which is exactly what [List.Allows] says.
func (l List) Entries(names map[string][]netip.Addr) ([]Entry, error) {
	rules, err := l.withNames(names)
	if err != nil {
		return nil, err
	}
	type key struct {
		protocol Protocol
		ports    Ports
		block    netip.Prefix
	}
	table := make(map[key]bool)
	starts := map[Protocol][]int{TCP: boundaries(TCP, rules), UDP: boundaries(UDP, rules)}
	work := 0
	for _, r := range rules {
		pieces := elementary(r.ports, starts[r.protocol])
		if work += len(pieces); work > maxEntries {
			return nil, fmt.Errorf("the endpoints come to more than %d entries, because their ranges of ports cut each other: use fewer or equal ranges", maxEntries)
		}
		for _, ports := range pieces {
			for _, reserved := range l.reserved {
				if hole := mapped(reserved.Prefix); hole != mapped(r.block) && inside(hole, mapped(r.block)) {
					if k := (key{r.protocol, ports, hole}); !table[k] {
						table[k] = false
					}
				}
			}
			table[key{r.protocol, ports, mapped(r.block)}] = true
		}
	}
	entries := make([]Entry, 0, len(table))
	for k, allow := range table {
		entries = append(entries, Entry{k.protocol, k.ports, k.block, allow})
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), comparePorts(a.Ports, b.Ports), comparePrefixes(a.Block, b.Block))
	})
	return entries, nil
}

// withNames returns the rules about addresses, and those about names by the addresses
// that stand for them.
func (l List) withNames(names map[string][]netip.Addr) ([]blockRule, error) {
	rules := slices.Clone(l.blocks)
	for _, ep := range l.names {
		if ep.Deny {
			continue // the proxy holds it: its address is that of an allowed name, or none
		}
		first, last := ep.Ports()
		rule := blockRule{protocolOf(ep), Ports{first, last}, DynamicRange()}
		if ep.IsWildcard() {
			rules = append(rules, rule)
			continue
		}
		addrs := names[ep.Host]
		if len(addrs) == 0 {
			return nil, fmt.Errorf("compiling rule %q: the name has no address for the guest", ep)
		}
		for _, addr := range addrs {
			addr = addr.Unmap().WithZone("")
			rule.block = netip.PrefixFrom(addr, addr.BitLen())
			rules = append(rules, rule)
		}
	}
	if l.HasWildcards() {
		resolver := netip.PrefixFrom(Resolver().Addr(), 32)
		rules = append(rules, blockRule{TCP, Ports{53, 53}, resolver})
	}
	return rules, nil
}

// boundaries returns where the ranges of ports of a protocol begin, and the ports
// behind their ends.
func boundaries(protocol Protocol, rules []blockRule) []int {
	var all []int
	for _, r := range rules {
		if r.protocol == protocol {
			all = append(all, int(r.ports.First), int(r.ports.Last)+1)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// elementary cuts a range of ports at the boundaries.
func elementary(ports Ports, boundaries []int) []Ports {
	var pieces []Ports
	at, _ := slices.BinarySearch(boundaries, int(ports.First))
	for ; boundaries[at] <= int(ports.Last); at++ { // the end of ports is a boundary, too
		pieces = append(pieces, Ports{uint16(boundaries[at]), uint16(boundaries[at+1] - 1)})
	}
	return pieces
}

// PortPrefix is a block of ports as a longest-prefix table of them has it: those
// whose first Bits bits are Port's.
type PortPrefix struct {
	Port uint16
	Bits int
}

// Prefixes returns the fewest blocks that make up the range, at most 30.
func (p Ports) Prefixes() []PortPrefix {
	var all []PortPrefix
	for at := int(p.First); at <= int(p.Last); {
		size := 1
		for at%(2*size) == 0 && at+2*size-1 <= int(p.Last) && 2*size <= 1<<16 {
			size *= 2
		}
		bits := 16
		for s := size; s > 1; s /= 2 {
			bits--
		}
		all = append(all, PortPrefix{uint16(at), bits})
		at += size
	}
	return all
}

// String writes a range as rules do: "80" or "8000-8100".
func (p Ports) String() string {
	if p.First == p.Last {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

func comparePorts(a, b Ports) int {
	return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

// comparePrefixes orders by address, then by length.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// mapped returns the block as one of IPv6.
func mapped(block netip.Prefix) netip.Prefix {
	if block.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(block.Addr().As16()), block.Bits()+96)
	}
	return block
}
