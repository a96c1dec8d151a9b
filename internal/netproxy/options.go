package netproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// Options is how a [Proxy] serves its guest. The zero value is the default.
type Options struct {
	// MaxConns is how many connections a guest may have at a time; those beyond
	// are reset. 0 means 1024.
	MaxConns int
	// Rate is how many bytes a second all connections together may move, both ways; 0
	// means any. Total is how many they may move at all: then every connection is
	// reset. 0 means any.
	Rate, Total int64
	// Memory is what the sockets of all connections may hold together, in bytes, as far as
	// they can with buffers of 64 KiB: the larger it is for each connection, the faster
	// they are. 0 means 1 MiB for each.
	Memory int64
	// Ahead: endpoints will come with an Update, and what all of them need is done before.
	Ahead bool
	// Budget is shared with the other guests of this process; nil bounds nothing.
	Budget *Budget
	// Steer serves ranges of ports; without it they are an error.
	Steer Steer
	// DialTimeout bounds resolving a name and connecting. 0 means 10 seconds.
	DialTimeout time.Duration
	// IdleTimeout is after how long without a byte in either direction a
	// connection is reset. 0 means never: keep-alive finds peers that vanished.
	IdleTimeout time.Duration
	// Dial connects to addr, an address and port, from the host; network is
	// "tcp" or "udp". nil means the host's own network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resolve returns the addresses of a name. nil means the host's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// OnRefuse is told of each connection that was refused, could not be made or
	// was cut, from that connection's goroutine, so possibly several at a time. It
	// must not call the Proxy's Close. A guest decides how often it is called.
	OnRefuse func(Refusal)
}

const (
	defaultMaxConns    = 1024
	defaultDialTimeout = 10 * time.Second
)

// withDefaults returns the options with nothing left to chance.
func (o Options) withDefaults() Options {
	if o.MaxConns == 0 {
		o.MaxConns = defaultMaxConns
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.Resolve == nil {
		o.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			if strings.Contains(name, ".") {
				name += "." // keeps the host's search domains out of it
			}
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	if o.OnRefuse == nil {
		o.OnRefuse = func(Refusal) {}
	}
	return o
}

// Reason is why a guest's connection was not served, or was cut.
type Reason string

// The reasons.
const (
	NotAllowed  Reason = "not allowed"           // no rule covers the destination
	TooMany     Reason = "too many"              // more than MaxConns
	Unresolved  Reason = "unresolved"            // the name has no address
	Rebound     Reason = "rebound"               // the name resolved to where no name may lead
	Unreachable Reason = "unreachable"           // the host could not connect
	Revoked     Reason = "revoked"               // Update removed the endpoint
	Idle        Reason = "idle"                  // nothing was sent for IdleTimeout
	Exhausted   Reason = "exhausted"             // Total was moved
	NoResources Reason = "host out of resources" // the host had no descriptor or pipe left
)

// Refusal is one connection that was not served, or was cut.
type Refusal struct {
	Protocol endpoint.Protocol
	Dest     netip.AddrPort // what the guest connected to
	Name     string         // the name that Dest stands for, or ""
	Reason   Reason
	Err      error // details; may be nil
}

// Error says which destination, why, and what can be done about it.
func (r Refusal) Error() string {
	dest := r.Dest.String()
	if r.Name != "" {
		dest = fmt.Sprintf("%s:%d", r.Name, r.Dest.Port())
	}
	text := fmt.Sprintf("connecting the guest to %s: %s", dest, r.Reason)
	if r.Err != nil {
		text += ": " + r.Err.Error()
	}
	return text
}

// Unwrap returns the details.
func (r Refusal) Unwrap() error { return r.Err }

// Stats counts since [Open].
type Stats struct {
	Accepted uint64            // connections that the guest made
	Active   uint64            // connections now
	BytesOut uint64            // from the guest
	BytesIn  uint64            // to the guest
	Refused  map[Reason]uint64 // by reason; none is absent
}
