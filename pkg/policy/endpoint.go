package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Endpoint is something that a guest may connect to, in canonical form:
// comparable, one value per meaning.
//
// Host is an IPv4 or IPv6 address, a CIDR block of either ("10.0.0.0/8"), an
// exact host name in lower case without a trailing dot, or "*.example.org", which
// covers every name that ends in ".example.org" and not example.org itself. IPv4
// addresses mapped into IPv6 are written as IPv4; so a block of IPv6 addresses
// never covers IPv4 ones.
type Endpoint struct {
	Host string
	Port uint16 // 1 to 65535; the first one of a range
	Last uint16 // the last port of a range; 0: Port alone
	// UDP is for datagrams; else the endpoint is for TCP.
	UDP bool
	// Private permits a name to lead to addresses of the host's surroundings.
	Private bool
	// Deny takes the endpoint out of what others allow.
	Deny bool
}

// Ports returns the first and the last port.
func (e Endpoint) Ports() (first, last uint16) { return e.Port, max(e.Port, e.Last) }

// String writes the endpoint as documents do: "host:port" or "host:first-last",
// IPv6 in brackets. UDP, Private and Deny are not part of it.
func (e Endpoint) String() string {
	port := strconv.Itoa(int(e.Port))
	if e.Last > e.Port {
		port += "-" + strconv.Itoa(int(e.Last))
	}
	if strings.Contains(e.Host, ":") {
		return "[" + e.Host + "]:" + port
	}
	return e.Host + ":" + port
}

// describe writes the endpoint as origins do: "deny 10.9.0.0/16:5432".
func (e Endpoint) describe() string {
	switch {
	case e.Deny:
		return "deny " + e.String()
	case e.Private:
		return "private " + e.String()
	}
	return e.String()
}

// CoversName reports whether the endpoint's host is name, or a wildcard that
// covers it. name may be a wildcard too.
func (e Endpoint) CoversName(name string) bool {
	suffix, wild := strings.CutPrefix(e.Host, "*")
	return e.Host == name || wild && strings.HasSuffix(name, suffix) && len(name) > len(suffix)
}

// IsWildcard reports a host such as "*.example.org".
func (e Endpoint) IsWildcard() bool { return strings.HasPrefix(e.Host, "*.") }

// overlapsPorts reports whether the two have a port in common.
func (e Endpoint) overlapsPorts(other Endpoint) bool {
	first, last := e.Ports()
	otherFirst, otherLast := other.Ports()
	return first <= otherLast && otherFirst <= last
}

