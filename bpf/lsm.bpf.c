//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The file rules of guests, and what no guest may do, held by LSM hooks for the whole host.
//
//   current ──► its cgroup, or one above ──► guests[cgroup] = {table, mount namespace}
//   the object ──► its path in that namespace ──► tables[table] ──► verdict
//
//   * A task that is in no guest's cgroup is none of our business.
//   * A task whose program comes from outside of the guest's mount namespace is the runtime, which
//     makes the guest or enters it: it may do everything but execute what the guest could not.
//     Guest code cannot be such a task: what it executes lies in its own namespace, or is refused.
//   * A file of another mount namespace is refused. What the kernel mounts for itself (pipes,
//     sockets, memfds, the layers of an overlay) has no path, and is nobody's to name.
//   * Whatever cannot be found out is refused.
//
// A path is made by walking up from the entry, without locks. A guest cannot profit from a rename
// in the middle of the walk: it may rename a directory only if it may write all that is below, so
// every name that the walk could mix up is one that it may write.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "kernel.h"
#include "events.h"
#include "path.h"

#define EPERM 1
#define EACCES 13
#define ENOSYS 38
#define SELF_TEST_COMMAND 0x707369 // of bpf(), which has no such command
#define SELF_TEST_ANSWER 76        // ENOTUNIQ, which nothing else returns

#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_EXEC 0x20
#define O_TRUNC 01000
#define PROT_EXEC 4
#define PTRACE_MODE_ATTACH 2
#define PR_SET_MM 35
#define SB_KERNMOUNT (1 << 22)

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct guest {
	struct table_id table;
	__u32 size;            // of the table
	__u32 mount_namespace; // its inode number
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

// A program can be interrupted by another task's on the same cpu, so a buffer is taken.
#define BUFFERS 7
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUFFERS);
	__type(key, __u32);
	__type(value, struct path_buffer);
} buffers SEC(".maps");

// subject is who asks.
struct subject {
	struct guest guest;
	__u64 cgroup;
	bool runtime;
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

static __always_inline enum place place_of(struct vfsmount *mnt, __u32 guest)
{
	struct mount *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	struct mnt_namespace *ns = BPF_CORE_READ(mount, mnt_ns);

	if (!ns)
		return FOREIGN;
	if ((unsigned long)ns >= (unsigned long)-4095)
		return BPF_CORE_READ(mnt, mnt_sb, s_flags) & SB_KERNMOUNT ? INTERNAL : LAYER;
	return BPF_CORE_READ(ns, ns.inum) == guest ? GUEST : FOREIGN;
}

// is_runtime says whether the current task runs a program from outside of the guest.
static __always_inline bool is_runtime(struct subject *subject)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mm_struct *mm = task->mm;
	if (!mm)
		return false;
	struct file *exe = mm->exe_file;
	if (!exe)
		return false;
	return place_of(exe->f_path.mnt, subject->guest.mount_namespace) != GUEST;
}

