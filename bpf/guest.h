// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Who asks: the guest that the current task belongs to, whether the task is the runtime instead, and
// how it is refused. Included by lsm.bpf.c, after the kernel's types.
#pragma once

#include "events.h"
#include "path.h"

#define EPERM 1
#define EACCES 13
#define ENOSYS 38
#define SB_KERNMOUNT (1 << 22)

struct guest {
	struct table_id table;
	__u32 size;            // of the table
	__u32 mount_namespace; // its inode number
	__u32 forked;          // its program is a zygote's, from outside: no task of it is the runtime
	__u32 zero;
	__u64 owner;           // of the ring for its denials
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 13);
	__type(key, __u64); // cgroup id
	__type(value, struct guest);
} guests SEC(".maps");

// The rings of those processes that want to hear of denials, each of its own guests.
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 10);
	__type(key, __u64); // owner
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, 1 << 18);
	});
} rings SEC(".maps");

// The depths at which a guest's cgroup may be, innermost first, then zeroes.
#define DEPTHS 16
struct depth_list {
	__u32 depth[DEPTHS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct depth_list);
} depths SEC(".maps");

// subject is who asks.
struct subject {
	struct guest guest;
	__u64 cgroup;
	__u64 home; // address of the guest's mount namespace, if the task is in it
};

// guest_of finds the guest that the current task belongs to, if any.
static __noinline bool find_guest(struct subject *subject)
{
	__u32 zero = 0;
	struct depth_list *list = bpf_map_lookup_elem(&depths, &zero);

	if (!list)
		return false;
	for (int i = 0; i < DEPTHS; i++) {
		__u32 depth = list->depth[i];
		if (!depth)
			return false;
		__u64 id = bpf_get_current_ancestor_cgroup_id(depth);
		if (!id)
			continue;
		struct guest *guest = bpf_map_lookup_elem(&guests, &id);
		if (guest) {
			subject->guest = *guest;
			subject->cgroup = id;
			return true;
		}
	}
	return false;
}

enum place {
	FOREIGN,  // of another mount namespace, or of none
	GUEST,    // of the guest's
	INTERNAL, // of the kernel alone
	LAYER,    // of the kernel alone, below a file system that has been asked already
};

static __always_inline enum place place_of(struct vfsmount *mnt, struct subject *subject)
{
	struct mount *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	struct mnt_namespace *ns = BPF_CORE_READ(mount, mnt_ns);

	if (!ns)
		return FOREIGN;
	if ((__u64)ns == subject->home)
		return GUEST;
	if ((unsigned long)ns >= (unsigned long)-4095)
		return BPF_CORE_READ(mnt, mnt_sb, s_flags) & SB_KERNMOUNT ? INTERNAL : LAYER;
	return BPF_CORE_READ(ns, ns.inum) == subject->guest.mount_namespace ? GUEST : FOREIGN;
}

// find_home notes the guest's namespace, which the task keeps alive: to compare addresses is
// enough then, and costs less than to look into each.
static __always_inline void find_home(struct subject *subject, struct task_struct *task)
{
	struct nsproxy *proxy = task->nsproxy;
	struct mnt_namespace *ns = proxy ? proxy->mnt_ns : 0;

	if (ns && ns->ns.inum == subject->guest.mount_namespace)
		subject->home = (__u64)ns;
}

// is_runtime says whether the current task runs a program from outside of the guest. It is asked
// last: for what the guest may do it makes no difference.
static __noinline bool is_runtime(struct subject *subject)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mm_struct *mm = task->mm;

	if (subject->guest.forked || !mm)
		return false;
	struct file *exe = mm->exe_file;
	if (!exe)
		return false;
	return place_of(exe->f_path.mnt, subject) != GUEST;
}

// enter says whether the current task is held to anything.
static __noinline bool enter(struct subject *subject)
{
	if (!find_guest(subject))
		return false;
	find_home(subject, bpf_get_current_task_btf());
	return true;
}

// count_denial is for a guest whose denials nobody wants to hear of.
static __always_inline void count_denial(__u64 cgroup)
{
	struct account *account = bpf_map_lookup_elem(&accounts, &cgroup);

	if (account)
		__sync_fetch_and_add(&account->denied, 1);
}

// refuse denies something that has no path.
static __noinline int refuse(struct subject *subject, __u32 kind, int error)
{
	struct event event = {.kind = kind, .rule = EVENT_NO_RULE, .error = error};
	__u64 owner = subject->guest.owner;
	void *ring = bpf_map_lookup_elem(&rings, &owner);

	if (ring)
		report_denial(ring, subject->cgroup, &event, 0);
	else
		count_denial(subject->cgroup);
	return -error;
}

// refuse_path denies what is at the path in the buffer.
static __noinline int refuse_path(struct subject *subject, struct path_buffer *path, __u32 kind, int error)
{
	__u64 owner = subject->guest.owner;
	void *ring = bpf_map_lookup_elem(&rings, &owner);
	__u32 start = path->start;

	if (!ring || start < PATH_FRONT || start >= PATH_END) {
		count_denial(subject->cgroup);
		return -error;
	}
	struct event *event = (void *)&path->bytes[start - sizeof(*event)];
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = kind;
	event->rule = EVENT_NO_RULE;
	event->error = error;
	report_denial(ring, subject->cgroup, event, PATH_END - start);
	return -error;
}
