/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet says of itself: addresses, protocol, ports. Read through the helper, so it does not
 * matter how the packet lies in memory. Anything that cannot be read to the end is refused with a
 * reason: what is not understood here could be understood otherwise by its receiver.
 */
#ifndef WEFT_PACKET_BPF_H
#define WEFT_PACKET_BPF_H

/*
 * Functions here and in what includes this that are neither inline nor static are verified once
 * each, not again for every way that leads to them: programs load in a tenth of the time. The
 * verifier then knows nothing of their arguments, so they begin by asking whether these are there.
 */

#include "addr.bpf.h"
#include "packet_maps.bpf.h"

#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86dd

#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Headers between IPv6's own and the transport's. More are seen in attacks only. */
#define MAX_HEADERS 8

struct weft_packet {
	__u8 saddr[16];
	__u8 daddr[16];
	/* Where the transport's header begins. */
	__u32 l4;
	__u32 fragment_id;
	/* Number of the endpoint that is judged, and which way the packet goes for it. */
	__u32 endpoint;
	/* Before anything was looked up; 0 where nothing is remembered (hurry.bpf.h). */
	__u32 epoch;
	/* For ICMP the type and the code. */
	__u16 sport;
	__u16 dport;
	/* Of ICMP's echo. */
	__u16 id;
	__u8 proto;
	__u8 tcp_flags;
	__u8 dir;
	__u8 hop_limit;
	/* WEFT_WHOLE, or which part of a datagram. */
	__u8 part;
	__u8 v4;
};

#define WEFT_WHOLE 0
#define WEFT_FIRST 1
#define WEFT_LATER 2

