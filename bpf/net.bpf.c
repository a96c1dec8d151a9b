//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// The network policy of a guest, held at the guest's cgroup.
//
// Every program asks one question: may a socket of this cgroup talk to (address, port)? The answer
// is a lookup in a longest-prefix trie that all guests of one owner, a process that holds some, share:
//
//   cgroup of the socket ──► guests[cgroup] = {owner, policy}
//   {policy, protocol, port} ──► ports[owner] ──► the range of ports that the policy tells apart
//   {range, policy, address} ──► endpoints[owner] ──► 1 or 0
//   {policy, LISTEN, port} ──► ports[owner] ──► the guest may bind it
//   what is denied ──► events[owner]
//
//   * There is one set of these programs for the whole host. What a process writes for its guests, and
//     what it is told of them, is in maps of its own: nobody else writes there, and they stay as long
//     as one of its guests may need them, whether the process lives or not.
//   * `guests` is cgroup storage: it belongs to the place where the program is attached, so child
//     cgroups that a guest makes have the same policy, and it goes away with the cgroup. The kernel
//     creates it zeroed; policy 0 has no entries, so a guest is denied everything until user space
//     writes its policy.
//   * A policy is never changed. A new one gets a new number, and one write of that number swaps it:
//     a lookup sees the old list or the new one.
//   * IPv4 addresses are looked up as IPv4-mapped IPv6 ones, so 10.0.0.1 and ::ffff:10.0.0.1 are one.
//
// Only what Linux 5.15 has is used, and only its user API headers: no vmlinux.h, no relocations.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "net.h"

#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK4 0x7f000001
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define LISTEN 254 // in the place of a protocol: the ports of the guest's own that it may listen at

// PREFIX_FIXED is the number of bits of a key that are compared in full: of an endpoint its range and
// policy, of a port its protocol and policy.
#define PREFIX_FIXED 96
#define PREFIX_MAX (PREFIX_FIXED + 128)

// A port is a key of the trie of ports.
struct port {
	__u32 prefixlen; // PREFIX_FIXED + the length of the prefix of the port
	__u32 protocol;
	__u64 policy;
	__u16 port; // network order
	__u16 unused[3];
};

// An endpoint is a key of the trie. The range comes before the address because only the tail of a
// key can be a prefix.
struct endpoint {
	__u32 prefixlen; // PREFIX_FIXED + the length of the address prefix
	__u32 range;     // what the trie of ports says: one number for each range and protocol
	__u64 policy;
	__u32 addr[4]; // network order
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, OWNERS);
	__type(key, __u32); // owner
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 1 << 20);
		__uint(key_size, sizeof(struct port));
		__uint(value_size, sizeof(__u32)); // endpoint.range
	});
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, OWNERS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(max_entries, 1 << 20);
		__uint(key_size, sizeof(struct endpoint));
		__uint(value_size, sizeof(__u32)); // ALLOW, or DENY: a hole in a wider prefix
	});
} endpoints SEC(".maps");

// For bpf2go, as in events.h.
struct port *port_type SEC("types");
struct endpoint *endpoint_type SEC("types");

static __always_inline int deny(struct guest *guest, __u16 kind, __u32 port, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	struct event event = {
		.kind = kind,
		.rule = EVENT_NO_RULE,
		.error = EPERM,
		.port = port,
		.address = {a0, a1, a2, a3},
	};
	void *ring = map_of(&events, guest);

	if (ring)
		report_denial(ring, guest->cgroup, &event, 0);
	return DENY;
}

static __always_inline __u32 *range_of_port(struct guest *guest, __u32 protocol, __u32 port)
{
	struct port key = {
		.prefixlen = PREFIX_FIXED + 16,
		.protocol = protocol,
		.policy = guest->policy,
		.port = port,
	};
	void *table = map_of(&ports, guest);

	return table ? bpf_map_lookup_elem(table, &key) : 0;
}

