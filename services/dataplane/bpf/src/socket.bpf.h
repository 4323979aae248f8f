/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The calls of the processes in the subtree that name an address, in their own context: the only
 * place where the caller's cgroup is certain.
 *
 * connect and sendmsg may put another address in the place of the one they were given; recvmsg and
 * getpeername put it back, so that an app never sees an address that it has not written itself.
 * Addresses are compared, not assumed: a socket's record may be older than its peer.
 */
#ifndef WEFT_SOCKET_BPF_H
#define WEFT_SOCKET_BPF_H

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "datagram.bpf.h"
#include "maps.bpf.h"
#include "question.bpf.h"
#include "stream.bpf.h"

#define ALLOW 1
#define REFUSE 0

/* The address and port in the call, of `family` 4 or 6. */
static __always_inline void read_place(struct bpf_sock_addr *ctx, int family, __u8 *addr, __u16 *port)
{
	__u32 *words = (__u32 *)addr;

	*port = bpf_ntohs((__u16)ctx->user_port);
	if (family == 4) {
		put_v4(addr, ctx->user_ip4);
		return;
	}
	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
}

/* 0, or -1 if a call of this family cannot carry the address. */
static __always_inline int write_place(struct bpf_sock_addr *ctx, int family, const struct weft_place *place)
{
	const __u32 *words = (const __u32 *)place->addr;

	/* Else the address of a field is kept from the reading, and the verifier wants none but ctx. */
	asm volatile("" : "+r"(ctx));
	if (family == 4) {
		if (!is_mapped(place->addr))
			return -1;
		ctx->user_ip4 = words[3];
	} else {
		ctx->user_ip6[0] = words[0];
		ctx->user_ip6[1] = words[1];
		ctx->user_ip6[2] = words[2];
		ctx->user_ip6[3] = words[3];
	}
	ctx->user_port = bpf_htons(place->port);
	return 0;
}

static __always_inline int refuse(int error)
{
	bpf_set_retval(error);
	return REFUSE;
}

static __always_inline int rewrite(struct bpf_sock_addr *ctx, int family, const struct weft_place *place)
{
	if (!write_place(ctx, family, place))
		return ALLOW;
	count(WEFT_BACKEND_UNUSABLE);
	return refuse(-EAFNOSUPPORT);
}

static __always_inline int on_stream(struct bpf_sock_addr *ctx, int family)
{
	struct weft_service_key key ALIGNED = { .proto = IPPROTO_TCP };
	struct weft_caller caller = {};
	struct weft_route route ALIGNED = {};
	struct weft_place peer ALIGNED = {};
	struct weft_active *active;
	struct bpf_sock *sk = ctx->sk;
	int error, untouched;

	if (!sk)
		return ALLOW;
	find_caller(ctx, &caller);
	if (caller.kind == WEFT_STRANGER)
		count(WEFT_CONNECT_UNREGISTERED);
	read_place(ctx, family, key.addr, &key.port);
	error = route_stream(&caller, &key, &route);
	if (error)
		return refuse(error);

	untouched = !(route.flags & (WEFT_ORIGIN_SERVICE | WEFT_ORIGIN_CAPTURED));
	if (untouched && caller.kind != WEFT_PROCESS) {
		/* The socket may carry a record of an earlier connect, or of one by someone else. */
		bpf_sk_storage_delete(&connects, sk);
		return ALLOW;
	}
	active = bpf_sk_storage_get(&connects, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!active) {
		count(WEFT_NO_STORAGE);
		/* Its listener refuses a connection without a record; others do not look for one. */
		return untouched ? ALLOW : refuse(-ENOMEM);
	}
	/*
	 * A socket can run this twice for one connection at most as two threads that race for it;
	 * what is published already stays known to `tuple`, so that closing still finds it.
	 */
	active->origin.cgroup = caller.cgroup;
	active->origin.netns = caller.netns;
	active->origin.socket = bpf_get_socket_cookie(ctx);
	active->origin.index = caller.index;
	active->origin.service = route.service;
	active->origin.dport = key.port;
	active->origin.family = family;
	if (caller.kind == WEFT_POD)
		route.flags |= WEFT_ORIGIN_POD;
	active->origin.flags = route.flags;
	copy_addr(active->origin.daddr, key.addr);
	if (untouched) {
		__builtin_memset(active->origin.target, 0, 16);
		active->origin.tport = 0;
		active->pport = 0;
		return ALLOW;
	}
	active->origin.tport = route.target.port;
	if (route.target.port)
		copy_addr(active->origin.target, route.target.addr);
	else
		__builtin_memset(active->origin.target, 0, 16);
	peer = route.target;
	if (route.flags & WEFT_ORIGIN_CAPTURED) {
		count(WEFT_CAPTURED);
		put_loopback(peer.addr, is_mapped(key.addr));
		peer.port = capture_port;
	} else {
		count(WEFT_BALANCED);
	}
	copy_addr(active->peer, peer.addr);
	active->pport = peer.port;
	return rewrite(ctx, family, &peer);
}