// enter says whether the current task is held to anything.
static __noinline bool enter(struct subject *subject)
{
	if (!find_guest(subject))
		return false;
	subject->runtime = is_runtime(subject);
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

// walk is the way up from an entry.
struct walk {
	struct path_buffer *path;
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct dentry *root; // of mnt
	__u32 at;            // where the path begins
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
	struct vfsmount *mnt = walk->mnt;
	struct path_buffer *path = walk->path;
	struct link link;

	(void)i;
	if (dentry == walk->root) {
		struct mount *mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
		struct mount *parent = BPF_CORE_READ(mount, mnt_parent);
		if (parent == mount) {
			walk->done = 1;
			return 1;
		}
		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->root = BPF_CORE_READ(parent, mnt.mnt_root);
		walk->mnt = (void *)parent + bpf_core_field_offset(struct mount, mnt);
		return 0;
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

// write_path puts the path of an entry into the buffer; false if it has none there.
static __noinline bool write_path(struct path_buffer *path, struct vfsmount *mnt, struct dentry *dentry)
{
	struct walk walk = {
		.path = path, .dentry = dentry, .mnt = mnt, .root = BPF_CORE_READ(mnt, mnt_root), .at = PATH_END,
	};

	bpf_loop(PATH_LONGEST, walk_step, &walk, 0);
	__u32 at = walk.at;
	if (!walk.done || at > PATH_END || at < PATH_FRONT)
		return false;
	if (at == PATH_END) {
		at--;
		path->bytes[at] = '/';
	}
	at &= 0x1fff;
	if (at > PATH_END || at < PATH_FRONT)
		return false;
	*(__u64 *)&path->bytes[at - PATH_STEP] = 0;
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
			error = refuse(subject, request->kind, EACCES);
		else if (!allows(path_verdict(path, &subject->guest.table, subject->guest.size), request->want, request->directory))
			error = refuse_path(subject, path, request->kind, EACCES);
		__sync_lock_test_and_set(&path->busy, 0);
		return error;
	}
	return refuse(subject, request->kind, EACCES);
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

	switch (place_of(mnt, subject->guest.mount_namespace)) {
	case LAYER:
		return 0;
	case INTERNAL:
		return want & MAY_EXECUTE && !subject->runtime ? refuse(subject, EVENT_EXEC, EACCES) : 0;
	case FOREIGN:
		return subject->runtime ? 0 : refuse(subject, request.kind, EACCES);
	case GUEST:
		break;
	}
	if (subject->runtime && !(want & MAY_EXECUTE))
		return 0;
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

	if (subject->runtime)
		return 0;
	switch (place_of(mnt, subject->guest.mount_namespace)) {
	case LAYER:
	case INTERNAL:
		return 0;
	case FOREIGN:
		return refuse(subject, kind, EACCES);
	case GUEST:
		break;
	}
	return decide_path(subject, mnt, dentry, &request);
}

static __always_inline bool is_directory(struct dentry *dentry)
{
	return (BPF_CORE_READ(dentry, d_inode, i_mode) & S_IFMT) == S_IFDIR;
}

#define ENTER                                                                                    \
	struct subject subject = {};                                                             \
	if (!enter(&subject))                                                                    \
		return 0

// Files.

SEC("lsm/file_open")
int BPF_PROG(psi_file_open, struct file *file)
{
	ENTER;
	__u32 flags = file->f_flags, mode = file->f_mode, want = 0;
	if (flags & FMODE_EXEC)
		want |= MAY_EXECUTE;
	if (mode & FMODE_READ)
		want |= MAY_READ;
	if (mode & FMODE_WRITE || flags & O_TRUNC)
		want |= MAY_WRITE;
	return decide_file(&subject, file, want);
}

SEC("lsm/file_receive")
int BPF_PROG(psi_file_receive, struct file *file)
{
	ENTER;
	__u32 mode = file->f_mode, want = 0;
	if (mode & FMODE_READ)
		want |= MAY_READ;
	if (mode & FMODE_WRITE)
		want |= MAY_WRITE;
	return decide_file(&subject, file, want);
}

SEC("lsm/mmap_file")
int BPF_PROG(psi_mmap_file, struct file *file, unsigned long asked, unsigned long prot)
{
	if (!file || !(prot & PROT_EXEC))
		return 0;
	ENTER;
	return decide_file(&subject, file, MAY_EXECUTE);
}

SEC("lsm/file_mprotect")
int BPF_PROG(psi_file_mprotect, struct vm_area_struct *vma, unsigned long asked, unsigned long prot)
{
	struct file *file = vma->vm_file;

	if (!file || !(prot & PROT_EXEC))
		return 0;
	ENTER;
	return decide_file(&subject, file, MAY_EXECUTE);
}

SEC("lsm/bprm_check_security")
int BPF_PROG(psi_bprm_check, struct linux_binprm *bprm)
{
	ENTER;
	return decide_file(&subject, bprm->file, MAY_EXECUTE);
}

SEC("lsm/path_truncate")
int BPF_PROG(psi_path_truncate, const struct path *path)
{
	ENTER;
	return decide_entry(&subject, path->mnt, path->dentry, MAY_WRITE, EVENT_WRITE);
}

SEC("lsm/path_chmod")
int BPF_PROG(psi_path_chmod, const struct path *path)
{
	ENTER;
	return decide_entry(&subject, path->mnt, path->dentry, MAY_WRITE, EVENT_CHANGE);
}

SEC("lsm/path_chown")
int BPF_PROG(psi_path_chown, const struct path *path)
{
	ENTER;
	return decide_entry(&subject, path->mnt, path->dentry, MAY_WRITE, EVENT_CHANGE);
}

SEC("lsm/path_mknod")
int BPF_PROG(psi_path_mknod, const struct path *dir, struct dentry *dentry, __u16 mode)
{
	ENTER;
	__u32 kind = mode & S_IFMT;
	if (!subject.runtime && (kind == S_IFCHR || kind == S_IFBLK))
		return refuse(&subject, EVENT_CREATE, EPERM);
	return decide_entry(&subject, dir->mnt, dentry,
			    kind == S_IFIFO || kind == S_IFSOCK ? MAY_WRITE | OWN : MAY_WRITE, EVENT_CREATE);
}

SEC("lsm/path_mkdir")
int BPF_PROG(psi_path_mkdir, const struct path *dir, struct dentry *dentry)
{
	ENTER;
	return decide_entry(&subject, dir->mnt, dentry, MAY_WRITE, EVENT_CREATE);
}

SEC("lsm/path_rmdir")
int BPF_PROG(psi_path_rmdir, const struct path *dir, struct dentry *dentry)
{
	ENTER;
	return decide_entry(&subject, dir->mnt, dentry, MAY_WRITE, EVENT_CREATE);
}

SEC("lsm/path_unlink")
int BPF_PROG(psi_path_unlink, const struct path *dir, struct dentry *dentry)
{
	ENTER;
	return decide_entry(&subject, dir->mnt, dentry, MAY_WRITE, EVENT_CREATE);
}

SEC("lsm/path_symlink")
int BPF_PROG(psi_path_symlink, const struct path *dir, struct dentry *dentry)
{
	ENTER;
	return decide_entry(&subject, dir->mnt, dentry, MAY_WRITE, EVENT_CREATE);
}

// A link gives the file a second name: only what may be written may get one that may.
SEC("lsm/path_link")
int BPF_PROG(psi_path_link, struct dentry *old, const struct path *dir, struct dentry *dentry)
{
	ENTER;
	struct vfsmount *mnt = dir->mnt; // of both: no link crosses mounts
	int error = decide_entry(&subject, mnt, old, MAY_WRITE, EVENT_CREATE);
	return error ? error : decide_entry(&subject, mnt, dentry, MAY_WRITE, EVENT_CREATE);
}

// A directory takes what is below to other names, so all of that must be the guest's to write.
static __noinline int decide_rename(struct subject *subject, const struct path *dir, struct dentry *dentry)
{
	return decide_entry(subject, dir->mnt, dentry,
			    is_directory(dentry) ? MAY_WRITE | MAY_MOVE : MAY_WRITE, EVENT_CREATE);
}

SEC("lsm/path_rename")
int BPF_PROG(psi_path_rename, const struct path *old_dir, struct dentry *old, const struct path *new_dir, struct dentry *new)
{
	ENTER;
	int error = decide_rename(&subject, old_dir, old);
	return error ? error : decide_rename(&subject, new_dir, new); // a directory there is empty, or exchanged
}

// What no guest may do.

#define NEVER(hook, event)                                                                           \
	SEC("lsm/" #hook)                                                                        \
	int BPF_PROG(psi_##hook)                                                                 \
	{                                                                                        \
		ENTER;                                                                           \
		return subject.runtime ? 0 : refuse(&subject, event, EPERM);                     \
	}

NEVER(sb_mount, EVENT_MOUNT)
NEVER(sb_umount, EVENT_MOUNT)
NEVER(sb_remount, EVENT_MOUNT)
NEVER(sb_pivotroot, EVENT_MOUNT)
NEVER(move_mount, EVENT_MOUNT)
NEVER(path_chroot, EVENT_MOUNT)
NEVER(userns_create, EVENT_FORBIDDEN)
NEVER(ptrace_traceme, EVENT_FORBIDDEN)
NEVER(bpf_map, EVENT_FORBIDDEN)
NEVER(bpf_prog, EVENT_FORBIDDEN)
NEVER(perf_event_open, EVENT_FORBIDDEN)
NEVER(kernel_load_data, EVENT_FORBIDDEN)
NEVER(kernel_read_file, EVENT_FORBIDDEN)
NEVER(kernel_module_request, EVENT_FORBIDDEN)
NEVER(inode_setxattr, EVENT_CHANGE) // attributes have no path here, only an entry: none at all
NEVER(inode_removexattr, EVENT_CHANGE)
NEVER(inode_set_acl, EVENT_CHANGE) // Linux 6.2
NEVER(inode_remove_acl, EVENT_CHANGE)

SEC("lsm/ptrace_access_check")
int BPF_PROG(psi_ptrace_access_check, struct task_struct *child, unsigned int mode)
{
	if (!(mode & PTRACE_MODE_ATTACH))
		return 0;
	ENTER;
	return subject.runtime ? 0 : refuse(&subject, EVENT_FORBIDDEN, EPERM);
}

SEC("lsm/bpf")
int BPF_PROG(psi_bpf, int command)
{
	if (command == SELF_TEST_COMMAND)
		return -SELF_TEST_ANSWER;
	ENTER;
	return subject.runtime ? 0 : refuse(&subject, EVENT_FORBIDDEN, EPERM);
}

// What runs a program tells the runtime from a guest, so no guest may change it. Any other call is
// left to the kernel by this hook's own answer.
SEC("lsm/task_prctl")
int BPF_PROG(psi_task_prctl, int option)
{
	if (option != PR_SET_MM)
		return -ENOSYS;
	struct subject subject = {};
	if (!enter(&subject) || subject.runtime)
		return -ENOSYS;
	return refuse(&subject, EVENT_FORBIDDEN, EPERM);
}

// Sockets. Where a TCP or UDP socket may connect to is net.bpf.c's business.

static __noinline int refuse_socket(struct subject *subject, __u32 family, __u32 type, __u32 protocol)
{
	struct event event = {.kind = EVENT_SOCKET, .rule = EVENT_NO_RULE, .error = EPERM, .address = {family, type, protocol}};
	__u64 owner = subject->guest.owner;
	void *ring = bpf_map_lookup_elem(&rings, &owner);

	if (ring)
		report_denial(ring, subject->cgroup, &event, 0);
	else
		count_denial(subject->cgroup);
	return -EPERM;
}

SEC("lsm/socket_create")
int BPF_PROG(psi_socket_create, int family, int type, int protocol, int kernel)
{
	if (kernel)
		return 0;
	ENTER;
	if (subject.runtime || family == AF_UNIX)
		return 0; // an AF_UNIX socket is decided when it connects or sends; pairs always may
	if ((family == AF_INET || family == AF_INET6) &&
	    ((type == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP)) ||
	     (type == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP))))
		return 0;
	return refuse_socket(&subject, family, type, protocol);
}

SEC("lsm/socket_listen")
int BPF_PROG(psi_socket_listen, struct socket *sock)
{
	ENTER;
	struct sock_common *common = (void *)BPF_CORE_READ(sock, sk);
	// Who listens without having bound gets a port that no bind hook has seen.
	if (subject.runtime || BPF_CORE_READ(common, skc_family) == AF_UNIX || BPF_CORE_READ(common, skc_num))
		return 0;
	return refuse(&subject, EVENT_LISTEN, EPERM);
}

// decide_peer is about the other end of an AF_UNIX socket.
static __noinline int decide_peer(struct subject *subject, struct sock *other)
{
	struct unix_sock *peer = (void *)other;

	if (subject->runtime || !BPF_CORE_READ(peer, addr))
		return 0; // without a name: the other end of a pair
	struct dentry *dentry = BPF_CORE_READ(peer, path.dentry);
	if (!dentry)
		return refuse(subject, EVENT_UNIX, EPERM); // an abstract name
	return decide_entry(subject, BPF_CORE_READ(peer, path.mnt), dentry, MAY_WRITE | OWN, EVENT_UNIX);
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(psi_unix_stream_connect, struct sock *sock, struct sock *other)
{
	ENTER;
	return decide_peer(&subject, other);
}

SEC("lsm/unix_may_send")
int BPF_PROG(psi_unix_may_send, struct socket *sock, struct socket *other)
{
	ENTER;
	return decide_peer(&subject, BPF_CORE_READ(other, sk));
}

char LICENSE[] SEC("license") = "GPL";
