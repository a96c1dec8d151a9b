// SPDX-License-Identifier: Apache-2.0
//
// What the programs at a guest's cgroup share: whose cgroup it is, and how they answer.
// Included by net.bpf.c and pairs.bpf.c, after the kernel's types.
#pragma once

#include "events.h"

#define EPERM 1

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
