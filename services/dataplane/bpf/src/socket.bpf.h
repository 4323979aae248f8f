/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect(2) by the processes of the subtree, in their own context: the only place where the
 * caller's cgroup is certain.
 */
#ifndef WEFT_SOCKET_BPF_H
#define WEFT_SOCKET_BPF_H

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "maps.bpf.h"

static __always_inline void on_connect(struct bpf_sock_addr *ctx, int family)
{
	struct weft_workload *workload;
	struct weft_active *active;
	struct bpf_sock *sk = ctx->sk;
	__u64 cgroup = 0;

	if (!sk || ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP)
		return;
	workload = current_workload(&cgroup);
	if (!workload) {
		/* The socket may carry a record of an earlier connect by someone else. */
		bpf_sk_storage_delete(&connects, sk);
		count(WEFT_CONNECT_UNREGISTERED);
		return;
	}
	active = bpf_sk_storage_get(&connects, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!active) {
		count(WEFT_NO_STORAGE);
		return;
	}
	/*
	 * A socket can run this twice for one connection at most as two threads that race for it;
	 * what is published already stays known to `tuple`, so that closing still finds it.
	 */
	active->origin.cgroup = cgroup;
	active->origin.netns = bpf_get_netns_cookie(ctx);
	active->origin.socket = bpf_get_socket_cookie(ctx);
	active->origin.index = workload->index;
	active->origin.dport = bpf_ntohs((__u16)ctx->user_port);
	if (family == 4) {
		put_v4(active->origin.daddr, ctx->user_ip4);
	} else {
		__u32 *words = (__u32 *)active->origin.daddr;

		words[0] = ctx->user_ip6[0];
		words[1] = ctx->user_ip6[1];
		words[2] = ctx->user_ip6[2];
		words[3] = ctx->user_ip6[3];
	}
	active->origin.family = family;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	on_connect(ctx, 4);
	return 1;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	on_connect(ctx, 6);
	return 1;
}

#endif
