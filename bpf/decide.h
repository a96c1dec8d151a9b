// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// What is asked: the path of an entry, and what the guest's rules say about it.
//
// A path is made by walking up from the entry, without locks. A guest cannot profit from a rename
// in the middle of the walk: it may rename a directory only if it may write all that is below, so
// every name that the walk could mix up is one that it may write.
#pragma once

#include "guest.h"

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000

// A program can be interrupted by another task's on the same cpu, so a buffer is taken.
#define BUFFERS 7
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUFFERS);
	__type(key, __u32);
	__type(value, struct path_buffer);
} buffers SEC(".maps");

// hold is what a walk reads of a mount, which lies together in every kernel so far.
struct hold {
	struct mount *parent;
	struct dentry *mountpoint;
	struct dentry *root;
};

static __always_inline bool read_hold(struct hold *hold, struct mount *mount)
{
	const __u32 at = bpf_core_field_offset(struct mount, mnt_parent);

	if (bpf_core_field_offset(struct mount, mnt_mountpoint) == at + 8 && bpf_core_field_offset(struct mount, mnt) == at + 16 &&
	    bpf_core_field_offset(struct vfsmount, mnt_root) == 0)
		return !bpf_probe_read_kernel(hold, sizeof(*hold), (void *)mount + at);
	hold->parent = BPF_CORE_READ(mount, mnt_parent);
	hold->mountpoint = BPF_CORE_READ(mount, mnt_mountpoint);
	hold->root = BPF_CORE_READ(mount, mnt.mnt_root);
	return hold->parent;
}

// walk is the way up from an entry.
struct walk {
	struct path_buffer *path;
	struct dentry *dentry;
	struct mount *mount;
	struct hold hold; // of mount
	__u32 at;         // where the path begins
	__u32 done;
};

// link is what a step reads of an entry, which lies together in every kernel so far.
struct link {
	struct dentry *parent;
	__u32 hash, length;
	const unsigned char *name;
};

static __always_inline bool read_link(struct link *link, struct dentry *dentry)
{
	const __u32 at = bpf_core_field_offset(struct dentry, d_parent);

	if (bpf_core_field_offset(struct dentry, d_name) == at + 8 && bpf_core_field_offset(struct qstr, len) == 4 &&
	    bpf_core_field_offset(struct qstr, name) == 8)
		return !bpf_probe_read_kernel(link, sizeof(*link), (void *)dentry + at);
	link->parent = BPF_CORE_READ(dentry, d_parent);
	link->length = BPF_CORE_READ(dentry, d_name.len);
	link->name = BPF_CORE_READ(dentry, d_name.name);
	return link->parent;
}

static long walk_step(__u32 i, struct walk *walk)
{
	struct dentry *dentry = walk->dentry;
	struct path_buffer *path = walk->path;
	struct link link;

	(void)i;
	if (dentry == walk->hold.root) {
		struct mount *parent = walk->hold.parent;
		if (parent == walk->mount) {
			walk->done = 1;
			return 1;
		}
		walk->dentry = walk->hold.mountpoint;
		walk->mount = parent;
		return !read_hold(&walk->hold, parent);
	}
	if (!read_link(&link, dentry) || link.parent == dentry)
		return 1; // not below its mount: done stays 0
	__u32 length = link.length, at = walk->at;
	if (length > 255 || length == 0)
		return 1;
	at -= length;
	if (at > PATH_END || at <= PATH_FRONT)
		return 1;
	length &= 255;
	if (bpf_probe_read_kernel(&path->bytes[at], length, link.name))
		return 1;
	at--;
	path->bytes[at] = '/';
	walk->at = at;
	walk->dentry = link.parent;
	return 0;
}

// put_word writes a word anywhere: the compiler would write its bytes one by one where it sees that
// the place may not be aligned.
static __always_inline void put_word(void *place, __u64 word)
{
	*(__u64 *)place = word;
}

// copy_short copies a name that lies in its entry, in whole words: what is too much in front of a name
// is where the rest of the path will be written. A copy by a helper costs four times as much.
static __always_inline bool copy_short(struct path_buffer *path, __u32 at, struct dentry *dentry, __u32 length)
{
	if (!bpf_core_field_exists(struct dentry, d_iname) || length > 16 ||
	    dentry->d_name.name != (void *)dentry + bpf_core_field_offset(struct dentry, d_iname))
		return false;
	__u32 last = at + length - 8;
	if (last > PATH_END || last < PATH_FRONT - 8)
		return false;
	__u64 first = *(__u64 *)&dentry->d_iname[0];
	if (length <= 8) {
		put_word(&path->bytes[last], first << (64 - 8 * length));
		return true;
	}
	__u64 second = *(__u64 *)&dentry->d_iname[8];
	put_word(&path->bytes[last], second << (128 - 8 * length));
	put_word(&path->bytes[at], first);
	return true;
}

// DIRECT is how many names of a path are read where they lie, which costs half of a step of walk_step:
// the verifier knows what an entry is that the kernel has handed over, and what is above it.
#define DIRECT 8

