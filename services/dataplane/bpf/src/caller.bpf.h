/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which workload the current task belongs to, and the endpoint it speaks as. */
#ifndef WEFT_CALLER_BPF_H
#define WEFT_CALLER_BPF_H

#include "maps.bpf.h"

/* How deep below the root of the hierarchy a workload's cgroup may lie. */
#define MAX_LEVEL 32

/*
 * The innermost registered cgroup that holds the current task. A workload cannot leave its cgroup
 * but may nest, so the walk goes from the root down: nesting deeper than MAX_LEVEL hides nothing.
 */
static __always_inline struct weft_workload *current_workload(__u64 *cgroup)
{
	struct weft_workload *found;
	__u64 id = bpf_get_current_cgroup_id();
	int level;

	found = bpf_map_lookup_elem(&workloads, &id);
	if (found) {
		*cgroup = id;
		return found;
	}
	for (level = 1; level < MAX_LEVEL; level++) {
		struct weft_workload *outer;

		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			break;
		outer = bpf_map_lookup_elem(&workloads, &id);
		if (outer) {
			found = outer;
			*cgroup = id;
		}
	}
	return found;
}

enum weft_kind {
	/* Nobody that is registered: services are translated and nothing else. */
	WEFT_STRANGER,
	WEFT_POD,
	WEFT_PROCESS,
};

/* Who makes a call. */
struct weft_caller {
	/* The workload's cgroup; 0 for pods. */
	__u64 cgroup;
	__u64 netns;
	__u32 index;
	__u32 kind;
};

/* A pod's own namespace comes first: its packets are judged as the pod's, whoever sends them. */
static __always_inline void find_caller(struct bpf_sock_addr *ctx, struct weft_caller *caller)
{
	struct weft_workload *workload;
	__u32 *pod;

	caller->cgroup = 0;
	caller->index = 0;
	caller->kind = WEFT_STRANGER;
	caller->netns = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&namespaces, &caller->netns);
	if (pod) {
		caller->index = *pod;
		caller->kind = WEFT_POD;
		return;
	}
	workload = current_workload(&caller->cgroup);
	if (workload) {
		caller->index = workload->index;
		caller->kind = WEFT_PROCESS;
	}
}

#endif
