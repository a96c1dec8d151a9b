// SPDX-License-Identifier: Apache-2.0
//
// The zygote's part in C: a Python module that makes guests out of a warm interpreter. The package's
// comment (zygote.go) draws who says what to whom; the steps of a child are in the function child().
//
// The supervisor loads it into the zygote only; no guest's root has it. A guest inherits its code, which
// is of no use to it: everything it does, the guest's seccomp filter forbids, and each function works once.
//
// There is no C library in it, and of Python only what the stable ABI has since 3.9, so one binary serves
// every CPython. What it reads was written by the supervisor. It fails closed: a child that cannot do a
// step says so on its stderr and ends with 125.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03090000
#include <Python.h>

#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <linux/socket.h>
#include <linux/time_types.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define NAMESPACES (CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)

enum { CONTROL = 3, SYNC = 3, WORDS = 4 }; // the zygote's descriptor; a child's, until it is done

#define TIMER_SLACK 50000 // nanoseconds: the kernel's default

#define MAX_LIMITS 8

// order is what the supervisor asks for, with three descriptors: the guest's channel, its stderr, and its
// end of the sync socket. The filter follows.
struct order {
	unsigned int filter; // bytes
	unsigned int limits;
	struct {
		unsigned long long resource, value;
	} limit[MAX_LIMITS];
	char hostname[64];
};

#define MAX_FILTER (4096 * sizeof(struct sock_filter)) // the kernel's limit

// message is a received one.
struct message {
	struct order order;
	char filter[MAX_FILTER];
	int fds[3];
	long size;
};

static enum { ZYGOTE, CHILD, GUEST } state;

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

// call makes a system call; the arguments that are not given are 0.
#define call(...) CALL(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define CALL(n, a, b, c, d, e, f, ...) raw(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

// GCC and clang call these for copies of structures.
void *memset(void *to, int byte, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((volatile char *)to)[i] = byte;
	return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((volatile char *)to)[i] = ((const char *)from)[i];
	return to;
}

static size_t length(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

static void __attribute__((noreturn)) leave(int code)
{
	for (;;)
		call(__NR_exit_group, code);
}

static int words = 2; // where a child says why it ends

// must ends a child that cannot do what it has to.
static long must(long result, const char *what)
{
	static const char digits[] = "0123456789";
	char text[128] = "zygote: ";
	size_t at = length(text);
	long error = -result;

	if (result >= 0)
		return result;
	for (; *what && at < 100; what++)
		text[at++] = *what;
	for (const char *s = ": error "; *s; s++)
		text[at++] = *s;
	for (long scale = 1000; scale; scale /= 10)
		text[at++] = digits[error / scale % 10];
	text[at++] = '\n';
	call(__NR_write, words, text, at);
	leave(125);
}

// receive takes one order. Its result is 0 at the end of the supervisor.
static long receive(int from, struct message *m)
{
	char control[CMSG_SPACE(3 * sizeof(int))];
	struct iovec parts[] = {{&m->order, sizeof(m->order)}, {m->filter, sizeof(m->filter)}};
	struct msghdr header = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *rights = (void *)control;

	do
		m->size = call(__NR_recvmsg, from, &header, MSG_CMSG_CLOEXEC);
	while (m->size == -EINTR);
	if (m->size <= 0)
		return m->size;
	if (m->size < (long)sizeof(m->order) || m->size != (long)(sizeof(m->order) + m->order.filter) || m->order.limits > MAX_LIMITS ||
	    header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || header.msg_controllen < CMSG_LEN(3 * sizeof(int)) ||
	    rights->cmsg_type != SCM_RIGHTS || rights->cmsg_len != CMSG_LEN(3 * sizeof(int)))
		return -EBADMSG;
	memcpy(m->fds, CMSG_DATA(rights), sizeof(m->fds));
	return m->size;
}

// say sends a byte, or a number, and perhaps a descriptor.
static long say(int to, const void *data, size_t size, int fd)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec part = {(void *)data, size};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	struct cmsghdr *rights = (void *)control;

	if (fd >= 0) {
		memset(control, 0, sizeof(control));
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
		header.msg_control = control;
		header.msg_controllen = sizeof(control);
	}
	return call(__NR_sendmsg, to, &header, MSG_NOSIGNAL);
}

