//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// Which listener of a guest's network namespace gets a connection to a port in a range.
//
// Every allowed address is local to the namespace, and one socket per family and protocol listens
// for all the ranges of ports that a policy has, instead of a socket per port. The kernel asks this
// program before it looks for a listener; what the table allows is given to that socket, and
// everything else is looked up as if there were no program. The program does not decide: whoever
// accepts the connection asks the policy again, and net.bpf.c has asked it at connect.
//
// The tables are those of net.bpf.c without the policy number: each namespace has a program and maps
// of its own.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

#define PORT_BITS 48   // protocol and port
#define RANGE_BITS 32  // before the address

struct port {
	__u32 prefixlen; // 32 + the length of the prefix of the port
	__u32 protocol;
	__u16 port; // network order
	__u16 unused;
};

struct steer {
	__u32 prefixlen; // RANGE_BITS + the length of the address prefix
	__u32 range;
	__u32 addr[4]; // network order, IPv4 as IPv4-mapped
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct port);
	__type(value, __u32);
} lookup_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct steer);
	__type(value, __u32); // 1: steer
} steered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4); // TCP over IPv4, TCP over IPv6, UDP over IPv4, UDP over IPv6
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	struct port port = {.prefixlen = PORT_BITS, .protocol = ctx->protocol, .port = bpf_htons(ctx->local_port)};
	struct steer steer = {.prefixlen = RANGE_BITS + 128};
	__u32 *range = bpf_map_lookup_elem(&lookup_ports, &port);
	__u32 slot = ctx->protocol == IPPROTO_UDP ? 2 : 0;
	__u32 *verdict;
	struct bpf_sock *sk;

	if (!range)
		return SK_PASS;
	steer.range = *range;
	if (ctx->family == AF_INET) {
		steer.addr[2] = bpf_htonl(0xffff);
		steer.addr[3] = ctx->local_ip4;
	} else {
		steer.addr[0] = ctx->local_ip6[0];
		steer.addr[1] = ctx->local_ip6[1];
		steer.addr[2] = ctx->local_ip6[2];
		steer.addr[3] = ctx->local_ip6[3];
		slot++;
	}
	verdict = bpf_map_lookup_elem(&steered, &steer);
	if (!verdict || *verdict != 1)
		return SK_PASS;
	sk = bpf_map_lookup_elem(&listeners, &slot);
	if (!sk)
		return SK_PASS;
	bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return SK_PASS;
}

// bpf_sk_assign needs no GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
