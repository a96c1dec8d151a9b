// Package netproxy is a guest's network: the endpoints of its policy, and no
// others, made to exist inside the guest's own network namespace.
//
// The namespace has a loopback and no way out: no veth, no NAT, no route to
// anywhere, no name server. [Open] enters it and makes each allowed address local
// there (an AnyIP route, `local 10.0.0.0/8 dev lo`, so a block costs as much as an
// address), then opens one listening socket a port and family. Ranges of ports share
// one socket a family, to which an sk_lookup program ([Options.Steer]) brings what is
// allowed. Sockets stay in the namespace in which they were made, so the host side
// serves them from where it is:
//
//	guest's namespace              │  host
//	connect 10.1.2.3:5432 ──► lo ──►  accept ─► is 10.1.2.3:5432 in the policy?
//	                               │           ─► connect 10.1.2.3:5432
//	        bytes  ◄───────────────┼─ splice ──────────►  bytes
//
// 127.0.0.1:9200 in the guest is 127.0.0.1:9200 on the host, when the policy says
// so. The address that the guest connected to is the one that is checked and the
// one that is dialled; nothing the guest sends has a say in it.
//
// # Names
//
// A name appears in the guest's /etc/hosts with a synthetic loopback address
// ([Names] says which; see package endpoint). The host resolves it anew for each
// connection. Whoever controls the name must not get the guest into the host's
// surroundings (DNS rebinding), so results that are loopback, link-local,
// private, metadata, multicast, unspecified or any of these dressed up as IPv6
// are refused. A rule that gives the address itself is the way to allow one, or one that
// says private of the name.
//
// Names that a wildcard covers are not known beforehand. A tiny DNS responder in the
// namespace (endpoint.Resolver, by TCP; the guest's /etc/resolv.conf says so) gives
// each a synthetic address when the guest asks for it, and says of every other name
// that it does not exist. It asks nobody.
//
// # Datagrams
//
// A flow, which is a port of the guest and a destination, is served as a connection is:
// see [Options] for its limits. It ends when nothing was sent for a minute.
//
// # Towards the guest
//
// [Proxy.Connect] connects to a port that the guest listens at. That socket is handed
// to whoever asked; nothing of it passes here.
//
// # What a guest sees
//
//	destination not in the policy   ECONNREFUSED or ENETUNREACH (EPERM, with
//	                                internal/enforce in place)
//	allowed, cannot be reached      ECONNRESET, mostly from the first read or write
//	                                and not from connect: the guest's handshake
//	                                is over before the host's begins
//	beyond the connection limit     the same
//	beyond the bytes in total       the same, and existing connections are reset
//	beyond the bytes a second       everything waits its turn
//	peer closes its sending half    end of file; the other direction goes on
//	peer resets                     ECONNRESET
//	endpoint removed by Update      ECONNRESET on connections to it
//
// A guest can open connections and leave them; it costs two small goroutines and
// two descriptors each, up to [Options.MaxConns]. A pipe is held only while bytes
// are on their way. Do not use the package where an engine made the network: its
// namespace has routes, and a listener here would serve whoever follows them.
package netproxy