// hear waits for the supervisor's word.
static void hear(char expected)
{
	char word = 0;
	long n;

	do
		n = call(__NR_read, SYNC, &word, 1);
	while (n == -EINTR);
	must(n == 1 && word == expected ? 0 : -EPROTO, "waiting for the supervisor");
}

// mount_proc makes a /proc of the child's pid namespace, attached to nothing.
static int mount_proc(void)
{
	long fs = must(call(__NR_fsopen, "proc", FSOPEN_CLOEXEC), "opening proc");
	long fd;

	must(call(__NR_fsconfig, fs, FSCONFIG_SET_STRING, "source", "proc"), "naming proc");
	must(call(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE), "making proc");
	fd = must(call(__NR_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC), "mounting proc");
	call(__NR_close, fs);
	return fd;
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};

	for (int bit = 0; bit < 64; bit++)
		if (call(__NR_prctl, PR_CAPBSET_DROP, bit) == -EINVAL)
			break; // beyond the last
	must(call(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "dropping ambient capabilities");
	must(call(__NR_capset, &header, none), "dropping capabilities");
}

// child is what a guest does before it is one. It begins as a copy of the zygote in namespaces of its own,
// and ends as a process whose root the supervisor puts together. Until it becomes a guest it runs code of the
// agent's, which is in its memory, and reads nothing.
static void child(struct message *m, void *robust, size_t robust_size)
{
	int proc;

	// Its own descriptors, and no other.
	must(call(__NR_dup3, m->fds[1], 2, 0), "taking stderr");
	must(call(__NR_dup3, m->fds[0], 0, 0), "taking stdin");
	must(call(__NR_dup3, m->fds[0], 1, 0), "taking stdout");
	must(m->fds[2] == SYNC ? -EINVAL : call(__NR_dup3, m->fds[2], SYNC, O_CLOEXEC), "taking the sync socket");
	must(call(__NR_close_range, SYNC + 1, ~0U, 0), "closing the zygote's descriptors");
	words = must(call(__NR_dup3, 2, WORDS, O_CLOEXEC), "keeping stderr"); // its agent puts a pipe there
	call(__NR_set_robust_list, robust, robust_size); // which the kernel does not copy

	hear('m'); // the ids are mapped, and the cgroups are joined
	must(call(__NR_setresgid, 0, 0, 0), "becoming the guest's group");
	must(call(__NR_setresuid, 0, 0, 0), "becoming the guest's user");
	must(call(__NR_setsid), "beginning a session");
	must(call(__NR_unshare, CLONE_NEWCGROUP), "making a cgroup namespace");
	must(call(__NR_sethostname, m->order.hostname, length(m->order.hostname)), "setting the host name");
	long keyring = call(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
	must(keyring == -ENOSYS ? 0 : keyring, "leaving the session's keyring");
	// Now and not later: the supervisor lowers them once it has the child's word.
	for (unsigned i = 0; i < m->order.limits; i++) {
		struct rlimit limit = {m->order.limit[i].value, m->order.limit[i].value};
		must(call(__NR_prlimit64, 0, m->order.limit[i].resource, &limit), "setting a limit");
	}
	proc = mount_proc();
	must(say(SYNC, "p", 1, proc), "handing proc over");
	call(__NR_close, proc);
}

// become makes the child a guest: with its root, and nothing that a guest does not have.
static void become(struct message *m)
{
	struct sock_fprog program = {.len = m->order.filter / sizeof(struct sock_filter), .filter = (void *)m->filter};

	// What a preloaded module has begun after the fork would keep all that is given up here. The kernel
	// says no to a process that has threads, or shares its memory.
	must(call(__NR_unshare, CLONE_VM), "being the only thread");
	must(call(__NR_wait4, -1, 0, WNOHANG | __WALL) == -ECHILD ? 0 : -EBUSY, "having no child");
	must(say(SYNC, "s", 1, -1), "telling of the session");
	hear('g'); // the guest's root is ours
	must(call(__NR_chdir, "/"), "going to the root");
	call(__NR_umask, 022);
	drop_capabilities();
	must(call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "setting no_new_privs");
	must(call(__NR_prctl, PR_SET_DUMPABLE, 1), "showing its own files in /proc"); // changing the user hides them
	must(call(__NR_prctl, PR_SET_TIMERSLACK, TIMER_SLACK), "setting the timer slack"); // the supervisor's is another
	call(__NR_close, SYNC);
	if (program.len)
		must(call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program), "putting the filter on");
	call(__NR_close, WORDS);
}

