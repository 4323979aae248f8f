/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packets in the middle of a connection: most of all, and each costs its share of a stream.
 *
 * When known.bpf.h lets one pass that opens and ends nothing, the CPU remembers it, with the epoch. As
 * long as user space has changed nothing since (`epoch`), all that was looked up is what it was: whose
 * interface it is, whose the addresses are, what is enforced, the connection. So the next such packet
 * passes after one look at one line of memory, where the whole way takes a dozen. The epoch is read
 * before anything is looked up, so that no change in the meantime is missed.
 *
 * What the connection itself does changes nothing of this: what opens and what ends is looked at, and so
 * is, once in a while, one of all others, by which the table of connections knows that it lives.
 */
#ifndef WEFT_HURRY_BPF_H
#define WEFT_HURRY_BPF_H

#include "addr.bpf.h"
#include "packet.bpf.h"
#include "packet_maps.bpf.h"

#define ETH_LENGTH 14
#define UDP_LENGTH 8
#define TCP_LENGTH 20

static __always_inline __u32 present_epoch(void)
{
	__u32 zero = 0;
	__u64 *found = bpf_map_lookup_elem(&epoch, &zero);

	return found ? *(volatile __u64 *)found : 0;
}

/* A quarter of a second, or up to two and a half, as the kernel counts. */
static __always_inline __u32 present_period(void)
{
	return bpf_jiffies64() >> 8;
}

/* Where this CPU remembers such a packet, or something else. */
static __always_inline struct weft_passing *place_of(const struct weft_passing *packet)
{
	const __u32 *from = (const __u32 *)packet->saddr, *to = (const __u32 *)packet->daddr;
	/* Between two pods of a node the same packet is met twice. */
	__u64 mix = from[3] ^ (__u64)to[3] << 32 ^ (__u64)packet->sport << 16 ^ (__u64)packet->dport << 40 ^
		    (__u64)packet->ifindex << 24 ^ (__u64)packet->dir << 8;
	__u32 at;

	mix *= 0x9e3779b97f4a7c15ULL;
	at = (mix >> 40) & (WEFT_PASSING - 1);
	at += bpf_get_smp_processor_id() * WEFT_PASSING;
	return bpf_map_lookup_elem(&passing, &at);
}

/* From now on such packets pass at once. */
__noinline int let_pass(struct __sk_buff *skb, const struct weft_packet *p)
{
	if (!p)
		return 0;
	struct weft_passing packet ALIGNED = {}, *place;

	if (!p->epoch || p->part != WEFT_WHOLE || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	copy_addr(packet.saddr, p->saddr);
	copy_addr(packet.daddr, p->daddr);
	packet.ifindex = skb->ifindex;
	packet.ingress = skb->ingress_ifindex;
	packet.sport = p->sport;
	packet.dport = p->dport;
	packet.proto = p->proto;
	packet.dir = p->dir;
	packet.epoch = p->epoch;
	packet.period = present_period();
	place = place_of(&packet);
	if (place)
		*place = packet;
	return 0;
}

/* TCP or UDP without options of IP, whole, that neither opens nor ends anything. */
static __always_inline int read_in_place(struct __sk_buff *skb, struct weft_passing *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const __u8 *ip = data + ETH_LENGTH, *transport;
	const __u16 *ethernet = data, *ports;
	const __u32 *words = data + ETH_LENGTH;
	__u16 length;

	if (data + ETH_LENGTH + 40 > end || skb->vlan_present)
		return 0;
	if (ethernet[6] == bpf_htons(ETH_P_IP)) {
		if (ip[0] != 0x45 || ethernet[10] & bpf_htons(0x3fff))
			return 0;
		length = bpf_ntohs(ethernet[8]);
		if (length < 20)
			return 0;
		length -= 20;
		packet->proto = ip[9];
		put_v4(packet->saddr, words[3]);
		put_v4(packet->daddr, words[4]);
		transport = data + ETH_LENGTH + 20;
	} else if (ethernet[6] == bpf_htons(ETH_P_IPV6)) {
		if (data + ETH_LENGTH + 40 + TCP_LENGTH > end)
			return 0;
		if (ip[0] >> 4 != 6 || is_mapped(ip + 8) || is_mapped(ip + 24))
			return 0;
		length = bpf_ntohs(ethernet[9]);
		packet->proto = ip[6];
		copy_addr(packet->saddr, ip + 8);
		copy_addr(packet->daddr, ip + 24);
		transport = data + ETH_LENGTH + 40;
	} else {
		return 0;
	}
	if (packet->proto == IPPROTO_TCP) {
		if (length < TCP_LENGTH || transport[12] >> 4 < 5 ||
		    (transport[13] & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
			return 0;
	} else if (packet->proto != IPPROTO_UDP || length < UDP_LENGTH) {
		return 0;
	}
	ports = (const __u16 *)transport;
	packet->sport = bpf_ntohs(ports[0]);
	packet->dport = bpf_ntohs(ports[1]);
	return 1;
}

/*
 * 1 if the packet may pass; 0 if it must be looked at. A function of its own, so that what it keeps on
 * the stack is gone when the others begin.
 */
static __noinline int passes_at_once(struct __sk_buff *skb, __u8 dir, __u32 epoch)
{
	struct weft_passing packet ALIGNED = { .dir = dir, .epoch = epoch };
	const __u64 *wanted = (const __u64 *)&packet, *found;

	if (!epoch || !read_in_place(skb, &packet))
		return 0;
	packet.ifindex = skb->ifindex;
	packet.ingress = skb->ingress_ifindex;
	packet.period = present_period();
	found = (const __u64 *)place_of(&packet);
	if (!found)
		return 0;
	return !((found[0] ^ wanted[0]) | (found[1] ^ wanted[1]) | (found[2] ^ wanted[2]) |
		 (found[3] ^ wanted[3]) | (found[4] ^ wanted[4]) | (found[5] ^ wanted[5]) |
		 (found[6] ^ wanted[6]));
}

#endif
