/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * At the node's side of the interface to a pod: what the pod sends comes in here, what it gets goes
 * out. What passes is left to the programs that come after.
 */
#ifndef WEFT_ENDPOINT_BPF_H
#define WEFT_ENDPOINT_BPF_H

#include "hurry.bpf.h"
#include "local.bpf.h"
#include "packet.bpf.h"
#include "verdict.bpf.h"

/* Of tcx, which headers of Linux 6.1 do not have. */
#define TCX_NEXT (-1)
#define TCX_DROP 2

#define ARP_LENGTH 28

static __always_inline int may_send_from(__u32 endpoint, const __u8 *addr)
{
	struct weft_source key ALIGNED = { .endpoint = endpoint };

	copy_addr(key.addr, addr);
	return bpf_map_lookup_elem(&endpoint_addresses, &key) != 0;
}

static __always_inline int is_unspecified(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	return !words[0] && !words[1] && !words[3] && (!words[2] || words[2] == bpf_htonl(0xffff));
}

/* Refuses what was not judged: no peer, no policy. */
static __always_inline int refuse_packet(struct __sk_buff *skb, const struct weft_packet *p, __u8 reason)
{
	struct weft_decision decision = { .reason = reason };
	struct weft_endpoint endpoint = {};
	struct weft_peer peer = {};

	if (find_endpoint(p->endpoint, &endpoint))
		decision.identity = endpoint.identity;
	drop(skb, p, &peer, &decision);
	return TCX_DROP;
}

/* A pod tells of its own addresses only; one that has none yet asks whether it is taken. */
__noinline int from_arp(struct __sk_buff *skb, struct weft_packet *p, __u32 at)
{
	if (!p)
		return WEFT_DROP_INVALID_PACKET;
	__u8 arp[ARP_LENGTH] ALIGNED;
	__u32 addr;

	if (bpf_skb_load_bytes(skb, at, arp, ARP_LENGTH))
		return WEFT_DROP_INVALID_PACKET;
	/* Ethernet and IPv4. */
	if (arp[0] != 0 || arp[1] != 1 || arp[2] != 8 || arp[3] != 0 || arp[4] != 6 || arp[5] != 4)
		return WEFT_DROP_UNSUPPORTED_L2;
	p->v4 = 1;
	__builtin_memcpy(&addr, arp + 14, 4);
	put_v4(p->saddr, addr);
	__builtin_memcpy(&addr, arp + 24, 4);
	put_v4(p->daddr, addr);
	__builtin_memcpy(&addr, arp + 14, 4);
	/* A request that names no sender teaches nobody anything. */
	if (!addr && arp[6] == 0 && arp[7] == 1)
		return 0;
	return may_send_from(p->endpoint, p->saddr) ? 0 : WEFT_DROP_INVALID_SOURCE_IP;
}

/* Who listens to which group on the link. */
static __always_inline int is_membership(__u16 type)
{
	return (type >= 130 && type <= 132) || type == 143;
}

/* Neighbour discovery and group membership are ICMPv6 that never crosses a router. */
static __always_inline int is_discovery(const struct weft_packet *p)
{
	if (p->v4 || p->proto != IPPROTO_ICMPV6 || p->part != WEFT_WHOLE)
		return 0;
	if (is_membership(p->sport))
		return p->hop_limit == 1;
	return p->sport >= 133 && p->sport <= 137 && p->hop_limit == 255;
}

__noinline int from_discovery(struct __sk_buff *skb, struct weft_packet *p)
{
	if (!p)
		return WEFT_DROP_INVALID_PACKET;
	__u8 target[16] ALIGNED;
	int unspecified = is_unspecified(p->saddr);

	/* Pods are no routers. */
	if (p->sport == 134 || p->sport == 137)
		return WEFT_DROP_FORBIDDEN_ICMPV6;
	if (!unspecified && !may_send_from(p->endpoint, p->saddr))
		return WEFT_DROP_INVALID_SOURCE_IP;
	if (p->sport == 133 || is_membership(p->sport))
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + 8, target, 16))
		return WEFT_DROP_INVALID_PACKET;
	/* Who asks whom is open; who claims an address must have it. */
	if ((unspecified || p->sport == 136) && !may_send_from(p->endpoint, target))
		return WEFT_DROP_INVALID_SOURCE_IP;
	return 0;
}

/*
 * Most packets: whole TCP or UDP without options of IP, all of whose headers lie in one piece. 0 if it is
 * another one, which is read the long way; what is refused there is never read here.
 */
static __noinline int read_plain(struct __sk_buff *skb, struct weft_packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u8 *ip = data + ETH_LENGTH, *transport;
	const __u16 *ethernet = data, *ports;
	const __u32 *words = data + ETH_LENGTH;
	__u16 left;

	if (!p || data + ETH_LENGTH + 40 > end || skb->vlan_present)
		return 0;
	if (ethernet[6] == bpf_htons(ETH_P_IP)) {
		if (ip[0] != 0x45 || ethernet[10] & bpf_htons(0x3fff))
			return 0;
		left = bpf_ntohs(ethernet[8]);
		if (left < 20)
			return 0;
		left -= 20;
		p->v4 = 1;
		p->proto = ip[9];
		p->hop_limit = ip[8];
		put_v4(p->saddr, words[3]);
		put_v4(p->daddr, words[4]);
		p->l4 = ETH_LENGTH + 20;
		transport = data + ETH_LENGTH + 20;
	} else if (ethernet[6] == bpf_htons(ETH_P_IPV6)) {
		if (data + ETH_LENGTH + 40 + TCP_LENGTH > end)
			return 0;
		if (ip[0] >> 4 != 6 || is_mapped(ip + 8) || is_mapped(ip + 24))
			return 0;
		left = bpf_ntohs(ethernet[9]);
		p->proto = ip[6];
		p->hop_limit = ip[7];
		copy_addr(p->saddr, ip + 8);
		copy_addr(p->daddr, ip + 24);
		p->l4 = ETH_LENGTH + 40;
		transport = data + ETH_LENGTH + 40;
	} else {
		return 0;
	}
	if (p->proto == IPPROTO_TCP) {
		if (left < TCP_LENGTH || transport[12] >> 4 < 5)
			return 0;
		p->tcp_flags = transport[13];
	} else if (p->proto != IPPROTO_UDP || left < UDP_LENGTH) {
		return 0;
	}
	ports = (const __u16 *)transport;
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	return 1;
}