// write_path puts the path of an entry into the buffer; false if it has none there.
static __noinline bool write_path(struct path_buffer *path, struct vfsmount *mnt, struct dentry *dentry)
{
	struct walk walk = {
		.path = path, .mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt),
	};
	struct dentry *root = mnt->mnt_root;
	__u32 at = PATH_END;

	for (int i = 0; i < DIRECT && dentry != root; i++) {
		struct dentry *parent = dentry->d_parent;
		__u32 length = dentry->d_name.len;
		if (parent == dentry || length > 255 || length == 0)
			return false; // not below its mount, or no name
		at -= length;
		if (at > PATH_END || at <= PATH_FRONT)
			return false;
		if (!copy_short(path, at, dentry, length) && bpf_probe_read_kernel(&path->bytes[at], length, dentry->d_name.name))
			return false;
		at--;
		path->bytes[at] = '/';
		dentry = parent;
	}
	walk.at = at;
	walk.dentry = dentry;
	if (!read_hold(&walk.hold, walk.mount))
		return false;
	if (dentry != root || walk.hold.parent != walk.mount) {
		bpf_loop(PATH_LONGEST, walk_step, &walk, 0);
		at = walk.at;
		if (!walk.done)
			return false;
	}
	if (at > PATH_END || at < PATH_FRONT)
		return false;
	if (at == PATH_END) {
		at--;
		path->bytes[at] = '/';
	}
	at &= 0x1fff;
	if (at > PATH_END || at < PATH_FRONT)
		return false;
	put_word(&path->bytes[at - PATH_STEP], 0);
	path->start = at;
	return true;
}

static __always_inline bool allows(__u32 verdict, __u32 want, bool directory)
{
	if (directory && want == MAY_READ)
		return verdict & (MAY_READ | MAY_LIST);
	return (verdict & want) == want;
}

// request is what somebody wants with an entry.
struct request {
	__u32 want;
	__u32 kind; // of the event if it is refused
	bool directory;
};

// spared says whether a request that the rules do not allow is the runtime's, which may do
// everything but execute.
static __always_inline bool spared(struct subject *subject, struct request *request)
{
	return !(request->want & MAY_EXECUTE) && is_runtime(subject);
}

// decide_path asks the guest's rules about an entry of its mount namespace.
static __noinline int decide_path(struct subject *subject, struct vfsmount *mnt, struct dentry *dentry, struct request *request)
{
	for (__u32 i = 0; i < BUFFERS; i++) {
		__u32 number = i;
		struct path_buffer *path = bpf_map_lookup_elem(&buffers, &number);
		if (!path || __sync_val_compare_and_swap(&path->busy, 0, 1) != 0)
			continue;
		int error = 0;
		if (!write_path(path, mnt, dentry))
			error = spared(subject, request) ? 0 : refuse(subject, request->kind, EACCES);
		else if (!allows(path_verdict(path, &subject->guest.table, subject->guest.size), request->want, request->directory))
			error = spared(subject, request) ? 0 : refuse_path(subject, path, request->kind, EACCES);
		__sync_lock_test_and_set(&path->busy, 0);
		return error;
	}
	return spared(subject, request) ? 0 : refuse(subject, request->kind, EACCES);
}

// decide_file is about an open file, or one that is being opened.
static __noinline int decide_file(struct subject *subject, struct file *file, __u32 want)
{
	struct vfsmount *mnt = file->f_path.mnt;
	__u16 mode = file->f_inode->i_mode & S_IFMT;
	struct request request = {
		.want = want, .directory = mode == S_IFDIR,
		.kind = want & MAY_EXECUTE ? EVENT_EXEC : want & MAY_WRITE ? EVENT_WRITE : EVENT_READ,
	};

	switch (place_of(mnt, subject)) {
	case LAYER:
		return 0;
	case INTERNAL:
		return want & MAY_EXECUTE && !is_runtime(subject) ? refuse(subject, EVENT_EXEC, EACCES) : 0;
	case FOREIGN:
		return is_runtime(subject) ? 0 : refuse(subject, request.kind, EACCES);
	case GUEST:
		break;
	}
	if (mode != S_IFREG && mode != S_IFDIR) {
		request.want |= OWN;
		request.kind = EVENT_UNIX;
	}
	return request.want ? decide_path(subject, mnt, file->f_path.dentry, &request) : 0;
}

// decide_entry is about a name in a directory, existing or not.
static __noinline int decide_entry(struct subject *subject, struct vfsmount *mnt, struct dentry *dentry, __u32 want, __u32 kind)
{
	struct request request = {.want = want, .kind = kind};

	switch (place_of(mnt, subject)) {
	case LAYER:
	case INTERNAL:
		return 0;
	case FOREIGN:
		return is_runtime(subject) ? 0 : refuse(subject, kind, EACCES);
	case GUEST:
		break;
	}
	return decide_path(subject, mnt, dentry, &request);
}
