/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which workload the current task belongs to. */
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

#endif
