/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way of a record from connect(2) to the accepted socket: sockops sees the connecting socket
 * again when the local port is known and publishes the record under {netns cookie, 4-tuple}; when
 * the other end of that connection is established it moves the record to the accepted socket.
 * In passing it writes down whose packets a process's connection will send.
 */
#ifndef WEFT_ORIGIN_BPF_H
#define WEFT_ORIGIN_BPF_H

#include "addr.bpf.h"
#include "maps.bpf.h"

/* Set at load time. */
const volatile __u32 share_max = 2048;

/* Both addresses of the socket. An AF_INET6 socket may carry IPv4. */
static __always_inline int both_ends(struct bpf_sock_ops *ctx, __u8 *local, __u8 *remote)
{
	__u32 *l = (__u32 *)local, *r = (__u32 *)remote;

	if (ctx->family == AF_INET6) {
		r[0] = ctx->remote_ip6[0];
		r[1] = ctx->remote_ip6[1];
		r[2] = ctx->remote_ip6[2];
		r[3] = ctx->remote_ip6[3];
		if (!is_mapped(remote)) {
			l[0] = ctx->local_ip6[0];
			l[1] = ctx->local_ip6[1];
			l[2] = ctx->local_ip6[2];
			l[3] = ctx->local_ip6[3];
			return 1;
		}
		/* While the SYN is sent, the mapped form of the local address may not be filled in yet. */
	} else if (ctx->family != AF_INET) {
		return 0;
	}
	put_v4(local, ctx->local_ip4);
	put_v4(remote, ctx->remote_ip4);
	return 1;
}

/* Does the connection stay in its namespace? Others never meet a listener of ours. */
static __always_inline int is_local(const struct weft_tuple *tuple)
{
	return is_loopback(tuple->daddr) || same_addr(tuple->saddr, tuple->daddr);
}

/* Whose share of `pending` a record takes: a workload's by its cgroup, a pod's by its namespace. */
static __always_inline __u64 share_of(const struct weft_origin *origin)
{
	return origin->cgroup ? origin->cgroup : origin->netns | 1ULL << 63;
}

/* Removes a record. Of two CPUs that try, one succeeds, and that one gives the share back. */
static __always_inline int take_pending(const struct weft_tuple *tuple, __u64 owner)
{
	__s32 *share;

	if (bpf_map_delete_elem(&pending, tuple))
		return 0;
	share = bpf_map_lookup_elem(&shares, &owner);
	if (share)
		__sync_fetch_and_add(share, -1);
	return 1;
}

static __always_inline void process_key(const struct weft_tuple *tuple, struct weft_process *key)
{
	copy_addr(key->saddr, tuple->saddr);
	copy_addr(key->daddr, tuple->daddr);
	key->sport = tuple->sport;
	key->dport = tuple->dport;
	key->proto = IPPROTO_TCP;
}

static __always_inline void withdraw(struct weft_active *active)
{
	__u16 entries = active->entries;
	struct weft_tuple tuple;

	if (!entries)
		return;
	active->entries = 0;
	tuple = active->tuple;
	if (entries & WEFT_ACTIVE_PENDING) {
		struct weft_origin *held = bpf_map_lookup_elem(&pending, &tuple);

		if (held && held->socket == active->origin.socket && take_pending(&tuple, share_of(held)))
			count(WEFT_ABANDONED);
	}
	if (entries & WEFT_ACTIVE_PROCESS) {
		struct weft_process key ALIGNED = {};

		process_key(&tuple, &key);
		bpf_map_delete_elem(&processes, &key);
	}
}

/* To be taken by the listener that the connection meets. */
static __always_inline void publish(struct weft_active *active, const struct weft_tuple *tuple)
{
	struct weft_origin origin = active->origin, *stale;
	__u64 owner = share_of(&origin);
	__s32 *share = bpf_map_lookup_elem(&shares, &owner);

	if (!share || *share >= (__s32)share_max) {
		count(WEFT_SHARE_USED_UP);
		return;
	}
	/* Only one live socket can own the tuple, and it is this one. */
	stale = bpf_map_lookup_elem(&pending, tuple);
	if (stale)
		take_pending(tuple, share_of(stale));
	active->entries |= WEFT_ACTIVE_PENDING;
	if (bpf_map_update_elem(&pending, tuple, &origin, BPF_NOEXIST)) {
		active->entries &= ~WEFT_ACTIVE_PENDING;
		count(WEFT_PENDING_FULL);
		return;
	}
	__sync_fetch_and_add(share, 1);
	count(WEFT_PUBLISHED);
}

static __always_inline void on_syn(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_active *active;
	struct weft_tuple tuple = {};
	int captured;

	if (!sk)
		return;
	active = bpf_sk_storage_get(&connects, sk, 0, 0);
	if (!active)
		return;
	captured = active->origin.flags & WEFT_ORIGIN_CAPTURED;
	/* Of others only the way back is kept. */
	if (!captured && !active->origin.cgroup)
		return;
	if (!both_ends(ctx, tuple.saddr, tuple.daddr))
		return;
	tuple.netns = bpf_get_netns_cookie(ctx);
	tuple.sport = ctx->local_port;
	tuple.dport = bpf_ntohl(ctx->remote_port);

	/* Without the close there is no way to take anything back: then nothing is written. */
	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG)) {
		count(WEFT_NO_STORAGE);
		return;
	}
	active->tuple = tuple;
	if (!captured) {
		struct weft_process key ALIGNED = {};
		__u32 index = active->origin.index;

		process_key(&tuple, &key);
		if (!bpf_map_update_elem(&processes, &key, &index, BPF_ANY))
			active->entries |= WEFT_ACTIVE_PROCESS;
		else
			count(WEFT_NO_STORAGE);
	}
	if (is_local(&tuple))
		publish(active, &tuple);
}

static __always_inline void on_accept(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_origin *held, origin;
	struct weft_tuple tuple = {};

	if (!sk)
		return;
	/* Seen from here the connecting end is the remote one. */
	if (!both_ends(ctx, tuple.daddr, tuple.saddr))
		return;
	tuple.netns = bpf_get_netns_cookie(ctx);
	tuple.sport = bpf_ntohl(ctx->remote_port);
	tuple.dport = ctx->local_port;

	held = bpf_map_lookup_elem(&pending, &tuple);
	if (!held) {
		count(WEFT_ACCEPT_UNKNOWN);
		return;
	}
	origin = *held;
	if (!take_pending(&tuple, share_of(&origin))) {
		/* The connecting socket closed in this very moment. */
		count(WEFT_ACCEPT_UNKNOWN);
		return;
	}
	if (!bpf_sk_storage_get(&origins, sk, &origin, BPF_SK_STORAGE_GET_F_CREATE)) {
		count(WEFT_NO_STORAGE);
		return;
	}
	count(WEFT_DELIVERED);
}

static __always_inline void on_state(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_active *active;

	if (!sk || ctx->args[1] != BPF_TCP_CLOSE)
		return;
	active = bpf_sk_storage_get(&connects, sk, 0, 0);
	if (active)
		withdraw(active);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_syn(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accept(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx);
		break;
	}
	return 1;
}

#endif
