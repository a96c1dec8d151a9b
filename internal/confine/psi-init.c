//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// psi-init is the last thing that runs before the program of a container, in the container: it puts a
// Landlock domain and seccomp filters on itself, and becomes the program.
//
//   /proc/self/fd/N  N OFFSET SIZE  PROGRAM ARGUMENT...
//        │           │  └──────┴── where the orders are in the file N
//        └───────────┴── this program with its orders behind it, one sealed memfd
//
// An order is a struct order and its data, padded to 8 bytes; package confine writes them:
//
//   DOMAIN    begin a Landlock domain that handles `access`
//   RULE      allow `access` at and below the path in data; a path that is not there, or that leads
//             through a symbolic link, is not allowed
//   RESTRICT  put the domain on
//   FILTER    put the seccomp filter in data on
//   GUARD     give capabilities up: `access` are not inherited any more, the first mask in data is taken
//             out of the bounding set and the second out of what is permitted. psi-init has one more than any other process of the container, and so none of
//             them can trace it and take its place before it is confined. It goes with the exec
//
// It fails closed: whatever cannot be done ends it with a line on stderr and 125, 126 if the program
// cannot be executed, or 127 if there is none (as env and podman do). There is no C library, because
// there is next to nothing to do, and a container waits for it; nothing is allocated; no descriptor is
// left open. What it reads was written by psi-runtime and sealed; the paths are the container's own.

#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/stat.h>

typedef unsigned int u32;
typedef unsigned long u64;

#define PATH_SIZE 4096

enum { DOMAIN = 1, RULE = 2, RESTRICT = 3, FILTER = 4, GUARD = 5 };

// What can be allowed on something that is no directory; the rest is refused there (EINVAL).
#define FILE_ACCESS (1UL << 0 | 1UL << 1 | 1UL << 2 | 1UL << 14 | 1UL << 15)

struct order {
	u32 kind;
	u32 size; // of data, without padding
	u64 access;
	char data[];
};

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

static u64 length(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

// The message to the user, written at once: whoever collects it takes it for one line.
static char message[512];
static u64 said;

static void say(const char *s)
{
	for (; *s && said < sizeof(message); s++)
		message[said++] = *s;
}

static void say_number(long n)
{
	char text[24];
	char *at = text + sizeof(text) - 1;

	*at = 0;
	do {
		*--at = '0' + n % 10;
	} while (n /= 10);
	say(at);
}

static void __attribute__((noreturn)) leave(int code)
{
	call(__NR_write, 2, message, said);
	for (;;)
		call(__NR_exit_group, code);
}

// fail ends the container's program before it began. what says what could not be done.
static void __attribute__((noreturn)) fail(const char *what, long error)
{
	say("psi-init: ");
	say(what);
	if (error < 0) {
		say(": error ");
		say_number(-error);
	}
	say("\n");
	leave(125);
}

static long number(const char *s)
{
	long n = 0;

	if (!*s)
		fail("an empty number", 0);
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || n > 1L << 40)
			fail("not a number", 0);
		n = 10 * n + *s - '0';
	}
	return n;
}

// walk opens the path step by step, and follows no symbolic link. The path is absolute and clean, and
// is cut into pieces. The result is negative when it is not there.
static long walk(char *path)
{
	long fd = call(__NR_openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC);

	while (fd >= 0 && *path) {
		char *name = ++path;
		long next;

		while (*path && *path != '/')
			path++;
		if (path == name)
			break; // "/"
		char end = *path;

		*path = 0;
		next = call(__NR_openat, fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		*path = end;
		call(__NR_close, fd);
		fd = next;
	}
	return fd;
}

static void allow(long ruleset, struct order *o, char *path)
{
	struct landlock_path_beneath_attr rule = {.allowed_access = o->access};
	struct statx st;
	long fd, error;

	if (o->size < 2 || o->size > PATH_SIZE || o->data[0] != '/' || o->data[o->size - 1])
		fail("a rule without a path", 0);
	for (u32 i = 0; i < o->size; i++)
		path[i] = o->data[i];
	fd = walk(path);
	if (fd == -ENOENT || fd == -ENOTDIR || fd == -EACCES)
		return; // nothing to allow, or out of reach
	if (fd < 0)
		fail("opening what a Landlock rule allows", fd);
	error = call(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
	if (error < 0)
		fail("looking at what a Landlock rule allows", error);
	if (!S_ISLNK(st.stx_mode)) {
		if (!S_ISDIR(st.stx_mode))
			rule.allowed_access &= FILE_ACCESS;
		rule.parent_fd = fd;
		if (rule.allowed_access)
			error = call(__NR_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule);
		if (error < 0)
			fail("adding a Landlock rule", error);
	}
	call(__NR_close, fd);
}

static void filter(struct order *o)
{
	struct sock_fprog program = {.len = o->size / sizeof(struct sock_filter), .filter = (void *)o->data};
	// As libseccomp does: a filter alone is no reason to slow speculation down.
	long error = call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);

	if (error < 0)
		fail("putting the seccomp filter on", error);
}

// drop takes capabilities out of the bounding and the inheritable set, and with that out of the
// ambient one, and others out of the permitted set: see GUARD.
static void drop(u64 inheritable, struct order *o)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	u64 *sets = (u64 *)o->data, bounding, permitted;
	long error;

	if (o->size != 2 * sizeof(u64))
		fail("no capabilities", 0);
	bounding = sets[0];
	permitted = sets[1];
	// CAP_SETPCAP, with which this is done, comes before the guard, so go from the top.
	for (int bit = 63; bit >= 0; bit--) {
		if (!(bounding >> bit & 1))
			continue;
		error = call(__NR_prctl, PR_CAPBSET_DROP, bit);
		if (error < 0)
			fail("dropping a capability", error);
	}
	error = call(__NR_capget, &header, data);
	if (error < 0)
		fail("reading the capabilities", error);
	for (int i = 0; i < 2; i++) {
		data[i].inheritable &= ~(u32)(inheritable >> 32 * i);
		data[i].permitted &= ~(u32)(permitted >> 32 * i);
		data[i].effective &= data[i].permitted;
	}
	error = call(__NR_capset, &header, data);
	if (error < 0)
		fail("setting the capabilities", error);
}

