/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who of this node is at an address that many share: its own addresses and loopback. The socket
 * tells, by the cgroup in which it was made; an address never does.
 */
#ifndef WEFT_LOCAL_BPF_H
#define WEFT_LOCAL_BPF_H

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "packet.bpf.h"
#include "policy.bpf.h"

/* Does one of the node's processes have the other end? */
static __always_inline int is_shared(const __u8 *addr, const struct weft_peer *peer)
{
	if (peer->flags & WEFT_ADDRESS_HOST && peer->flags & WEFT_ADDRESS_LOCAL)
		return 1;
	return is_loopback(addr);
}

/* The registered cgroup that holds the socket, from the inside out. `own`: it is the node's own. */
static __noinline int endpoint_of_socket(struct bpf_sock *sk, int *own)
{
	struct weft_workload *found;
	__u32 index = 0;
	__u64 id = bpf_sk_cgroup_id(sk);
	int level;

	found = bpf_map_lookup_elem(&workloads, &id);
	if (found)
		return found->index;
	_Pragma("clang loop unroll(disable)")
	for (level = 1; level < MAX_LEVEL; level++) {
		id = bpf_sk_ancestor_cgroup_id(sk, level);
		if (!id)
			break;
		if (level == root_level && id == root_cgroup)
			*own = 1;
		found = bpf_map_lookup_elem(&workloads, &id);
		if (found)
			index = found->index;
	}
	return index;
}

/* The same for the socket whose packet this is; 0 if it is nobody's. */
__noinline int endpoint_of_packet(struct __sk_buff *skb)
{
	struct weft_workload *found;
	__u32 index = 0;
	__u64 id = bpf_skb_cgroup_id(skb);
	int level;

	if (!id)
		return 0;
	found = bpf_map_lookup_elem(&workloads, &id);
	if (found)
		return found->index;
	_Pragma("clang loop unroll(disable)")
	for (level = 1; level < MAX_LEVEL; level++) {
		id = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!id)
			break;
		found = bpf_map_lookup_elem(&workloads, &id);
		if (found)
			index = found->index;
	}
	return index;
}

/* The other end's socket in this namespace, to be released. */
static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb, const struct weft_packet *p)
{
	struct bpf_sock_tuple tuple ALIGNED = {};
	/* As the socket that is looked for gets its packets. */
	int swap = p->dir == WEFT_IN;
	const __u8 *from = swap ? p->daddr : p->saddr, *to = swap ? p->saddr : p->daddr;
	__u16 sport = bpf_htons(swap ? p->dport : p->sport), dport = bpf_htons(swap ? p->sport : p->dport);
	const __u32 *f = (const __u32 *)from, *t = (const __u32 *)to;
	__u32 size;

	if (p->v4) {
		tuple.ipv4.saddr = f[3];
		tuple.ipv4.daddr = t[3];
		tuple.ipv4.sport = sport;
		tuple.ipv4.dport = dport;
		size = sizeof(tuple.ipv4);
	} else {
		copy_addr((__u8 *)tuple.ipv6.saddr, from);
		copy_addr((__u8 *)tuple.ipv6.daddr, to);
		tuple.ipv6.sport = sport;
		tuple.ipv6.dport = dport;
		size = sizeof(tuple.ipv6);
	}
	if (p->proto == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (p->proto == IPPROTO_UDP)
		return bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	return 0;
}

/* The endpoint that has the other end's socket in this namespace, or 0. */
__noinline int endpoint_at(struct __sk_buff *skb, const struct weft_packet *p, int *own)
{
	if (!p || !own)
		return 0;
	struct bpf_sock *sk = find_socket(skb, p);
	int index;

	if (!sk)
		return 0;
	index = endpoint_of_socket(sk, own);
	bpf_sk_release(sk);
	return index;
}

/* The same where a socket's cgroup may not be asked: what was written on it when it was bound. */
__noinline int process_at(struct __sk_buff *skb, const struct weft_packet *p)
{
	if (!p)
		return 0;
	struct bpf_sock *sk = find_socket(skb, p);
	struct weft_workload *found;
	__u64 *owner, cgroup = 0;

	if (!sk)
		return 0;
	owner = bpf_sk_storage_get(&owners, sk, 0, 0);
	if (owner)
		cgroup = *owner;
	bpf_sk_release(sk);
	found = cgroup ? bpf_map_lookup_elem(&workloads, &cgroup) : 0;
	return found ? found->index : 0;
}

/*
 * Whose socket has the other end, if that is the end that opened: what was written down when its
 * packets left.
 */
__noinline int endpoint_that_sent(const struct weft_packet *p)
{
	if (!p)
		return 0;
	struct weft_process key ALIGNED = {};
	int out = p->dir == WEFT_OUT;
	__u32 *found;

	copy_addr(key.saddr, out ? p->daddr : p->saddr);
	copy_addr(key.daddr, out ? p->saddr : p->daddr);
	key.sport = out ? p->dport : p->sport;
	key.dport = out ? p->sport : p->dport;
	key.proto = p->proto;
	found = bpf_map_lookup_elem(&processes, &key);
	return found ? *found : 0;
}

static __always_inline void become(struct weft_peer *peer, __u32 index, int own)
{
	struct weft_endpoint endpoint = {};

	peer->endpoint = 0;
	if (index) {
		peer->endpoint = index;
		/* One that is not known yet may not pass as somebody else. */
		if (find_endpoint(index, &endpoint)) {
			peer->identity = endpoint.identity;
		} else {
			peer->identity = 0;
			peer->flags = WEFT_ADDRESS_AGGREGATE;
		}
		return;
	}
	peer->identity = WEFT_HOST;
	if (own)
		peer->flags |= WEFT_PEER_OWN;
}

#endif
