#include <errno.h>
#include <linux/bpf_common.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memo.h"

// The linker has everybody call these in place of libseccomp's functions (-wrap). On a thread that has
// called none of memo_*, they do nothing else than call them.
//
// A filter's program follows from the calls that make it. They are written down, the *log*; and a thread
// that knows logs and their programs leaves out those that take long, adding rules, for as long as what
// it is asked is what one of the logs says. If that holds until the program is wanted, it is the program
// of that log. If not, the rules are added then, and libseccomp makes the filter as ever.

enum function { INIT, ATTR_SET, ARCH_ADD, RULE, RULE_EXACT };

// One call. A rule's comparisons follow.
struct call {
	uint32_t function, first, count;
	int32_t second, result;
};

struct known {
	const char *log, *program;
	size_t log_size, program_size;
	int differs;
};

enum { KNOWN = 8 };

static __thread struct {
	int on, recording, hit;
	scmp_filter_ctx filter; // whose calls these are
	char *log, *program;
	size_t size, room, program_size;
	size_t deferred; // where in the log rules begin that libseccomp has not been told of; 0: it knows all
	struct known known[KNOWN];
	int count;
} memo;

scmp_filter_ctx __real_seccomp_init(uint32_t);
int __real_seccomp_reset(scmp_filter_ctx, uint32_t);
int __real_seccomp_merge(scmp_filter_ctx, scmp_filter_ctx);
int __real_seccomp_arch_add(scmp_filter_ctx, uint32_t);
int __real_seccomp_arch_remove(scmp_filter_ctx, uint32_t);
int __real_seccomp_attr_set(scmp_filter_ctx, enum scmp_filter_attr, uint32_t);
int __real_seccomp_syscall_priority(scmp_filter_ctx, int, uint8_t);
int __real_seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_load(const scmp_filter_ctx);
int __real_seccomp_export_bpf(const scmp_filter_ctx, int);
int __real_seccomp_export_pfc(const scmp_filter_ctx, int);
void __real_seccomp_release(scmp_filter_ctx);

void memo_record(void)
{
	memo.on = memo.recording = 1;
}

void memo_know(const void *log, size_t log_size, const void *program, size_t program_size)
{
	if (memo.count == KNOWN)
		return;
	memo.on = 1;
	memo.known[memo.count++] = (struct known){log, program, log_size, program_size, 0};
}

// memo_forget has the thread be as it was; what it was given to know is its caller's again.
void memo_forget(void)
{
	free(memo.log);
	free(memo.program);
	memset(&memo, 0, sizeof(memo));
}

const void *memo_log(size_t *size)
{
	*size = memo.size;
	return memo.log;
}

const void *memo_program(size_t *size)
{
	*size = memo.program_size;
	return memo.program;
}

int memo_hit(void)
{
	return memo.hit;
}

// add_rule has libseccomp add one.
static int add_rule(scmp_filter_ctx filter, const struct call *call, const struct scmp_arg_cmp *args)
{
	if (call->function == RULE_EXACT)
		return __real_seccomp_rule_add_exact_array(filter, call->first, call->second, call->count, args);
	return __real_seccomp_rule_add_array(filter, call->first, call->second, call->count, args);
}

// settle adds the rules that were left out. One that libseccomp does not take now, as it did when the log
// was written, would be missing: nothing is left to do but to end.
static void settle(void)
{
	size_t at = memo.deferred;

	memo.deferred = 0;
	while (at && at < memo.size) {
		struct call call;
		struct scmp_arg_cmp args[6];

		memcpy(&call, memo.log + at, sizeof(call));
		memcpy(args, memo.log + at + sizeof(call), call.count * sizeof(*args));
		if (add_rule(memo.filter, &call, args) != call.result)
			abort();
		at += sizeof(call) + call.count * sizeof(*args);
	}
}

// stop settles, and has nothing more written down.
static void stop(void)
{
	settle();
	memo.filter = NULL;
	memo.on = 0;
}

// append writes a call down.
static void append(const struct call *call, const struct scmp_arg_cmp *args)
{
	size_t more = call->count * sizeof(*args), size = sizeof(*call) + more;

	if (memo.size + size > memo.room) {
		size_t room = 2 * (memo.room + size);
		char *log = realloc(memo.log, room);
		if (!log) {
			stop();
			return;
		}
		memo.log = log;
		memo.room = room;
	}
	memcpy(memo.log + memo.size, call, sizeof(*call));
	if (more)
		memcpy(memo.log + memo.size + sizeof(*call), args, more);
	memo.size += size;
}

// expects tells whether a log goes on with this call, and with what result.
static int expects(struct known *known, const struct call *call, const struct scmp_arg_cmp *args, int32_t *result)
{
	size_t more = call->count * sizeof(*args);
	struct call next;

	if (!known->differs) {
		known->differs = 1; // unless all is well:
		if (memo.size + sizeof(next) + more <= known->log_size) {
			memcpy(&next, known->log + memo.size, sizeof(next));
			*result = next.result;
			next.result = call->result;
			known->differs = memcmp(&next, call, sizeof(next)) != 0 ||
				(more && memcmp(known->log + memo.size + sizeof(next), args, more) != 0);
		}
	}
	return !known->differs;
}

// expected tells whether some log goes on with this call, whose result is the first's.
static int expected(const struct call *call, const struct scmp_arg_cmp *args, int32_t *result)
{
	int found = 0;

	for (int i = 0; i < memo.count; i++) {
		int32_t theirs;
		if (expects(&memo.known[i], call, args, &theirs) && !found++)
			*result = theirs;
	}
	return found > 0;
}

