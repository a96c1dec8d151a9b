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

#include <linux/bpf.h>
#include <linux/ioctl.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "kernel.h"
#include "decide.h"

#define SELF_TEST_COMMAND 0x707369 // of bpf(), which has no such command
#define SELF_TEST_ANSWER 76        // ENOTUNIQ, which nothing else returns

#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_EXEC 0x20
#define O_TRUNC 01000
#define PROT_EXEC 4
#define PTRACE_MODE_ATTACH 2
#define PR_SET_MM 35

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

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

// An ioctl can change a file through a descriptor that was opened to be read: its flags, its version,
// its project, that it is sealed for good (fs-verity), and what a directory holds (btrfs). The number
// says whether something is handed over; those below are the ones that lie, and that only ask.
static __noinline bool ioctl_changes(__u32 number)
{
	switch (number & ~(0x3fffU << 16)) { // without the size, which differs for 32-bit callers
	case _IOC(_IOC_READ, 'f', 19, 0): // FS_IOC_SET_ENCRYPTION_POLICY
	case _IOC(_IOC_NONE, 'f', 9, 0):  // EXT4_IOC_MIGRATE
	case _IOC(_IOC_NONE, 'f', 12, 0): // EXT4_IOC_ALLOC_DA_BLKS
		return true;
	case _IOC(_IOC_READ | _IOC_WRITE, 'f', 11, 0):	// FS_IOC_FIEMAP
	case _IOC(_IOC_WRITE, 'f', 21, 0):		// FS_IOC_GET_ENCRYPTION_POLICY
	case _IOC(_IOC_READ | _IOC_WRITE, 'f', 22, 0):	// FS_IOC_GET_ENCRYPTION_POLICY_EX
	case _IOC(_IOC_READ | _IOC_WRITE, 'f', 134, 0): // FS_IOC_MEASURE_VERITY
	case _IOC(_IOC_READ | _IOC_WRITE, 'f', 135, 0): // FS_IOC_READ_VERITY_METADATA
	case _IOC(_IOC_READ | _IOC_WRITE, 'X', 59, 0):	// FS_IOC_GETFSMAP
		return false;
	}
	return number & _IOC_WRITE << _IOC_DIRSHIFT;
}

static __always_inline int decide_ioctl(struct file *file, __u32 number)
{
	__u16 mode = file->f_inode->i_mode & S_IFMT;

	if ((mode != S_IFREG && mode != S_IFDIR) || !ioctl_changes(number))
		return 0;
	ENTER;
	return decide_entry(&subject, file->f_path.mnt, file->f_path.dentry, MAY_WRITE, EVENT_CHANGE);
}

SEC("lsm/file_ioctl")
int BPF_PROG(psi_file_ioctl, struct file *file, unsigned int number)
{
	return decide_ioctl(file, number);
}

SEC("lsm/file_ioctl_compat") // Linux 6.8; before, file_ioctl is asked
int BPF_PROG(psi_file_ioctl_compat, struct file *file, unsigned int number)
{
	return decide_ioctl(file, number);
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
	if ((kind == S_IFCHR || kind == S_IFBLK) && !is_runtime(&subject))
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
		return is_runtime(&subject) ? 0 : refuse(&subject, event, EPERM);                     \
	}

NEVER(sb_mount, EVENT_MOUNT)
NEVER(sb_umount, EVENT_MOUNT)
NEVER(sb_remount, EVENT_MOUNT)
NEVER(sb_pivotroot, EVENT_MOUNT)
NEVER(sb_kern_mount, EVENT_MOUNT) // fsmount()
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
NEVER(inode_file_setattr, EVENT_CHANGE) // Linux 6.17, whose file_setattr() does what FS_IOC_FSSETXATTR does

SEC("lsm/ptrace_access_check")
int BPF_PROG(psi_ptrace_access_check, struct task_struct *child, unsigned int mode)
{
	if (!(mode & PTRACE_MODE_ATTACH))
		return 0;
	ENTER;
	return is_runtime(&subject) ? 0 : refuse(&subject, EVENT_FORBIDDEN, EPERM);
}

SEC("lsm/bpf")
int BPF_PROG(psi_bpf, int command)
{
	if (command == SELF_TEST_COMMAND)
		return -SELF_TEST_ANSWER;
	ENTER;
	return is_runtime(&subject) ? 0 : refuse(&subject, EVENT_FORBIDDEN, EPERM);
}

// What runs a program tells the runtime from a guest, so no guest may change it. Any other call is
// left to the kernel by this hook's own answer.
SEC("lsm/task_prctl")
int BPF_PROG(psi_task_prctl, int option)
{
	if (option != PR_SET_MM)
		return -ENOSYS;
	struct subject subject = {};
	if (!enter(&subject) || is_runtime(&subject))
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
	if (family == AF_UNIX || is_runtime(&subject))
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
	if (BPF_CORE_READ(common, skc_family) == AF_UNIX || BPF_CORE_READ(common, skc_num) || is_runtime(&subject))
		return 0;
	return refuse(&subject, EVENT_LISTEN, EPERM);
}

// decide_peer is about the other end of an AF_UNIX socket.
static __noinline int decide_peer(struct subject *subject, struct sock *other)
{
	struct unix_sock *peer = bpf_skc_to_unix_sock(other);

	if (is_runtime(subject))
		return 0;
	if (!peer)
		return refuse(subject, EVENT_UNIX, EPERM);
	if (!peer->addr)
		return 0; // without a name: the other end of a pair
	struct dentry *dentry = peer->path.dentry;
	if (!dentry)
		return refuse(subject, EVENT_UNIX, EPERM); // an abstract name
	return decide_entry(subject, peer->path.mnt, dentry, MAY_WRITE | OWN, EVENT_UNIX);
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
	return decide_peer(&subject, other->sk);
}

char LICENSE[] SEC("license") = "GPL";