// make clones one guest. It returns twice: 0 in the child.
static long make(struct message *m)
{
	void *robust = 0;
	size_t robust_size = 0;
	unsigned long long tid = 0;
	int pidfd = -1;
	// The child is the supervisor's: its parent is ours. What a C library's fork sees to is the thread's
	// own id, which lies where the kernel clears it at the thread's end.
	call(__NR_prctl, PR_GET_TID_ADDRESS, &tid);
	call(__NR_get_robust_list, 0, &robust, &robust_size);
	struct clone_args args = {
		.flags = NAMESPACES | CLONE_PARENT | CLONE_PIDFD | (tid ? CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID : 0),
		.pidfd = (unsigned long)&pidfd, .child_tid = tid,
	};

	PyOS_BeforeFork();
	long result = call(__NR_clone3, &args, sizeof(args));
	if (result == 0) {
		child(m, robust, robust_size);
		PyOS_AfterFork_Child();
		return 0;
	}
	PyOS_AfterFork_Parent();
	for (int i = 0; i < 3; i++)
		call(__NR_close, m->fds[i]);
	int error = result < 0 ? -result : 0;
	say(CONTROL, &error, sizeof(error), pidfd);
	if (pidfd >= 0)
		call(__NR_close, pidfd);
	return 1;
}

static struct message m; // the order that was taken last
static int connected;	 // the child's channel is where its agent expects it

static PyObject *used(void)
{
	PyErr_SetString(PyExc_RuntimeError, "this is a guest");
	return NULL;
}

static PyObject *serve(PyObject *self, PyObject *number)
{
	long reader = PyLong_AsLong(number);

	(void)self;
	if (state != ZYGOTE)
		return used();
	// Here once, so that no guest is the first: what they take is found by the dynamic linker and lies in
	// memory that they share. In a process of one thread it changes nothing.
	PyOS_BeforeFork();
	PyOS_AfterFork_Child();
	say(CONTROL, "r", 1, -1);
	for (;;) {
		long size = receive(CONTROL, &m);
		if (size <= 0)
			leave(size < 0);
		if (make(&m) == 0)
			break;
	}
	state = CHILD;
	connected = reader >= 0 && call(__NR_dup3, 0, reader, O_CLOEXEC) >= 0; // unless it may not have so many
	return PyBool_FromLong(connected);
}

static PyObject *live(PyObject *self, PyObject *none)
{
	(void)self;
	(void)none;
	if (state != CHILD)
		return used();
	state = GUEST;
	become(&m);
	if (connected) { // else its agent does it
		int null = must(call(__NR_openat, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC), "opening /dev/null");
		must(call(__NR_dup3, null, 0, 0), "closing stdin");
		call(__NR_close, null);
	}
	// No more than came: each page that is written, here or in the zygote, is one that they no longer share.
	memset(&m, 0, sizeof(m.order) + m.order.filter);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"serve", serve, METH_O, "Makes children for the supervisor, and returns in each of them whether its channel is at the descriptor given."},
	{"live", live, METH_NOARGS, "Waits until such a child's root is there, and makes it a guest."},
	{NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_zygote", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__zygote(void) { return PyModuleDef_Init(&module); }