static __always_inline int on_datagram(struct bpf_sock_addr *ctx, int family, int connecting)
{
	struct weft_service_key key ALIGNED = { .proto = IPPROTO_UDP };
	struct weft_caller caller = {};
	struct weft_place to ALIGNED = {};
	int answer, asked;

	find_caller(ctx, &caller);
	read_place(ctx, family, key.addr, &key.port);
	answer = datagram_to(ctx, &caller, &key, &to);
	if (answer < 0)
		return refuse(answer);
	if (answer) {
		copy_addr(to.addr, key.addr);
		to.port = key.port;
	}
	asked = ask_agent(ctx, &caller, &key, &to);
	if (asked < 0)
		return refuse(asked);
	if (connecting)
		remember(ctx, &key, answer || asked ? 0 : &to);
	return answer && !asked ? ALLOW : rewrite(ctx, family, &to);
}

/* Made by the node for the agent: where it goes is decided already. */
static __always_inline int is_own(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && bpf_sk_storage_get(&own, sk, 0, 0);
}

static __always_inline int on_connect(struct bpf_sock_addr *ctx, int family)
{
	if (is_own(ctx))
		return ALLOW;
	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP)
		return on_stream(ctx, family);
	/* Echo sockets are datagram sockets too. */
	if (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP)
		return on_datagram(ctx, family, 1);
	return ALLOW;
}

static __always_inline int on_sendmsg(struct bpf_sock_addr *ctx, int family)
{
	return ctx->protocol == IPPROTO_UDP && !is_own(ctx) ? on_datagram(ctx, family, 0) : ALLOW;
}

static __always_inline int on_recvmsg(struct bpf_sock_addr *ctx, int family)
{
	struct weft_place from ALIGNED = {}, service ALIGNED = {};

	read_place(ctx, family, from.addr, &from.port);
	if (resolver_of(ctx, &from, &service) || service_of(ctx, &from, &service))
		write_place(ctx, family, &service);
	return ALLOW;
}

static __always_inline int on_getpeername(struct bpf_sock_addr *ctx, int family)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_place peer ALIGNED = {}, written ALIGNED = {};
	struct weft_active *active;

	if (ctx->protocol == IPPROTO_UDP)
		return on_recvmsg(ctx, family);
	if (!sk)
		return ALLOW;
	active = bpf_sk_storage_get(&connects, sk, 0, 0);
	if (!active)
		return ALLOW;
	read_place(ctx, family, peer.addr, &peer.port);
	if (peer.port != active->pport || !same_addr(peer.addr, active->peer))
		return ALLOW;
	copy_addr(written.addr, active->origin.daddr);
	written.port = active->origin.dport;
	write_place(ctx, family, &written);
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 4);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return on_connect(ctx, 6);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx, 4);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx, 6);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return on_recvmsg(ctx, 4);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return on_recvmsg(ctx, 6);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return on_getpeername(ctx, 4);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return on_getpeername(ctx, 6);
}

#endif
