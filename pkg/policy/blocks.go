package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// reservedBlocks are the ranges that a wider block never covers: loopback, the
// neighbours on the link, metadata services, IPv4 in the clothes of IPv6. They
// are internal/endpoint's, which decides; a test holds the two lists together.
// They matter here because taking something out of a block cuts it into smaller
// ones, and one that lies inside a reserved range would open it.
func reservedBlocks() []netip.Prefix {
	var blocks []netip.Prefix
	for _, text := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "127.65.0.0/16", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "::1/128", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16",
		"fe80::/10", "fec0::/10", "ff00::/8",
		"169.254.169.254/32", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
		"fd00:ec2::254/128", "fd20:ce::254/128",
	} {
		blocks = append(blocks, netip.MustParsePrefix(text))
	}
	return blocks
}

// privateBlocks are ranges that a name is never allowed to lead to, so that a
// deny of one holds for names without anybody looking.
func privateBlocks() []netip.Prefix {
	var blocks []netip.Prefix
	for _, text := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7", "fe80::/10",
	} {
		blocks = append(blocks, netip.MustParsePrefix(text))
	}
	return blocks
}

// inside reports whether every address of inner is one of outer.
func inside(inner, outer netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// subtract returns the addresses of block that are not in hole, as blocks in
// order: one for each bit by which the hole is narrower.
func subtract(block, hole netip.Prefix) []netip.Prefix {
	if inside(block, hole) {
		return nil
	}
	if !inside(hole, block) {
		return []netip.Prefix{block}
	}
	var low, high []netip.Prefix
	for block.Bits() < hole.Bits() {
		first, second := halves(block)
		if inside(hole, first) {
			high = append(high, second)
			block = first
		} else {
			low = append(low, first)
			block = second
		}
	}
	slices.Reverse(high)
	return append(low, high...)
}

// halves cuts a block in two.
func halves(block netip.Prefix) (first, second netip.Prefix) {
	bits := block.Bits()
	address := block.Addr().AsSlice()
	address[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(address) // as long as it was
	return netip.PrefixFrom(block.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}

// subtractAll takes every hole out of every block. It stops early when more than
// limit blocks are left, with more than limit.
func subtractAll(blocks, holes []netip.Prefix, limit int) []netip.Prefix {
	for _, hole := range holes {
		var left []netip.Prefix
		for _, block := range blocks {
			left = append(left, subtract(block, hole)...)
		}
		if blocks = left; len(blocks) > limit {
			break
		}
	}
	return blocks
}

// covered returns the addresses that a rule for block covers, reserved ranges
// that it merely happens to contain taken out.
func covered(block netip.Prefix) []netip.Prefix {
	var holes []netip.Prefix
	for _, r := range reservedBlocks() {
		if inside(r, block) && r != block {
			holes = append(holes, r)
		}
	}
	return subtractAll([]netip.Prefix{block}, holes, maxRules)
}

// remaining returns what the allow rules leave open once the deny rules are taken
// out: the endpoints as they were written where no deny rule touches them, smaller
// blocks and ranges of ports where one does. A denied name below an allowed wildcard
// cannot be taken out; it follows as an endpoint with Deny. More than maxRules of
// them is an error about key.
func remaining(key string, allow, deny []Endpoint) ([]Endpoint, *Error) {
	if len(deny) == 0 {
		return slices.Clone(allow), nil
	}
	var open []Endpoint
	below := make(map[Endpoint]bool) // denied names below an allowed wildcard
	for _, e := range allow {
		open = append(open, cut(e, deny, below)...)
		if len(open) > maxRules {
			return nil, &Error{Key: key, Value: e.String(), Rule: fmt.Sprintf("leaves more than %d blocks once what is denied is taken out", maxRules),
				WayOut: "deny fewer or larger blocks"}
		}
	}
	for _, d := range deny {
		if below[d] {
			open = append(open, d)
		}
	}
	return dedupe(open), nil
}

// cut takes what deny takes out of one allowed endpoint.
func cut(e Endpoint, deny []Endpoint, below map[Endpoint]bool) []Endpoint {
	block, isAddress := e.Prefix()
	var touching []Endpoint
	for _, d := range deny {
		hole, ok := d.Prefix()
		switch {
		case !d.overlapsPorts(e) || ok != isAddress:
		case isAddress && hole.Overlaps(block), !isAddress && d.CoversName(e.Host):
			touching = append(touching, d)
		case !isAddress && e.CoversName(d.Host):
			below[d] = true
		}
	}
	if len(touching) == 0 {
		return []Endpoint{e}
	}
	var open []Endpoint
	for _, ports := range segments(e, touching) {
		var holes []netip.Prefix
		denied := false
		for _, d := range touching {
			if first, last := d.Ports(); first > ports[0] || last < ports[1] {
				continue
			}
			hole, _ := d.Prefix()
			holes, denied = append(holes, hole), true
		}
		piece := e
		if piece.Port, piece.Last = ports[0], 0; ports[1] > ports[0] {
			piece.Last = ports[1]
		}
		switch {
		case !denied:
			open = append(open, piece)
		case isAddress:
			for _, left := range subtractAll(covered(block), holes, maxRules) {
				piece.Host = blockHost(left)
				open = append(open, piece)
			}
		}
	}
	return open
}

// segments cuts e's range of ports at the edges of the others', so that each of
// them covers a segment whole or not at all.
func segments(e Endpoint, others []Endpoint) [][2]uint16 {
	first, last := e.Ports()
	starts := []int{int(first)}
	for _, d := range others {
		from, to := d.Ports()
		for _, at := range []int{int(from), int(to) + 1} {
			if at > int(first) && at <= int(last) {
				starts = append(starts, at)
			}
		}
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	var all [][2]uint16
	for i, at := range starts {
		end := last
		if i+1 < len(starts) {
			end = uint16(starts[i+1] - 1)
		}
		all = append(all, [2]uint16{uint16(at), end})
	}
	return all
}

// dedupe keeps the first of equal endpoints.
func dedupe(list []Endpoint) []Endpoint {
	seen := make(map[Endpoint]bool, len(list))
	return slices.DeleteFunc(list, func(e Endpoint) bool {
		twice := seen[e]
		seen[e] = true
		return twice
	})
}

// blockHost writes a block as an endpoint's host.
func blockHost(block netip.Prefix) string {
	if block.IsSingleIP() {
		return block.Addr().String()
	}
	return block.String()
}

// clash reports a pair of rules of which the deny could not be held: a name is
// resolved when the guest connects, so nobody knows whether its addresses are
// those of the other rule.
func clash(allow, deny Endpoint) *Error {
	if !allow.overlapsPorts(deny) || allow.isName() == deny.isName() {
		return nil
	}
	rule := fmt.Sprintf("the deny of %s cannot be held beside %s: the addresses of a name are known only when the guest connects", deny, allow)
	if deny.isName() {
		return &Error{Value: deny.String(), Rule: rule, WayOut: "deny addresses instead of the name"}
	}
	block, _ := deny.Prefix()
	if !allow.Private && slices.ContainsFunc(privateBlocks(), func(p netip.Prefix) bool { return inside(block, p) }) {
		return nil
	}
	return &Error{Value: deny.String(), Rule: rule,
		WayOut: "allow addresses instead of the name, or deny only private ones, to which no name leads"}
}

// isName reports a host name. The last part of one is never a number.
func (e Endpoint) isName() bool {
	return e.IsWildcard() || !strings.ContainsAny(e.Host, ":/") && !isDigits(e.Host[strings.LastIndexByte(e.Host, '.')+1:])
}