static __always_inline int decide(__u16 kind, __u32 protocol, __u32 port, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	struct guest *guest = current_guest();
	__u32 *range = range_of_port(guest, protocol, port);
	struct endpoint endpoint = {
		.prefixlen = PREFIX_MAX,
		.policy = guest->policy,
		.addr = {a0, a1, a2, a3},
	};
	void *table = map_of(&endpoints, guest);
	__u32 *verdict;

	if (!range || !table)
		return deny(guest, kind, port, a0, a1, a2, a3);
	endpoint.range = *range;
	verdict = bpf_map_lookup_elem(table, &endpoint);
	if (verdict && *verdict == ALLOW)
		return ALLOW;
	return deny(guest, kind, port, a0, a1, a2, a3);
}

static __always_inline int decide4(struct bpf_sock_addr *ctx, __u16 kind)
{
	if (ctx->protocol == IPPROTO_UDP)
		kind = EVENT_SEND;
	return decide(kind, ctx->protocol, ctx->user_port, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

static __always_inline int decide6(struct bpf_sock_addr *ctx, __u16 kind)
{
	if (ctx->protocol == IPPROTO_UDP)
		kind = EVENT_SEND;
	return decide(kind, ctx->protocol, ctx->user_port, ctx->user_ip6[0], ctx->user_ip6[1],
		      ctx->user_ip6[2], ctx->user_ip6[3]);
}

// TCP connect, TCP MSG_FASTOPEN and UDP connect.

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return decide4(ctx, EVENT_CONNECT);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return decide6(ctx, EVENT_CONNECT);
}

// Datagrams of sockets that are not connected.

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return decide4(ctx, EVENT_SEND);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return decide6(ctx, EVENT_SEND);
}

// A guest is a client: it has no port of its own but those that the policy exposes to the host, on its
// loopback or on every address, which in a namespace of psi's making is the same.

static __always_inline int may_listen(struct bpf_sock_addr *ctx, struct guest *guest)
{
	return ctx->protocol == IPPROTO_TCP && range_of_port(guest, LISTEN, ctx->user_port);
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct guest *guest = current_guest();

	if ((ctx->user_ip4 == 0 || ctx->user_ip4 == bpf_htonl(LOOPBACK4)) && may_listen(ctx, guest))
		return ALLOW;
	return deny(guest, EVENT_BIND, ctx->user_port, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct guest *guest = current_guest();
	__u32 a0 = ctx->user_ip6[0], a1 = ctx->user_ip6[1], a2 = ctx->user_ip6[2], a3 = ctx->user_ip6[3];
	int own = !a2 && (!a3 || a3 == bpf_htonl(1));                                 // :: and ::1
	int mapped = a2 == bpf_htonl(0xffff) && (!a3 || a3 == bpf_htonl(LOOPBACK4)); // the same of IPv4

	if (!a0 && !a1 && (own || mapped) && may_listen(ctx, guest))
		return ALLOW;
	return deny(guest, EVENT_BIND, ctx->user_port, a0, a1, a2, a3);
}

// The kernel calls this for AF_INET and AF_INET6 only: every other family (AF_PACKET, AF_NETLINK,
// AF_VSOCK, AF_UNIX …) is the seccomp filter's business. Raw, ping, SCTP and MPTCP end here, and UDP
// where the policy has no rule for it.
SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	struct guest *guest = current_guest();
	int inet = ctx->family == AF_INET || ctx->family == AF_INET6;

	if (inet && ctx->type == SOCK_STREAM && (ctx->protocol == 0 || ctx->protocol == IPPROTO_TCP))
		return ALLOW;
	if (inet && guest->udp && ctx->type == SOCK_DGRAM && (ctx->protocol == 0 || ctx->protocol == IPPROTO_UDP))
		return ALLOW;
	return deny(guest, EVENT_SOCKET, 0, ctx->family, ctx->type, ctx->protocol, 0);
}

// None of the helpers above asks for a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
