//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Names of AF_UNIX sockets, for a guest that can make no such socket but pairs: none.
//
// An end of a pair of datagram sockets can send to any socket that has a name, and connect to it.
// Since Linux 6.7 the programs of the cgroup in which a socket was made are asked each time that it
// is given a name. These refuse, whatever it is, and tell. What an end sends to its other end needs
// no name.
//
// The kernel's types are not used: to read them takes 40 ms, nearly as much as a cold start. What is
// wanted of them is where the kernel keeps the name (struct bpf_sock_addr_kern, the same since the
// hook is there), and only to be told. So it is read, and compared with what the kernel itself hands
// over: a name that does not agree is not told. Nothing is decided by it.
//
// The maps are those that the network programs have.

#include <linux/bpf.h>
#include <linux/un.h>
#include <bpf/bpf_helpers.h>

#include "net.h"

#define AF_UNIX 1

// asked is the beginning of what the context really is.
struct asked {
	__u64 socket;
	__u64 address; // of a struct sockaddr_un
	__u64 unused[2];
	__u32 length; // of that
	__u32 zero;
};

// told is an event, and the name behind it.
struct told {
	struct event event;
	char name[UNIX_PATH_MAX];
	__u32 zero;
};

// read_name returns the length of the name: 0 if there is none to tell.
static __always_inline __u32 read_name(struct bpf_sock_addr *ctx, char *name)
{
	const __u32 before = __builtin_offsetof(struct sockaddr_un, sun_path);
	struct asked asked = {};

	if (bpf_probe_read_kernel(&asked, __builtin_offsetof(struct asked, zero), ctx))
		return 0;
	if (ctx->user_family != AF_UNIX || asked.socket != (__u64)ctx->sk)
		return 0;
	__u32 length = asked.length - before;
	if (length - 1 >= UNIX_PATH_MAX)
		return 0;
	asm volatile("" : "+r"(length)); // or the compiler compares a copy
	if (length > UNIX_PATH_MAX || bpf_probe_read_kernel(name, length, (void *)asked.address + before))
		return 0;
	// What the context calls the port lies where a name begins.
	return (__u8)name[0] == (ctx->user_port & 0xff) ? length : 0;
}

static __always_inline int refuse(struct bpf_sock_addr *ctx)
{
	struct told told = {.event = {.kind = EVENT_NAME, .rule = EVENT_NO_RULE, .error = EPERM}};
	__u32 length = read_name(ctx, told.name);

	asm volatile("" : "+r"(length));
	if (length > UNIX_PATH_MAX)
		length = 0;
	struct guest *guest = current_guest();
	void *ring = map_of(&events, guest);

	if (ring)
		report_denial(ring, guest->cgroup, &told.event, length);
	return DENY;
}

SEC("cgroup/connect_unix")
int connect_unix(struct bpf_sock_addr *ctx)
{
	return refuse(ctx);
}

SEC("cgroup/sendmsg_unix")
int sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return refuse(ctx);
}

char LICENSE[] SEC("license") = "GPL";
