package policy

import (
	"fmt"
	"slices"
	"strconv"
)

// Bounds of expose. Below firstExposed a capability is needed to listen, and guests
// have none.
const (
	firstExposed = 1024
	maxExposed   = 64
)

// Expose returns the ports at which the guest may listen on its own loopback, for
// the host to connect to: sorted. No address of the host is involved, and nobody but
// the guest's client can connect.
func (p Policy) Expose() []uint16 { return slices.Clone(p.expose) }

// ExposePort returns a copy with one more port that the guest may listen at. Errors
// are [*Error]s with the key "expose".
func (p Policy) ExposePort(port int) (Policy, error) {
	q := p
	q.expose = slices.Clone(p.expose)
	err := q.addExposed(strconv.Itoa(port))
	return checked(p, q, err, "expose")
}

// addExposed changes p in place: its caller owns the list.
func (p *Policy) addExposed(text string) *Error {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || !isDigits(text) || text[0] == '0' || n < firstExposed {
		return &Error{Value: text, Rule: "is not a port at which a guest can listen",
			WayOut: fmt.Sprintf("write a number from %d to 65535: the ports below need a capability, and guests have none", firstExposed)}
	}
	port := uint16(n)
	at, found := slices.BinarySearch(p.expose, port)
	if found {
		return nil
	}
	if len(p.expose) >= maxExposed {
		return &Error{Value: text, Rule: fmt.Sprintf("is one more than the %d ports that a policy may expose", maxExposed), WayOut: "serve several things at one port"}
	}
	for _, e := range p.tcp.allow {
		if err := taken(port, e); err != nil {
			err.Value = text
			return err
		}
	}
	p.expose = slices.Insert(p.expose, at, port)
	return nil
}

// taken reports an endpoint that is served inside the guest at the port: there, two
// cannot listen at one, whatever their addresses are.
func taken(port uint16, e Endpoint) *Error {
	if first, last := e.Ports(); e.UDP || e.Deny || port < first || port > last {
		return nil
	}
	return &Error{Rule: fmt.Sprintf("expose: %d and tcp: %s are one port inside the guest, where the endpoint is served", port, quote(e.String())),
		WayOut: "have the guest listen at another port"}
}

// exposed reads the ports of expose.
func (r *reader) exposed(key string, n *node) {
	r.list(key, n, "write a list of ports, such as [8000]; [] exposes none", func(item *node) {
		if item.kind != numberNode {
			r.wrong(key, item, "write a port as a number without quotes, such as 8000")
			return
		}
		if !r.found(r.policy.addExposed(item.text), key, item) {
			r.set(key, item.text, item)
		}
	})
}

func compareExposed(a, b Policy) []Difference {
	var all []Difference
	for _, port := range b.expose {
		if !slices.Contains(a.expose, port) {
			text := strconv.Itoa(int(port))
			all = append(all, Difference{Key: "expose", Permits: "listen", Example: text, Rule: text})
		}
	}
	return all
}
