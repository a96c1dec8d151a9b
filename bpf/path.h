// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The path matcher: one automaton, run over one path. Every program that decides about a path
// includes this header, and so does the one that user space test-runs (match.bpf.c).
//
// The automaton is policy.Automaton with two additions of internal/enforce: byte 0 leads from each
// state to itself, and verdicts have more bits. A path lies at the end of its buffer with zeroes in
// front, so that it can be read in whole steps of eight bytes without a second exit from the loop:
// the verifier then looks at one step instead of 4,096 bytes.
//
//     | … | 0 0 0 0 0 0 / s r | v / d a t a . c s v |
//           start ──┘ rounded down to 8             └── PATH_END
#pragma once

#define PATH_LONGEST 4096
#define PATH_STEP 8
#define PATH_FRONT 80 // room for an event in front of the path, so that both are sent as they lie
#define PATH_END (PATH_FRONT + PATH_LONGEST)

struct path_buffer {
	__u32 busy;  // see path_acquire
	__u32 start; // where the path begins in bytes
	// The tail lets a name, or an event, of any length begin anywhere: the verifier does not know
	// that those which begin late are short.
	__u8 bytes[PATH_END + PATH_LONGEST + 256] __attribute__((aligned(8)));
};

// What a path may be used for. internal/enforce has the same.
#define MAY_READ 1
#define MAY_WRITE 2 // change, create and delete
#define DENIED 4    // by a rule; then nothing else
#define MAY_EXECUTE 8
#define OWN 16      // a place that is the guest's alone: FIFOs and sockets there lead to nobody else
#define MAY_LIST 32 // a directory on the way to something that may be read
#define MAY_MOVE 64 // a directory with nothing below it that may not be written

struct table_head {
	__u16 start;
	__u16 width;
	__u16 root; // verdict of the path "/"
	__u16 unused;
	__u8 classes[256];
};

// The kernel wants the bounds of an array at verification time, so tables come in sizes.
#define TABLE_SMALL (1 << 13)
#define TABLE_MEDIUM (1 << 16)
#define TABLE_LARGE (1 << 19)
#define TABLE_HUGE (1 << 23)

struct path_run {
	struct path_buffer *path;
	void *table;
	__u32 at;
	__u32 state;
};

// KEPT has the compiler compute a value here and keep it, where it would prepare the addresses of
// all bytes of a step first and run out of registers: that doubles the instructions for each.
#define KEPT(value) asm volatile("" : "+r"(value))

// PATH_MATCHER defines struct table_NAME and match_NAME(path, table), the verdict of a path.
#define PATH_MATCHER(name, entries)                                                              \
	struct table_##name {                                                                    \
		struct table_head head;                                                          \
		__u16 next[entries];                                                             \
	};                                                                                       \
	static long step_##name(__u32 i, struct path_run *run)                                   \
	{                                                                                        \
		struct table_##name *table = run->table;                                         \
		(void)i;                                                                         \
		struct path_buffer *path = run->path;                                            \
		__u32 at = run->at, state = run->state, width = table->head.width;               \
		if (at > PATH_END - PATH_STEP)                                                   \
			return 1;                                                                \
		__u64 bytes = *(__u64 *)&path->bytes[at];                                        \
		_Pragma("unroll") for (int byte = 0; byte < PATH_STEP; byte++)                   \
		{                                                                                \
			__u32 class = table->head.classes[bytes & 0xff];                         \
			KEPT(bytes);                                                             \
			bytes >>= 8;                                                             \
			state = table->next[(state * width + class) & (entries - 1)];            \
			KEPT(state);                                                             \
		}                                                                                \
		run->at = at + PATH_STEP;                                                        \
		run->state = state;                                                              \
		return state == 0;                                                               \
	}                                                                                        \
	static __noinline __u32 match_##name(struct path_buffer *path, struct table_##name *table) \
	{                                                                                        \
		__u32 start = path->start;                                                       \
		if (start < PATH_FRONT || start >= PATH_END)                                      \
			return 0;                                                                \
		if (start == PATH_END - 1)                                                       \
			return table->head.root;                                                 \
		struct path_run run = {                                                          \
			.path = path, .table = table,                                            \
			.at = start & ~(PATH_STEP - 1), .state = table->head.start,              \
		};                                                                               \
		bpf_loop(PATH_END / PATH_STEP, step_##name, &run, 0);                            \
		__u32 width = table->head.width;                                                 \
		return table->next[(run.state * width + width - 1) & (entries - 1)];             \
	}                                                                                        \
	struct {                                                                                 \
		__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);                                         \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                            \
		__uint(max_entries, 1 << 12);                                                    \
		__type(key, struct table_id);                                                    \
		__array(values, struct {                                                         \
			__uint(type, BPF_MAP_TYPE_ARRAY);                                        \
			__uint(max_entries, 1);                                                  \
			__uint(key_size, sizeof(__u32));                                         \
			__uint(value_size, sizeof(struct table_##name));                         \
		});                                                                              \
	} tables_##name SEC(".maps")

// A table is found by a digest of what is in it, so guests with equal rules share one.
struct table_id {
	__u8 digest[16];
};

PATH_MATCHER(small, TABLE_SMALL);
PATH_MATCHER(medium, TABLE_MEDIUM);
PATH_MATCHER(large, TABLE_LARGE);
PATH_MATCHER(huge, TABLE_HUGE);

// MATCH_IN looks a table of one size up and runs it.
#define MATCH_IN(name)                                                                           \
	do {                                                                                     \
		__u32 zero = 0;                                                                  \
		void *inner = bpf_map_lookup_elem(&tables_##name, id);                           \
		if (!inner)                                                                      \
			return 0;                                                                \
		struct table_##name *table = bpf_map_lookup_elem(inner, &zero);                  \
		if (!table)                                                                      \
			return 0;                                                                \
		return match_##name(path, table);                                                \
	} while (0)

// path_verdict is what the table says about the path in the buffer. Without a table: nothing is
// allowed.
static __always_inline __u32 path_verdict(struct path_buffer *path, struct table_id *id, __u32 size)
{
	switch (size) {
	case 0:
		MATCH_IN(small);
	case 1:
		MATCH_IN(medium);
	case 2:
		MATCH_IN(large);
	case 3:
		MATCH_IN(huge);
	}
	return 0;
}
