/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Questions to resolvers by UDP, where policy has rules about names: they go to the agent's listener in the
 * caller's namespace. The socket remembers whom the last one was for; as it leaves, that is written down under
 * its source, which is not known before. The agent finds it there, and recvmsg shows the resolver's address.
 */
#ifndef WEFT_QUESTION_BPF_H
#define WEFT_QUESTION_BPF_H

#include <linux/errno.h>

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "stream.bpf.h"

#define DNS_PORT 53

/*
 * Sends what goes to `to` to the agent if policy wants that: 1, and `to` is where it listens. 0 if not; or an
 * error number, negative. `key`: what the caller wrote.
 */
static __always_inline int ask_agent(struct bpf_sock_addr *ctx, const struct weft_caller *caller,
				     const struct weft_service_key *key, struct weft_place *to)
{
	struct weft_endpoint endpoint = {};
	struct weft_datagram *datagram;
	struct bpf_sock *sk = ctx->sk;
	struct weft_peer peer = {};

	if (to->port != DNS_PORT || caller->kind == WEFT_STRANGER || is_loopback(to->addr) || !sk)
		return 0;
	if (!find_endpoint(caller->index, &endpoint))
		return 0;
	find_address(to->addr, &peer);
	if (!redirects(&endpoint, WEFT_OUT, peer.identity, to, IPPROTO_UDP))
		return 0;
	if (!(endpoint.flags & WEFT_ENDPOINT_CAPTURE)) {
		count(WEFT_REDIRECT_CLOSED);
		return -EPERM;
	}
	datagram = bpf_sk_storage_get(&datagrams, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!datagram) {
		count(WEFT_NO_STORAGE);
		return -ENOMEM;
	}
	datagram->netns = caller->netns;
	copy_addr(datagram->asked.daddr, key->addr);
	copy_addr(datagram->asked.target, to->addr);
	datagram->asked.dport = key->port;
	datagram->asked.tport = to->port;
	datagram->asked.index = caller->index;
	put_loopback(to->addr, is_mapped(key->addr));
	to->port = dns_port;
	count(WEFT_CAPTURED);
	return 1;
}

/* Whom the socket asked, if `from` is the agent that answers in its place. */
static __always_inline int resolver_of(struct bpf_sock_addr *ctx, const struct weft_place *from,
				       struct weft_place *resolver)
{
	struct weft_datagram *datagram;
	struct bpf_sock *sk = ctx->sk;

	if (from->port != dns_port || !is_loopback(from->addr) || !sk)
		return 0;
	datagram = bpf_sk_storage_get(&datagrams, sk, 0, 0);
	if (!datagram || !datagram->asked.dport)
		return 0;
	copy_addr(resolver->addr, datagram->asked.daddr);
	resolver->port = datagram->asked.dport;
	return 1;
}

static __always_inline int is_question(const struct weft_packet *p)
{
	return p->proto == IPPROTO_UDP && p->dport == dns_port && is_loopback(p->daddr);
}

/* A packet to the agent's listener leaves: whom it is for. */
__noinline int note_question(struct __sk_buff *skb, const struct weft_packet *p)
{
	if (!p)
		return -1;
	struct weft_asked_key key ALIGNED = {};
	struct weft_datagram *datagram;
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	datagram = bpf_sk_storage_get(&datagrams, sk, 0, 0);
	if (!datagram || !datagram->asked.dport)
		return 0;
	key.netns = datagram->netns;
	copy_addr(key.saddr, p->saddr);
	key.sport = p->sport;
	if (bpf_map_update_elem(&asked, &key, &datagram->asked, BPF_ANY))
		count(WEFT_NO_STORAGE);
	return 0;
}

#endif
