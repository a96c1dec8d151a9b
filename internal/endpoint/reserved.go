package endpoint

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Range is a block of addresses with a meaning of its own.
type Range struct {
	Prefix netip.Prefix
	Reason string // what the addresses are, as an error message says it: "loopback"
}

// Reserved returns the ranges that a wider block never covers: they reach the
// host itself, its neighbours on the link, a cloud's metadata, many hosts at
// once, or IPv4 addresses in the clothes of IPv6. Ranges may contain each other;
// each holds for itself.
//
// The result is everybody's. It is a function so that programs that never decide do not
// pay for the table.
func Reserved() []Range { return reserved() }

var reserved = sync.OnceValue(func() []Range {
	return slices.Clip(ranges([][2]string{
		{"0.0.0.0/8", "unspecified"},
		{"127.0.0.0/8", "loopback"},
		{syntheticRange, "reserved for names"},
		{"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"},
		{"240.0.0.0/4", "reserved"},
		{"::/96", "unspecified"}, // and the abandoned IPv4-compatible form ::127.0.0.1
		{"::1/128", "loopback"},
		{"::ffff:0:0/96", "an IPv4 address"},
		{"64:ff9b::/96", "a translated IPv4 address"},
		{"64:ff9b:1::/48", "a translated IPv4 address"},
		{"2001::/32", "a tunnelled IPv4 address"},
		{"2002::/16", "a tunnelled IPv4 address"},
		{"fe80::/10", "link-local"},
		{"fec0::/10", "link-local"},
		{"ff00::/8", "multicast"},
	}, metadata()))
})

const metadataService = "a cloud's metadata service"

// metadata lists the addresses at which clouds hand credentials to whoever asks.
// The first is the one of nearly all of them; the others are outside link-local
// space: Azure's host, Alibaba, Oracle classic, AWS and Google over IPv6.
func metadata() [][2]string {
	const reason = metadataService
	return [][2]string{
		{"169.254.169.254/32", reason},
		{"168.63.129.16/32", reason},
		{"100.100.100.200/32", reason},
		{"192.0.0.192/32", reason},
		{"fd00:ec2::254/128", reason},
		{"fd20:ce::254/128", reason},
	}
}

// privateRanges lists what else a name must not lead to: addresses that are not
// reachable from everywhere, and so belong to the host's surroundings.
func privateRanges() [][2]string {
	return [][2]string{
		{"10.0.0.0/8", "private"},
		{"100.64.0.0/10", "private (shared by a provider)"},
		{"172.16.0.0/12", "private"},
		{"192.0.0.0/24", "reserved"},
		{"192.0.2.0/24", "reserved for documentation"},
		{"192.168.0.0/16", "private"},
		{"198.18.0.0/15", "reserved for benchmarks"},
		{"198.51.100.0/24", "reserved for documentation"},
		{"203.0.113.0/24", "reserved for documentation"},
		{"100::/64", "reserved"},
		{"2001:db8::/32", "reserved for documentation"},
		{"3fff::/20", "reserved for documentation"},
		{"fc00::/7", "private"},
	}
}

func ranges(tables ...[][2]string) []Range {
	var all []Range
	for _, table := range tables {
		for _, row := range table {
			all = append(all, Range{netip.MustParsePrefix(row[0]), row[1]})
		}
	}
	return all
}

// RefuseResolved says why a connection to a name must not go to addr, to which
// the name resolved: "loopback", "private", … The empty string means that it may.
// private is what the rule says of the name: it permits addresses of the host's
// surroundings (private ones, loopback, link-local, metadata services), and still none
// that is not the address of one host.
// An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4) is judged as itself,
// so that a network that reaches IPv4 only through NAT64 works.
func RefuseResolved(addr netip.Addr, private bool) (reason string) {
	if !addr.IsValid() {
		return "not an address"
	}
	addr = embedded(addr.WithZone(""))
	longest := -1
	for _, r := range append(Reserved(), ranges(privateRanges())...) {
		if r.Prefix.Contains(addr) && r.Prefix.Bits() > longest {
			longest, reason = r.Prefix.Bits(), r.Reason
		}
	}
	surroundings := addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() ||
		strings.HasPrefix(reason, "private") || reason == metadataService
	if private && surroundings && !inside(netip.PrefixFrom(addr, addr.BitLen()), SyntheticRange()) {
		return ""
	}
	return reason
}

// embedded returns the IPv4 address that addr carries, or addr.
func embedded(addr netip.Addr) netip.Addr {
	b := addr.As16()
	switch {
	case addr.Is4In6():
		return addr.Unmap()
	case netip.PrefixFrom(addr, 96).Masked().Addr() == netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b}):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case b[0] == 0x20 && b[1] == 0x02 && addr.Is6():
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}