/* What read_plain began with is not there any more. */
static __always_inline void forget_reading(struct weft_packet *p)
{
	p->l4 = 0;
	p->tcp_flags = 0;
	p->hop_limit = 0;
	p->proto = 0;
	p->v4 = 0;
}

/* WEFT_WHOLE's answer is 0; then `*at` is where the IP header begins. */
static __always_inline int read_ethernet(struct __sk_buff *skb, __u16 *kind)
{
	if (skb->vlan_present)
		return WEFT_DROP_VLAN_FILTERED;
	if (bpf_skb_load_bytes(skb, 12, kind, 2))
		return WEFT_DROP_INVALID_PACKET;
	*kind = bpf_ntohs(*kind);
	if (*kind == 0x8100 || *kind == 0x88a8)
		return WEFT_DROP_VLAN_FILTERED;
	if (*kind != ETH_P_IP && *kind != ETH_P_IPV6 && *kind != ETH_P_ARP)
		return WEFT_DROP_UNSUPPORTED_L2;
	return 0;
}

static __always_inline int passes_as_settled(struct __sk_buff *skb, const struct weft_packet *p)
{
	int settled = is_settled(skb, p);

	if (settled == WEFT_STEADY)
		let_pass(skb, p);
	return settled;
}

SEC("classifier")
int from_endpoint(struct __sk_buff *skb)
{
	struct weft_packet p ALIGNED = { .dir = WEFT_OUT };
	struct weft_peer peer = {};
	__u16 kind = 0;
	int reason;

	p.epoch = present_epoch();
	if (passes_at_once(skb, WEFT_OUT, p.epoch))
		return TCX_NEXT;
	p.endpoint = endpoint_behind(skb->ifindex);
	if (!p.endpoint) {
		count(WEFT_ENDPOINT_UNKNOWN);
		return TCX_DROP;
	}
	if (read_plain(skb, &p)) {
		reason = 0;
	} else {
		forget_reading(&p);
		reason = read_ethernet(skb, &kind);
		if (!reason && kind == ETH_P_ARP) {
			reason = from_arp(skb, &p, 14);
			if (!reason)
				return TCX_NEXT;
		}
		if (!reason)
			reason = read_packet(skb, &p, 14, kind == ETH_P_IP);
		if (!reason && is_discovery(&p)) {
			reason = from_discovery(skb, &p);
			if (!reason)
				return TCX_NEXT;
		}
	}
	if (!reason && !may_send_from(p.endpoint, p.saddr))
		reason = WEFT_DROP_INVALID_SOURCE_IP;
	if (reason)
		return refuse_packet(skb, &p, reason);
	if (passes_as_settled(skb, &p))
		return TCX_NEXT;

	find_address(p.daddr, &peer);
	if (is_shared(p.daddr, &peer)) {
		become(&peer, 0, 0);
		peer.flags |= WEFT_PEER_LISTENS;
	}
	return decide(skb, &p, &peer) == WEFT_PASS ? TCX_NEXT : TCX_DROP;
}

SEC("classifier")
int to_endpoint(struct __sk_buff *skb)
{
	struct weft_packet p ALIGNED = { .dir = WEFT_IN };
	struct weft_peer peer = {};
	__u16 kind = 0;
	int reason;

	p.epoch = present_epoch();
	if (passes_at_once(skb, WEFT_IN, p.epoch))
		return TCX_NEXT;
	p.endpoint = endpoint_behind(skb->ifindex);
	if (!p.endpoint) {
		count(WEFT_ENDPOINT_UNKNOWN);
		return TCX_DROP;
	}
	if (read_plain(skb, &p)) {
		reason = 0;
	} else {
		forget_reading(&p);
		reason = read_ethernet(skb, &kind);
		if (!reason && kind == ETH_P_ARP)
			return TCX_NEXT;
		if (!reason)
			reason = read_packet(skb, &p, 14, kind == ETH_P_IP);
		if (!reason && is_discovery(&p))
			return TCX_NEXT;
	}
	if (!reason && is_loopback(p.saddr))
		reason = WEFT_DROP_INVALID_SOURCE_IP;
	if (reason)
		return refuse_packet(skb, &p, reason);
	if (passes_as_settled(skb, &p))
		return TCX_NEXT;

	find_address(p.saddr, &peer);
	if (peer.flags & WEFT_ADDRESS_LOCAL && !(peer.flags & WEFT_ADDRESS_HOST)) {
		/* Nobody on the network speaks as a pod of this node. */
		if (endpoint_behind(skb->ingress_ifindex) != peer.endpoint)
			return refuse_packet(skb, &p, WEFT_DROP_INVALID_SOURCE_IP);
	} else if (!skb->ingress_ifindex) {
		/* It came in nowhere, so it is of this node, with whatever address it has on this link. */
		peer.flags = WEFT_ADDRESS_HOST | WEFT_ADDRESS_LOCAL;
		become(&peer, endpoint_of_packet(skb), 0);
	}
	return decide(skb, &p, &peer) == WEFT_PASS ? TCX_NEXT : TCX_DROP;
}

#endif
