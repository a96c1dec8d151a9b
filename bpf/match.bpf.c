//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The matcher of path.h as a program that user space can run on a path of its choice
// (BPF_PROG_TEST_RUN), on kernels too that refuse the programs of lsm.bpf.c. Tests compare it with
// the Go automaton and with the reference, and measure it.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "path.h"

struct path_question {
	struct table_id table;
	__u32 size;
	__u32 unused;
	struct path_buffer path;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct path_question);
} question SEC(".maps");

SEC("socket")
int match(struct __sk_buff *ctx)
{
	__u32 zero = 0;
	struct path_question *q = bpf_map_lookup_elem(&question, &zero);

	(void)ctx;
	if (!q)
		return 0;
	return path_verdict(&q->path, &q->table, q->size);
}

char LICENSE[] SEC("license") = "GPL";
