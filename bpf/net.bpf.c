//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// The network policy of a guest, held at the guest's cgroup.
//
// Every program asks one question: may a socket of this cgroup talk to (address, port)? The answer
// is a lookup in a longest-prefix trie that all guests of one loader share:
//
//   cgroup of the socket ──► guests[cgroup].policy ──► endpoints[{port, policy, address}] ──► 1 or 0
//
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

#include "events.h"

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6

#define DENY 0 // the system call gives EPERM
#define ALLOW 1

// PREFIX_FIXED is the number of bits of an endpoint that are compared in full (port and policy).
#define PREFIX_FIXED 96
#define PREFIX_MAX (PREFIX_FIXED + 128)

struct guest {
	__u64 policy; // 0: none yet
	__u64 cgroup; // where the program is attached: whose account denials go to
};

// An endpoint is a key of the trie. The port comes before the address because only the tail of a
// key can be a prefix.
struct endpoint {
	__u32 prefixlen; // PREFIX_FIXED + the length of the address prefix
	__u32 port;      // network order in the first two bytes, as bpf_sock_addr.user_port
	__u64 policy;
	__u32 addr[4]; // network order
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64); // cgroup id alone: one storage for all attach types
	__type(value, struct guest);
} guests SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct endpoint);
	__type(value, __u32); // ALLOW, or DENY: a hole in a wider prefix
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 10);
} events SEC(".maps");

#define EPERM 1

static __always_inline int deny(struct guest *guest, __u16 kind, __u32 port, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	struct event event = {
		.kind = kind,
		.rule = EVENT_NO_RULE,
		.error = EPERM,
		.port = port,
		.address = {a0, a1, a2, a3},
	};

	report_denial(&events, guest->cgroup, &event, 0);
	return DENY;
}

static __always_inline struct guest *current_guest(void)
{
	return bpf_get_local_storage(&guests, 0);
}

static __always_inline int decide(__u32 protocol, __u32 port, __u32 a0, __u32 a1, __u32 a2, __u32 a3)
{
	struct guest *guest = current_guest();
	struct endpoint endpoint = {
		.prefixlen = PREFIX_MAX,
		.port = port,
		.policy = guest->policy,
		.addr = {a0, a1, a2, a3},
	};
	__u32 *verdict = bpf_map_lookup_elem(&endpoints, &endpoint);

	if (protocol == IPPROTO_TCP && verdict && *verdict == ALLOW)
		return ALLOW;
	return deny(guest, EVENT_CONNECT, port, a0, a1, a2, a3);
}

// TCP connect, TCP MSG_FASTOPEN and UDP connect.

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return decide(ctx->protocol, ctx->user_port, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return decide(ctx->protocol, ctx->user_port, ctx->user_ip6[0], ctx->user_ip6[1],
		      ctx->user_ip6[2], ctx->user_ip6[3]);
}

// The rules are about TCP, so an unconnected datagram has no allowed destination. inet_create
// already refuses datagram sockets; these hold for one that is older than the attachment.

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return deny(current_guest(), EVENT_SEND, ctx->user_port, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return deny(current_guest(), EVENT_SEND, ctx->user_port, ctx->user_ip6[0], ctx->user_ip6[1],
		    ctx->user_ip6[2], ctx->user_ip6[3]);
}

// A guest is a client: it has no port of its own.

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return deny(current_guest(), EVENT_BIND, ctx->user_port, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return deny(current_guest(), EVENT_BIND, ctx->user_port, ctx->user_ip6[0], ctx->user_ip6[1],
		    ctx->user_ip6[2], ctx->user_ip6[3]);
}

// The kernel calls this for AF_INET and AF_INET6 only: every other family (AF_PACKET, AF_NETLINK,
// AF_VSOCK, AF_UNIX …) is the seccomp filter's business. UDP, raw, ping, SCTP and MPTCP end here.
SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	if ((ctx->family == AF_INET || ctx->family == AF_INET6) && ctx->type == SOCK_STREAM &&
	    (ctx->protocol == 0 || ctx->protocol == IPPROTO_TCP))
		return ALLOW;
	return deny(current_guest(), EVENT_SOCKET, 0, ctx->family, ctx->type, ctx->protocol, 0);
}

// None of the helpers above asks for a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
