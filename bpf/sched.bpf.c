//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// When a guest is held back by its cpu limit.
//
// The scheduler marks a group's run queue when its share of the period is used up, as it takes the
// processor from the task that used it: the next thing that happens is a switch, from that task. Its
// period is counted later, when it ends (nr_throttled), and tells of the queues that were marked
// without a switch, because a task woke up on a processor that had nothing left.
//
//   prev ──► its run queue ──► the group's cgroup ──► guests[cgroup] = {owner, periods, last}
//                                                └──► rings[owner], at the first of a stretch
//
//   * This runs at every switch of the host: whoever is in no group that is or was held back costs
//     the three loads of the first condition.
//   * A stretch lasts until a guest has not been held back for QUIET: a guest that computes without
//     pause is held back once a period, and on a busy machine not even that.
//   * The group is that of the cpu controller: the guest's own. What a group above it (a pod's) or
//     below it is held back for is not the guest's policy.

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <stdbool.h>

#define QUIET 800000000ULL // ns: eight periods
#define DEPTH 8            // how far below a guest's group its tasks' may be

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct cfs_bandwidth {
	int nr_throttled;
};

struct task_group {
	struct cgroup_subsys_state css;
	struct cfs_bandwidth cfs_bandwidth;
};

struct cfs_rq {
	struct task_group *tg;
	int throttle_count; // of itself and the queues above it, those that are held back
};

struct sched_entity {
	struct sched_entity *parent;
	struct cfs_rq *cfs_rq;
};

struct task_struct {
	struct sched_entity se;
};

#pragma clang attribute pop

struct guest {
	__u64 owner;   // of the ring
	__u64 periods; // known at the last look
	__u64 last;    // when it was last held back; 0: never
	__u64 began;   // when the last stretch did
	__u64 told;    // stretches, whether or not there was room for a record
};

struct throttle {
	__u64 time;    // CLOCK_MONOTONIC, ns
	__u64 cgroup;  // of the cpu controller
	__u64 periods; // in which the guest was held back, with this one
};

struct throttle *throttle_type SEC("types"); // for bpf2go

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 13);
	__type(key, __u64); // cgroup of the cpu controller
	__type(value, struct guest);
} guests SEC(".maps");

// One of each process that has guests.
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 13);
	__type(key, __u64); // owner
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 1 << 14);
	});
} rings SEC(".maps");

// look is true if the queue is that of a guest.
static __always_inline bool look(struct cfs_rq *queue, bool held)
{
	__u64 cgroup = queue->tg->css.cgroup->kn->id;
	struct guest *guest = bpf_map_lookup_elem(&guests, &cgroup);
	__u64 periods = queue->tg->cfs_bandwidth.nr_throttled;

	if (!guest)
		return false;
	if (!held && periods <= guest->periods)
		return true;
	guest->periods = periods + held; // this one will be counted, and is no news then

	__u64 now = bpf_ktime_get_ns();
	__u64 last = __sync_lock_test_and_set(&guest->last, now); // of two processors one begins it
	if (last && (now < last || now - last <= QUIET))
		return true;
	guest->began = now;
	__sync_fetch_and_add(&guest->told, 1);

	__u64 owner = guest->owner;
	void *ring = bpf_map_lookup_elem(&rings, &owner);
	struct throttle throttle = {.time = now, .cgroup = cgroup, .periods = periods + held};
	if (ring)
		bpf_ringbuf_output(ring, &throttle, sizeof(throttle), 0);
	return true;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(psi_sched_switch, bool preempt, struct task_struct *prev)
{
	struct sched_entity *entity = &prev->se;
	struct cfs_rq *queue = entity->cfs_rq;

	if (!queue->throttle_count && !queue->tg->cfs_bandwidth.nr_throttled)
		return 0;
	for (int i = 0; i < DEPTH; i++) {
		entity = entity->parent;
		if (!entity)
			return 0; // the queue of all groups
		struct cfs_rq *above = entity->cfs_rq;
		if (look(queue, queue->throttle_count > above->throttle_count) || !above->throttle_count)
			return 0;
		queue = above;
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
