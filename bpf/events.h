// SPDX-License-Identifier: Apache-2.0
//
// How a denial becomes an event: the one definition for every program that denies.
//
//   program ──fills── struct event ──report_denial()──► accounts[guest]: count, take a token
//                                                   └─► ring buffer ──► internal/enforce/events.go
//
//   * A guest can be denied as often as it likes, so each has a token bucket: EVENT_BURST events at
//     once and one per EVENT_INTERVAL after them. What has no token is counted, and the next event
//     carries the count, so that events and suppressed ones always add up to the denials.
//   * A guest has an account before it has a policy (user space makes it). Without an account
//     nothing is reported; the denial stands all the same.
//   * Which ring is the caller's business: rings are per owner, because two readers of one would
//     take each other's events and see each other's guests.
//
// Include it after the kernel's types and bpf_helpers.h. All integers are the machine's own, but for
// addresses and ports, which are as on the wire.

#ifndef PSI_EVENTS_H
#define PSI_EVENTS_H

#define EVENT_INTERVAL 10000000ULL // ns: 100 events a second
#define EVENT_BURST 50ULL
#define EVENT_PATH_MAX 4095 // bytes of a path; a longer one is cut, which the reader sees by its length

// What was denied. A number is never used again for another thing.
enum event_kind {
	EVENT_CONNECT = 1, // address, port
	EVENT_SEND = 2,    // a datagram: address, port
	EVENT_BIND = 3,    // address, port
	EVENT_LISTEN = 4,  // address, port
	EVENT_SOCKET = 5,  // address[0] family, address[1] type, address[2] protocol
	EVENT_NAME = 6,    // of a unix socket, to connect or send to, whatever has it: the name as it was given in the place of a path
	EVENT_READ = 16,   // path; so are all that follow
	EVENT_WRITE = 17,
	EVENT_EXEC = 18,
	EVENT_CREATE = 19, // and remove, rename, link: a change of a directory
	EVENT_CHANGE = 20, // of mode, owner, times or attributes
	EVENT_MOUNT = 21,
	EVENT_UNIX = 22, // connecting or sending to a unix socket that was found, opening a FIFO
	EVENT_FORBIDDEN = 23, // what no guest may do and has no kind of its own: ptrace, bpf, modules; no path
};

#define EVENT_NO_RULE (-1) // nothing allowed it, which is what denied it

struct event {
	__u64 time;	  // CLOCK_MONOTONIC, ns
	__u64 cgroup;	  // of the guest, which may be above that of the process
	__u64 suppressed; // denials of this guest so far that made no event
	__u32 pid;	  // of the process, as the host knows it
	__s32 rule;	  // index in the policy of the rule that denied, or EVENT_NO_RULE
	__u16 kind;
	__u16 error; // errno that the guest got
	__u16 port;  // network order
	__u16 path_length;
	__u32 address[4]; // network order, IPv4 as IPv6-mapped
	char command[16];
	// path_length bytes of path follow
};

// The Go that bpf2go makes has a type for it only if something of that type is in the object; the
// section is of no kind that is loaded.
struct event *event_type SEC("types");

struct account {
	__u64 next;	  // when the bucket will be full again, ns
	__u64 denied;	  // denials, reported or not
	__u64 suppressed; // those without an event
	__u64 owner;	  // user space's: which process's guest it is
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 13);
	__type(key, __u64); // cgroup of the guest
	__type(value, struct account);
} accounts SEC(".maps");

// take_token is 0 when the bucket is empty. Two processors that ask at once share one token: the
// other one is told that there is none.
static __always_inline int take_token(struct account *account, __u64 now)
{
	__u64 next = account->next;
	__u64 start = next > now ? next : now;

	if (start - now > (EVENT_BURST - 1) * EVENT_INTERVAL)
		return 0;
	return __sync_val_compare_and_swap(&account->next, next, start + EVENT_INTERVAL) == next;
}

// report_denial counts a denial and sends its event. The caller has set kind, rule, error and what
// the kind speaks of; the path, if there is one, stands directly behind the event, in memory that has
// EVENT_PATH_MAX bytes there.
static __always_inline void report_denial(void *ring, __u64 cgroup, struct event *event, __u32 path_length)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &cgroup);

	if (!account)
		return;
	__sync_fetch_and_add(&account->denied, 1);
	event->time = bpf_ktime_get_ns();
	if (!take_token(account, event->time)) {
		__sync_fetch_and_add(&account->suppressed, 1);
		return;
	}
	if (path_length > EVENT_PATH_MAX)
		path_length = EVENT_PATH_MAX;
	event->cgroup = cgroup;
	event->suppressed = *(volatile __u64 *)&account->suppressed;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->path_length = path_length;
	bpf_get_current_comm(event->command, sizeof(event->command));
	if (bpf_ringbuf_output(ring, event, sizeof(*event) + path_length, 0))
		__sync_fetch_and_add(&account->suppressed, 1); // the reader is behind
}

#endif
