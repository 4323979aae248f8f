/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * At the sockets of the node's subtree: what processes send and get, loopback too. A pod's are
 * judged at its interface.
 */
#ifndef WEFT_PROCESS_BPF_H
#define WEFT_PROCESS_BPF_H

#include "local.bpf.h"
#include "packet.bpf.h"
#include "question.bpf.h"
#include "verdict.bpf.h"

/*
 * Whose datagrams these are, for those who get them: only here their source address is seen.
 * An entry of a port that another socket has by now goes.
 */
__noinline int note_sender(const struct weft_packet *p, __u32 index)
{
	if (!p)
		return -1;
	struct weft_process key ALIGNED = {};
	__u32 *found;

	copy_addr(key.saddr, p->saddr);
	copy_addr(key.daddr, p->daddr);
	key.sport = p->sport;
	key.dport = p->dport;
	key.proto = p->proto;
	found = bpf_map_lookup_elem(&processes, &key);
	if (!index) {
		if (found)
			bpf_map_delete_elem(&processes, &key);
		return 0;
	}
	if (!found || *found != index)
		bpf_map_update_elem(&processes, &key, &index, BPF_ANY);
	return 0;
}

/* The endpoint whose socket it is: who sent last tells better than who made it. */
static __always_inline __u32 sender_of(struct __sk_buff *skb, const struct weft_packet *p)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk && p->proto == IPPROTO_TCP) {
		struct weft_active *active = bpf_sk_storage_get(&connects, sk, 0, 0);

		if (active && !(active->origin.flags & WEFT_ORIGIN_POD) && active->origin.index)
			return active->origin.index;
	} else if (sk && p->proto == IPPROTO_UDP) {
		struct weft_datagram *datagram = bpf_sk_storage_get(&datagrams, sk, 0, 0);

		if (datagram && datagram->index)
			return datagram->index;
	}
	return endpoint_of_packet(skb);
}

static __always_inline int on_process(struct __sk_buff *skb, __u8 dir)
{
	struct weft_packet p ALIGNED = { .dir = dir };
	struct weft_endpoint endpoint = {};
	struct weft_peer peer = {};
	const __u8 *other = dir == WEFT_OUT ? p.daddr : p.saddr;
	int reason, own = 0, v4 = skb->protocol == bpf_htons(ETH_P_IP);

	if (!v4 && skb->protocol != bpf_htons(ETH_P_IPV6))
		return WEFT_PASS;
	p.endpoint = endpoint_of_packet(skb);
	reason = read_packet(skb, &p, 0, v4);
	if (dir == WEFT_OUT && !reason) {
		if (is_question(&p))
			note_question(skb, &p);
		p.endpoint = sender_of(skb, &p);
		if (p.proto == IPPROTO_UDP)
			note_sender(&p, p.endpoint);
	}
	if (!p.endpoint)
		return WEFT_PASS;
	if (find_endpoint(p.endpoint, &endpoint) && !(endpoint.flags & WEFT_ENDPOINT_PROCESS))
		return WEFT_PASS;
	if (reason) {
		struct weft_decision decision = { .reason = reason, .identity = endpoint.identity };

		drop(skb, &p, &peer, &decision);
		return WEFT_REFUSE;
	}
	/* Between neighbours on a link, as the kernel itself does it. */
	if (!p.v4 && p.proto == IPPROTO_ICMPV6 && p.sport >= 133 && p.sport <= 137 && p.hop_limit == 255)
		return WEFT_PASS;
	find_address(other, &peer);
	if (is_shared(other, &peer)) {
		__u32 index = dir == WEFT_IN ? endpoint_that_sent(&p) : 0;

		if (!index)
			index = endpoint_at(skb, &p, &own);
		become(&peer, index, own);
	}
	return decide(skb, &p, &peer) == WEFT_PASS ? WEFT_PASS : WEFT_REFUSE;
}

SEC("cgroup_skb/egress")
int process_egress(struct __sk_buff *skb)
{
	return on_process(skb, WEFT_OUT);
}

SEC("cgroup_skb/ingress")
int process_ingress(struct __sk_buff *skb)
{
	return on_process(skb, WEFT_IN);
}

#endif
