// Package endpoint decides which destinations a guest's endpoints mean. It is
// the pure core of the network policy: no socket, no kernel, no clock.
//
// Two mechanisms hold the same list of endpoints, one below the other, and both
// take their decision from here, so that they cannot drift apart:
//
//	internal/netproxy   serves the destinations that exist in the guest's network
//	                    namespace, and asks a [List] for each connection
//	internal/enforce    turns a [List] into the table of an eBPF program by
//	                    [List.Entries]; a property test holds the two together
//
// # What a rule covers
//
// A rule is an address, a block of addresses, an exact name or a wildcard, and a port
// or a range of ports, of TCP or UDP.
// A block covers its addresses except the ranges of [Reserved] that it merely
// happens to contain: 0.0.0.0/0 does not give loopback or the metadata service
// of a cloud, and 127.0.0.0/8 does. That is, an address A in a reserved range S
// is covered by a block only if the block lies inside S.
//
// A name has no address of its own in a guest. It gets a synthetic one from
// [SyntheticRange] (see [Synthetic]), which the guest's /etc/hosts shows, and is
// resolved on the host when a connection is made. What it then resolves to is
// hostile input (DNS rebinding) and passes [RefuseResolved] first. A name that a
// wildcard covers gets one of [DynamicRange] when the guest asks [Resolver] for it.
//
// Do not use the package to parse policies: pkg/policy does that.
package endpoint
