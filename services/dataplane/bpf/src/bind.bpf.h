/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who listens where: each socket that a process binds gets its workload's cgroup written on it. Programs
 * at interfaces find the socket that a packet goes to, and may not ask for its cgroup; what is written
 * on it they may read (process_at).
 */
#ifndef WEFT_BIND_BPF_H
#define WEFT_BIND_BPF_H

#include "caller.bpf.h"
#include "maps.bpf.h"

static __always_inline int on_bound(struct bpf_sock *sk)
{
	__u64 cgroup = 0, *owner;

	if (!current_workload(&cgroup))
		return 1;
	owner = bpf_sk_storage_get(&owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (owner)
		*owner = cgroup;
	else
		/* It is taken for the node's own: what is not known closes. */
		count(WEFT_NO_STORAGE);
	return 1;
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *sk)
{
	return on_bound(sk);
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *sk)
{
	return on_bound(sk);
}

#endif
