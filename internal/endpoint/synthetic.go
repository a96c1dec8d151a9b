package endpoint

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
)

// syntheticRange is loopback, so the addresses are local in every network
// namespace without a route, and mean nothing outside of one.
const syntheticRange = "127.65.0.0/16"

// SyntheticRange is the block from which names get their addresses in a guest. Its
// lower half is for exact names, the upper one is [DynamicRange].
func SyntheticRange() netip.Prefix { return netip.MustParsePrefix(syntheticRange) }

// DynamicRange is the block from which names that a wildcard covers get theirs, once
// a guest asks for them. Its first address is that of [Resolver].
func DynamicRange() netip.Prefix { return netip.MustParsePrefix("127.65.128.0/17") }

// Resolver is where a guest with wildcards finds who answers for names.
func Resolver() netip.AddrPort { return netip.MustParseAddrPort("127.65.128.0:53") }

// maxNames leaves out the first and last address of the lower half, which look like
// those of a network and a broadcast.
const maxNames = 1<<15 - 2

// Synthetic gives each name an address of [SyntheticRange]. The result depends
// on names (in any order) and taken only, never on chance; a name that is in
// taken keeps its address. Most names have the same address in every list,
// because it is looked for from the name's hash on. More than 32,766 names are
// an error.
func Synthetic(names []string, taken map[string]netip.Addr) (map[string]netip.Addr, error) {
	assigned := make(map[string]netip.Addr, len(names))
	used := make(map[netip.Addr]bool, len(names)+len(taken))
	for name, addr := range taken {
		assigned[name], used[addr] = addr, true
	}
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	for _, name := range slices.Compact(sorted) {
		if _, ok := assigned[name]; ok {
			continue
		}
		if len(used) >= maxNames {
			return nil, fmt.Errorf("giving %q an address: a guest can have at most %d names", name, maxNames)
		}
		slot := firstSlot(name)
		for used[slotAddr(slot)] {
			slot = slot%maxNames + 1
		}
		assigned[name] = slotAddr(slot)
		used[assigned[name]] = true
	}
	return assigned, nil
}

// firstSlot returns a number from 1 to maxNames.
func firstSlot(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // a hash never fails
	return h.Sum32()%maxNames + 1
}

func slotAddr(slot uint32) netip.Addr {
	base := SyntheticRange().Addr().As4()
	return netip.AddrFrom4([4]byte{base[0], base[1], byte(slot >> 8), byte(slot)})
}