// Prefix returns the addresses of an address or CIDR endpoint; a single address
// is a prefix of its full length. ok is false for a name.
func (e Endpoint) Prefix() (prefix netip.Prefix, ok bool) {
	if prefix, err := netip.ParsePrefix(e.Host); err == nil {
		return prefix, true
	}
	addr, err := netip.ParseAddr(e.Host)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// ParseEndpoint reads "host:port", "[v6]:port", "10.0.0.0/8:port" or
// "*.example.org:port", where port may be a range: "8000-8100". Errors are
// [*Error]s.
func ParseEndpoint(text string) (Endpoint, error) {
	e, err := parseEndpoint(text)
	if err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

func parseEndpoint(text string) (Endpoint, *Error) {
	bad := func(rule, wayOut string) (Endpoint, *Error) {
		return Endpoint{}, &Error{Value: text, Rule: rule, WayOut: wayOut}
	}
	if strings.Contains(text, "//") {
		return bad("is a URL", "write only host:port, such as api.example.com:443")
	}
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 || strings.HasSuffix(text, "]") {
		return bad("has no port", "write host:port, such as 127.0.0.1:9200 or [::1]:9200")
	}
	host, portText := text[:colon], text[colon+1:]
	port, last, rule, wayOut := parsePorts(portText)
	if rule != "" {
		return bad(rule, wayOut)
	}
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	switch {
	case bracketed:
		host = host[1 : len(host)-1]
		if !strings.Contains(host, ":") {
			return bad("has brackets around what is not an IPv6 address", "remove the brackets")
		}
	case strings.HasPrefix(host, "[") && strings.Contains(host, "]/"):
		return bad("has the length of its prefix behind the brackets", "write it inside, such as [2001:db8::/32]:443")
	case strings.Contains(host, ":"):
		return bad("has an IPv6 address without brackets", "write [address]:port, such as [::1]:9200")
	}
	host, rule, wayOut = canonicalHost(host)
	if rule != "" {
		return bad(rule, wayOut)
	}
	return Endpoint{Host: host, Port: port, Last: last}, nil
}

// parsePorts reads a port or a range of ports; last is 0 for a single one.
func parsePorts(text string) (first, last uint16, rule, wayOut string) {
	if text == "*" {
		return 0, 0, "has a wildcard for the port", "write 1-65535 for every port"
	}
	from, to, isRange := strings.Cut(text, "-")
	if first, rule, wayOut = parsePort(from, text); rule != "" || !isRange {
		return first, 0, rule, wayOut
	}
	if last, rule, wayOut = parsePort(to, text); rule != "" {
		return 0, 0, rule, wayOut
	}
	if last <= first {
		return 0, 0, fmt.Sprintf("has a range of ports that does not rise: %s", quote(text)), "write the lower port first, such as 8000-8100, or one port"
	}
	return first, last, "", ""
}

func parsePort(text, written string) (port uint16, rule, wayOut string) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || !isDigits(text) || text[0] == '0' {
		return 0, fmt.Sprintf("has no valid port: %s", quote(written)), "write a number from 1 to 65535, such as 127.0.0.1:9200, or a range, such as 8000-8100"
	}
	return uint16(n), "", ""
}

// canonicalHost returns the one form of an address, CIDR block or name.
func canonicalHost(host string) (canonical, rule, wayOut string) {
	if strings.Contains(host, "/") {
		return canonicalBlock(host)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return canonicalName(host)
	}
	if addr.Zone() != "" {
		return "", "has a zone, which names an interface of the host", "a link-local address cannot be allowed: use another"
	}
	addr = addr.Unmap()
	if rule, wayOut := unreachable(addr); rule != "" {
		return "", rule, wayOut
	}
	if rule, wayOut := standsForNames(netip.PrefixFrom(addr, addr.BitLen())); rule != "" {
		return "", rule, wayOut
	}
	return addr.String(), "", ""
}

// syntheticBlock is the range whose addresses stand for names inside a guest
// (internal/endpoint's; a test holds the two together).
const syntheticBlock = "127.65.0.0/16"

// standsForNames refuses an address or a block inside the range of names.
func standsForNames(block netip.Prefix) (rule, wayOut string) {
	if inside(block, netip.MustParsePrefix(syntheticBlock)) {
		return "lies in " + syntheticBlock + ", whose addresses stand for names inside a guest", "use another loopback address, such as 127.0.0.1"
	}
	return "", ""
}

// unreachable says why no connection can mean this address.
func unreachable(addr netip.Addr) (rule, wayOut string) {
	switch {
	case addr.IsUnspecified():
		return "is not the address of a host", "write 127.0.0.1 or [::1] for this host, 0.0.0.0/0 or [::/0] for every address"
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is an address of many hosts, which a guest cannot connect to", "write the address of one host"
	}
	return "", ""
}

// canonicalBlock returns the one form of a CIDR block.
func canonicalBlock(host string) (canonical, rule, wayOut string) {
	block, err := netip.ParsePrefix(host)
	if err != nil {
		return "", "has no valid CIDR block", "write address/bits, such as 10.0.0.0/8 or [fd00::/8]"
	}
	if block.Addr().Is4In6() {
		if block.Bits() < 96 {
			return "", "mixes IPv4 and IPv6 addresses in one block", "use one rule for each family"
		}
		block = netip.PrefixFrom(block.Addr().Unmap(), block.Bits()-96)
	}
	if masked := block.Masked(); masked != block {
		return "", "has bits beyond its prefix", fmt.Sprintf("write %s for the block, or the address alone", masked)
	}
	if block.IsSingleIP() {
		return canonicalHost(block.Addr().String())
	}
	if rule, wayOut := standsForNames(block); rule != "" {
		return "", rule, wayOut
	}
	if block.Addr().IsMulticast() && block.Bits() >= 4 {
		rule, wayOut := unreachable(block.Addr())
		return "", rule, wayOut
	}
	return block.String(), "", ""
}

// asciiForm is what to write for a name in another script. It is not taken by itself:
// what looks like a name in ASCII may be one of letters that only look alike.
func asciiForm(host string) string {
	const longest = 1024 // to convert takes the square of the length
	if len(host) <= longest {
		name, wildcard := strings.CutPrefix(host, "*.")
		if ascii, err := idna.Lookup.ToASCII(name); err == nil && wildcard {
			return quote("*."+ascii) + " if that is meant"
		} else if err == nil {
			return quote(ascii) + " if that is meant"
		}
	}
	return "its xn-- form"
}

// canonicalName returns the one form of a host name.
func canonicalName(host string) (canonical, rule, wayOut string) {
	const example = "write a name such as api.example.com"
	if strings.ContainsFunc(host, func(r rune) bool { return r >= 0x80 }) {
		return "", "has a name that is not ASCII", "write " + asciiForm(host)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	switch {
	case name == "":
		return "", "has no host", "write host:port, such as 127.0.0.1:9200"
	case len(name) > 253:
		return "", "has a name longer than 253 characters", example
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		return "", "names this host, which names may not lead to", "write 127.0.0.1 or [::1]"
	}
	labels := strings.Split(name, ".")
	if labels[0] == "*" {
		if labels = labels[1:]; len(labels) < 2 {
			return "", "has a wildcard that covers a whole top-level domain or every name", "write *.example.org, with at least two parts after the star"
		}
	}
	for _, label := range labels {
		if strings.Contains(label, "*") {
			return "", "has a star that is not the whole first part of the name", "write *.example.org"
		}
		if rule := labelFault(label); rule != "" {
			return "", rule, example
		}
	}
	if last := labels[len(labels)-1]; isDigits(last) || strings.HasPrefix(last, "0x") {
		return "", "is neither a name nor an address in the usual form", "write four decimal numbers, such as 127.0.0.1"
	}
	return name, "", ""
}

// labelFault says what is wrong with one part of a host name.
func labelFault(label string) string {
	if label == "" || len(label) > 63 {
		return "has a part of the name that is empty or longer than 63 characters"
	}
	for i := range len(label) {
		c := label[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_':
		case c == '-' && i > 0 && i < len(label)-1:
		default:
			return fmt.Sprintf("has %q in the name, or at an end of one of its parts", string(c))
		}
	}
	return ""
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
