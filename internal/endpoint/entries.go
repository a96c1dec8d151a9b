package endpoint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Entry is one line of a longest-prefix table: of all entries of the port whose
// block contains an address, the longest says whether it is allowed; none means
// that it is not. Block is always IPv6: IPv4 blocks are given as IPv4-mapped.
type Entry struct {
	Port  uint16
	Block netip.Prefix
	Allow bool
}

// Entries returns the list as a longest-prefix table, sorted, one entry a port
// and block. names gives the addresses at which a guest finds each name: its
// synthetic one, or what it resolves to where an engine made the network. A name
// without an address is an error, because its rule could not be held.
//
// Each rule is an entry that allows; each reserved range that is strictly inside
// a rule is one that denies, a hole. A rule inside a hole is longer than the
// hole and wins again, which is exactly what [List.AllowsAddr] says.
func (l List) Entries(names map[string][]netip.Addr) ([]Entry, error) {
	type key struct {
		port  uint16
		block netip.Prefix
	}
	table := make(map[key]bool)
	for port, blocks := range l.blocks {
		for _, block := range blocks {
			for _, r := range l.reserved {
				if hole := mapped(r.Prefix); hole != mapped(block) && inside(hole, mapped(block)) {
					if k := (key{port, hole}); !table[k] {
						table[k] = false
					}
				}
			}
			table[key{port, mapped(block)}] = true
		}
	}
	for port, hosts := range l.names {
		for _, name := range hosts {
			addrs := names[name]
			if len(addrs) == 0 {
				return nil, fmt.Errorf("compiling rule %q: the name has no address for the guest", fmt.Sprintf("%s:%d", name, port))
			}
			for _, addr := range addrs {
				addr = addr.Unmap().WithZone("")
				table[key{port, mapped(netip.PrefixFrom(addr, addr.BitLen()))}] = true
			}
		}
	}
	entries := make([]Entry, 0, len(table))
	for k, allow := range table {
		entries = append(entries, Entry{k.port, k.block, allow})
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), comparePrefixes(a.Block, b.Block))
	})
	return entries, nil
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
