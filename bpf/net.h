// SPDX-License-Identifier: Apache-2.0
//
// What the programs at a guest's cgroup share: whose cgroup it is, and how they answer.
// Included by net.bpf.c and pairs.bpf.c, after the kernel's types.
#pragma once

#include "events.h"

#define EPERM 1

#define OWNERS (1 << 13) // processes that hold guests at a time

#define DENY 0 // the system call gives EPERM
#define ALLOW 1

struct guest {
	__u64 policy; // 0: none yet
	__u64 cgroup; // where the program is attached: whose account denials go to
	__u32 owner;  // in whose maps the policy is
	__u32 udp;    // not 0: the guest may make datagram sockets
};

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64); // cgroup id alone: one storage for all attach types
	__type(value, struct guest);
} guests SEC(".maps");

static __always_inline struct guest *current_guest(void)
{
	return bpf_get_local_storage(&guests, 0);
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, OWNERS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 256 << 10);
	});
} events SEC(".maps");

// map_of is the guest's owner's one of some maps.
static __always_inline void *map_of(void *maps, struct guest *guest)
{
	__u32 owner = guest->owner;

	return bpf_map_lookup_elem(maps, &owner);
}