// obey follows the orders from at to end.
static void obey(char *at, char *end, char *path)
{
	long ruleset = -1, error;

	while (at < end) {
		struct order *o = (void *)at;

		if ((u64)(end - at) < sizeof(*o) || (u64)(end - at) - sizeof(*o) < o->size)
			fail("orders that are cut off", 0);
		at += sizeof(*o) + (((u64)o->size + 7) & ~7UL);
		switch (o->kind) {
		case DOMAIN:
			ruleset = call(__NR_landlock_create_ruleset, &o->access, sizeof(o->access));
			if (ruleset < 0)
				fail("making a Landlock domain", ruleset);
			break;
		case RULE:
			allow(ruleset, o, path);
			break;
		case GUARD:
			drop(o->access, o);
			break;
		case RESTRICT:
			error = call(__NR_landlock_restrict_self, ruleset);
			if (error < 0)
				fail("putting the Landlock domain on", error);
			call(__NR_close, ruleset);
			break;
		case FILTER:
			filter(o);
			break;
		default:
			fail("an unknown order", 0);
		}
	}
}

static void __attribute__((noreturn)) no_program(const char *name, long error)
{
	int missing = error == -ENOENT || error == -ENOTDIR;

	say("psi-init: exec: \"");
	say(name);
	say(missing ? "\": executable file not found in $PATH: no such file or directory\n" :
	    error == -EACCES || error == -EPERM ? "\": permission denied\n" : "\": cannot be executed\n");
	leave(missing ? 127 : 126);
}

// become executes the program, looked for in $PATH as a shell does.
static void __attribute__((noreturn)) become(char **argv, char **envp, char *path)
{
	const char *dirs = "";
	long error = -ENOENT;
	u64 name = length(argv[0]);

	for (u64 i = 0; i < name; i++)
		if (argv[0][i] == '/')
			no_program(argv[0], call(__NR_execve, argv[0], argv, envp));
	for (char **at = envp; *at; at++) {
		char *e = *at;

		if (e[0] == 'P' && e[1] == 'A' && e[2] == 'T' && e[3] == 'H' && e[4] == '=')
			dirs = e + 5;
	}
	while (name && *dirs) {
		u64 n = 0;
		long result;
		int fits = 1;

		for (; *dirs && *dirs != ':'; dirs++) {
			fits = fits && n + name + 2 < PATH_SIZE;
			if (fits)
				path[n++] = *dirs;
		}
		if (*dirs)
			dirs++;
		if (!fits || path[0] != '/' || n == 0)
			continue; // the working directory is no place to find programs in
		path[n++] = '/';
		for (u64 i = 0; i <= name; i++)
			path[n + i] = argv[0][i];
		result = call(__NR_execve, path, argv, envp);
		if (result != -ENOENT && result != -ENOTDIR)
			error = result;
		if (error != -ENOENT && error != -EACCES)
			break;
	}
	no_program(argv[0], error);
}

__attribute__((used)) static void __attribute__((noreturn)) start(long *stack)
{
	static char path[PATH_SIZE];
	long argc = stack[0];
	char **argv = (char **)(stack + 1), **envp = argv + argc + 1, *file;
	long fd, offset, size, error;

	if (argc < 5)
		fail("is started by psi-runtime only", 0);
	fd = number(argv[1]);
	offset = number(argv[2]);
	size = number(argv[3]);
	error = call(__NR_mmap, 0, offset + size, PROT_READ, MAP_PRIVATE, fd);
	if (error < 0 && error > -4096)
		fail("reading the orders", error);
	file = (char *)error;
	call(__NR_close, fd);
	error = call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1);
	if (error < 0)
		fail("setting no_new_privs", error);
	obey(file + offset, file + offset + size, path);
	become(argv + 4, envp, path);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start\n");