// made writes down a call that libseccomp has answered.
static void made(enum function function, uint32_t first, int32_t second, int32_t result)
{
	struct call call = {function, first, 0, second, result};
	int32_t said = 0;

	if (expected(&call, NULL, &said) && said != result)
		memo.count = 0; // this libseccomp is another
	append(&call, NULL);
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	scmp_filter_ctx filter = __real_seccomp_init(action);

	if (memo.on && memo.filter)
		stop(); // a second filter
	else if (memo.on && filter) {
		memo.filter = filter;
		made(INIT, action, 0, 0);
	}
	return filter;
}

// mine: calls for this filter are written down, and no rule has been left out.
static int mine(scmp_filter_ctx filter)
{
	if (!memo.on || memo.filter != filter)
		return 0;
	if (memo.deferred)
		stop(); // what comes after rules may change what they mean
	return memo.on;
}

int __wrap_seccomp_attr_set(scmp_filter_ctx filter, enum scmp_filter_attr attr, uint32_t value)
{
	int log = mine(filter), result = __real_seccomp_attr_set(filter, attr, value);

	if (log)
		made(ATTR_SET, attr, (int32_t)value, result);
	return result;
}

int __wrap_seccomp_arch_add(scmp_filter_ctx filter, uint32_t arch)
{
	int log = mine(filter), result = __real_seccomp_arch_add(filter, arch);

	if (log)
		made(ARCH_ADD, arch, 0, result);
	return result;
}

static int rule(enum function function, scmp_filter_ctx filter, uint32_t action, int number, unsigned int count, const struct scmp_arg_cmp *args)
{
	struct call call = {function, action, count, number, 0};
	int32_t said;

	if (expected(&call, args, &said)) {
		size_t at = memo.size;
		call.result = said;
		append(&call, args);
		if (memo.on) {
			memo.deferred = memo.deferred ? memo.deferred : at;
			return said;
		}
	}
	settle();
	call.result = add_rule(filter, &call, args);
	if (memo.on) {
		memo.count = 0;
		append(&call, args);
	}
	return call.result;
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx filter, uint32_t action, int number, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (!memo.on || memo.filter != filter || count > 6)
		return __real_seccomp_rule_add_array(filter, action, number, count, args);
	return rule(RULE, filter, action, number, count, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx filter, uint32_t action, int number, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (!memo.on || memo.filter != filter || count > 6)
		return __real_seccomp_rule_add_exact_array(filter, action, number, count, args);
	return rule(RULE_EXACT, filter, action, number, count, args);
}

// keep keeps a program instead of handing it out, so that nobody loads it here.
static int keep(const void *program, size_t size)
{
	if (!(memo.program = malloc(size)))
		return -ENOMEM;
	memcpy(memo.program, program, size);
	memo.program_size = size;
	return -ECANCELED;
}

// record keeps the program that libseccomp makes.
static int record(scmp_filter_ctx filter)
{
	char program[8 * BPF_MAXINSNS + 1];
	int fd = memfd_create("filter", MFD_CLOEXEC), result;

	if (fd < 0)
		return -errno;
	result = __real_seccomp_export_bpf(filter, fd);
	if (result == 0) {
		ssize_t size = pread(fd, program, sizeof(program), 0);
		result = size > 0 && size < (ssize_t)sizeof(program) ? keep(program, size) : -EIO;
	}
	close(fd);
	return result;
}

// whole is the log that this one is, to its end.
static struct known *whole(void)
{
	for (int i = 0; memo.deferred && i < memo.count; i++)
		if (!memo.known[i].differs && memo.known[i].log_size == memo.size)
			return &memo.known[i];
	return NULL;
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx filter, int fd)
{
	if (!memo.on || memo.filter != filter)
		return __real_seccomp_export_bpf(filter, fd);
	struct known *known = whole();
	if (known) {
		memo.hit = 1;
		if (memo.recording)
			return keep(known->program, known->program_size);
		return write(fd, known->program, known->program_size) == (ssize_t)known->program_size ? 0 : -EIO;
	}
	settle();
	return memo.recording ? record(filter) : __real_seccomp_export_bpf(filter, fd);
}

// Everything else that looks at a filter's rules, or changes them, finds them all there.

static void others(scmp_filter_ctx filter)
{
	if (memo.on && memo.filter == filter)
		stop();
}

int __wrap_seccomp_reset(scmp_filter_ctx filter, uint32_t action)
{
	others(filter);
	return __real_seccomp_reset(filter, action);
}

int __wrap_seccomp_merge(scmp_filter_ctx to, scmp_filter_ctx from)
{
	others(to);
	others(from);
	return __real_seccomp_merge(to, from);
}

int __wrap_seccomp_arch_remove(scmp_filter_ctx filter, uint32_t arch)
{
	others(filter);
	return __real_seccomp_arch_remove(filter, arch);
}

int __wrap_seccomp_syscall_priority(scmp_filter_ctx filter, int number, uint8_t priority)
{
	others(filter);
	return __real_seccomp_syscall_priority(filter, number, priority);
}

int __wrap_seccomp_load(const scmp_filter_ctx filter)
{
	others(filter);
	return __real_seccomp_load(filter);
}

int __wrap_seccomp_export_pfc(const scmp_filter_ctx filter, int fd)
{
	others(filter);
	return __real_seccomp_export_pfc(filter, fd);
}

void __wrap_seccomp_release(scmp_filter_ctx filter)
{
	if (memo.on && memo.filter == filter) {
		memo.deferred = 0;
		memo.filter = NULL;
		memo.on = 0;
	}
	__real_seccomp_release(filter);
}