static __always_inline int is_icmp(const struct weft_packet *p)
{
	return p->proto == (p->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Opens an exchange that another message answers. */
static __always_inline int is_echo_request(const struct weft_packet *p)
{
	return p->sport == (p->v4 ? 8 : 128);
}

static __always_inline int is_echo(const struct weft_packet *p)
{
	return is_echo_request(p) || p->sport == (p->v4 ? 0 : 129);
}

static __always_inline void fragment_key(const struct weft_packet *p, struct weft_fragment *key)
{
	copy_addr(key->saddr, p->saddr);
	copy_addr(key->daddr, p->daddr);
	key->endpoint = p->endpoint;
	key->id = p->fragment_id;
	key->proto = p->proto;
	key->dir = p->dir;
}

/* Ports of a part that does not show them. */
static __noinline int recall_ports(struct weft_packet *p)
{
	struct weft_fragment key ALIGNED = {};
	struct weft_ports *ports;

	fragment_key(p, &key);
	ports = bpf_map_lookup_elem(&fragments, &key);
	if (!ports)
		return WEFT_DROP_FIRST_FRAGMENT_NOT_FOUND;
	p->sport = ports->sport;
	p->dport = ports->dport;
	p->id = ports->id;
	/* Opens nothing. */
	p->tcp_flags = TCP_ACK;
	return 0;
}

static __noinline int remember_ports(struct weft_packet *p)
{
	struct weft_fragment key ALIGNED = {};
	struct weft_ports ports = { .sport = p->sport, .dport = p->dport, .id = p->id };

	fragment_key(p, &key);
	if (bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY))
		return WEFT_DROP_FIRST_FRAGMENT_NOT_FOUND;
	return 0;
}

/* `left` is how much the IP header says there is from p->l4 on. */
static __always_inline int read_transport(struct __sk_buff *skb, struct weft_packet *p, __u32 left)
{
	__u8 head[20] ALIGNED;
	__u16 *words = (__u16 *)head;

	if (p->proto == IPPROTO_TCP) {
		if (left < 20 || bpf_skb_load_bytes(skb, p->l4, head, 20))
			return WEFT_DROP_INVALID_PACKET;
		if ((head[12] >> 4) < 5)
			return WEFT_DROP_INVALID_PACKET;
		p->tcp_flags = head[13];
	} else if (p->proto == IPPROTO_UDP) {
		if (left < 8 || bpf_skb_load_bytes(skb, p->l4, head, 8))
			return WEFT_DROP_INVALID_PACKET;
	} else if (p->proto == IPPROTO_SCTP) {
		if (left < 12 || bpf_skb_load_bytes(skb, p->l4, head, 12))
			return WEFT_DROP_INVALID_PACKET;
	} else if (is_icmp(p)) {
		if (left < 8 || bpf_skb_load_bytes(skb, p->l4, head, 8))
			return WEFT_DROP_INVALID_PACKET;
		p->sport = head[0];
		p->dport = head[1];
		if (is_echo(p))
			p->id = bpf_ntohs(words[2]);
		return 0;
	} else {
		return 0;
	}
	p->sport = bpf_ntohs(words[0]);
	p->dport = bpf_ntohs(words[1]);
	return 0;
}

static __always_inline int read_v4(struct __sk_buff *skb, struct weft_packet *p, __u32 at, __u32 *left)
{
	__u8 head[20] ALIGNED;
	__u16 *words = (__u16 *)head;
	__u32 *addrs = (__u32 *)head;
	__u32 length, total;
	__u16 offset;

	if (bpf_skb_load_bytes(skb, at, head, 20) || head[0] >> 4 != 4)
		return WEFT_DROP_INVALID_PACKET;
	length = (head[0] & 15) * 4;
	total = bpf_ntohs(words[1]);
	/* What does not fit into the field is written as 0. */
	if (!total && skb->len > 65535)
		total = skb->len - at;
	if (length < 20 || total < length)
		return WEFT_DROP_INVALID_PACKET;
	*left = total - length;
	p->v4 = 1;
	p->proto = head[9];
	p->hop_limit = head[8];
	p->l4 = at + length;
	put_v4(p->saddr, addrs[3]);
	put_v4(p->daddr, addrs[4]);
	offset = bpf_ntohs(words[3]);
	p->fragment_id = words[2];
	if (offset & 0x1fff)
		p->part = WEFT_LATER;
	else if (offset & 0x2000)
		p->part = WEFT_FIRST;
	return 0;
}

static __always_inline int read_v6(struct __sk_buff *skb, struct weft_packet *p, __u32 at, __u32 *left)
{
	__u8 head[40] ALIGNED;
	__u16 *words = (__u16 *)head;
	__u32 length;
	__u8 next;
	int header;

	if (bpf_skb_load_bytes(skb, at, head, 40) || head[0] >> 4 != 6)
		return WEFT_DROP_INVALID_PACKET;
	copy_addr(p->saddr, head + 8);
	copy_addr(p->daddr, head + 24);
	/* The tables write IPv4 like this; on the wire it is nobody's. */
	if (is_mapped(p->saddr) || is_mapped(p->daddr))
		return WEFT_DROP_INVALID_SOURCE_IP;
	p->hop_limit = head[7];
	next = head[6];
	length = bpf_ntohs(words[2]);
	if (!length && skb->len > 65535)
		length = skb->len - at - 40;
	at += 40;
	_Pragma("clang loop unroll(disable)")
	for (header = 0; header < MAX_HEADERS; header++) {
		__u32 size;

		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60) {
			p->proto = next;
			p->l4 = at;
			*left = length;
			return 0;
		}
		/* What comes after the fragment's header is there in the first part only. */
		if (bpf_skb_load_bytes(skb, at, head, 8))
			return WEFT_DROP_INVALID_EXTENSION_HEADER;
		if (next == 44) {
			size = 8;
			p->fragment_id = *(__u32 *)(head + 4);
			if (bpf_ntohs(words[1]) & 0xfff8) {
				p->part = WEFT_LATER;
				p->proto = head[0];
				p->l4 = at + 8;
				*left = 0;
				return 0;
			}
			if (bpf_ntohs(words[1]) & 1)
				p->part = WEFT_FIRST;
		} else if (next == 51) {
			size = (head[1] + 2) * 4;
		} else {
			/* One that is to go on elsewhere would be judged by the wrong address. */
			if (next == 43 && head[3])
				return WEFT_DROP_INVALID_EXTENSION_HEADER;
			size = (head[1] + 1) * 8;
		}
		if (length < size)
			return WEFT_DROP_INVALID_EXTENSION_HEADER;
		length -= size;
		at += size;
		next = head[0];
	}
	return WEFT_DROP_INVALID_EXTENSION_HEADER;
}

/* Reads the packet whose IP header is at `at`. 0, or the reason to refuse it. */
__noinline int read_packet(struct __sk_buff *skb, struct weft_packet *p, __u32 at, __u32 v4)
{
	if (!p)
		return WEFT_DROP_INVALID_PACKET;
	__u32 left = 0;
	int reason;

	reason = v4 ? read_v4(skb, p, at, &left) : read_v6(skb, p, at, &left);
	if (reason)
		return reason;
	if (p->part == WEFT_LATER)
		return recall_ports(p);
	reason = read_transport(skb, p, left);
	if (!reason && p->part == WEFT_FIRST)
		reason = remember_ports(p);
	return reason;
}

#endif
