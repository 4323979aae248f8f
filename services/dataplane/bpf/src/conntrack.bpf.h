/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections: what lets answers pass that no rule allows as openings.
 *
 * Openings are judged each. What follows, both ways, passes by what was found for the connection,
 * unless the set or the peer is another one since (known.bpf.h asks that first, for speed alone).
 * A connection that is refused then stays in the table as refused: without it an answer would look
 * like an opening in the other way.
 *
 * The table gives up the least used when it is full. What is given up is as if it was never opened,
 * so it closes. In place only times are written: an element may be somebody else's by then.
 */
#ifndef WEFT_CONNTRACK_BPF_H
#define WEFT_CONNTRACK_BPF_H

#include "addr.bpf.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "packet_maps.bpf.h"
#include "policy.bpf.h"

#define SECONDS 1000000000ULL

/* How long a connection is known without a packet. A half-closed one may still send for a while. */
static __always_inline __u64 lifetime(const struct weft_packet *p, __u8 state)
{
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_RST)
			return 10 * SECONDS;
		if (state == WEFT_STATE_CLOSING || p->tcp_flags & TCP_FIN)
			return 600 * SECONDS;
		return state == WEFT_STATE_NEW ? 60 * SECONDS : 21600 * SECONDS;
	}
	if (is_icmp(p))
		return 30 * SECONDS;
	return state == WEFT_STATE_NEW ? 60 * SECONDS : 180 * SECONDS;
}

/* The key under which this packet's connection is, if its first packet went in `dir`. */
static __always_inline void connection_key(const struct weft_packet *p, __u8 dir,
					   struct weft_connection_key *key)
{
	int out = p->dir == WEFT_OUT;

	copy_addr(key->local, out ? p->saddr : p->daddr);
	copy_addr(key->remote, out ? p->daddr : p->saddr);
	key->endpoint = p->endpoint;
	key->proto = p->proto;
	key->dir = dir;
	if (is_icmp(p)) {
		key->lport = p->id;
		key->rport = 0;
		return;
	}
	key->lport = out ? p->sport : p->dport;
	key->rport = out ? p->dport : p->sport;
}

/* 0 if it is not known, or not any more. */
static __always_inline int find_connection(const struct weft_connection_key *key,
					   struct weft_connection *connection)
{
	struct weft_connection *found = bpf_map_lookup_elem(&conntrack, key);

	if (!found)
		return 0;
	*connection = *found;
	if (connection->expires > bpf_ktime_get_coarse_ns() && bpf_map_lookup_elem(&conntrack, key) == found)
		return 1;
	__builtin_memset(connection, 0, sizeof(*connection));
	return 0;
}

static __always_inline void touch_connection(const struct weft_packet *p,
					     const struct weft_connection_key *key, int is_reply)
{
	struct weft_connection *found = bpf_map_lookup_elem(&conntrack, key);
	__u64 now = bpf_ktime_get_coarse_ns();
	__u8 state;

	if (!found)
		return;
	state = found->proto_state;
	if (p->proto == IPPROTO_TCP && p->tcp_flags & (TCP_FIN | TCP_RST))
		state = WEFT_STATE_CLOSING;
	else if (is_reply && state == WEFT_STATE_NEW)
		state = WEFT_STATE_ANSWERED;
	/* Once a second is often enough, and leaves the memory alone that other CPUs read. */
	if (state == found->proto_state && now - found->used < SECONDS)
		return;
	found->proto_state = state;
	found->used = now;
	found->expires = now + lifetime(p, state);
}

/* 0, or the reason to refuse the packet. */
__noinline int put_connection(const struct weft_packet *p, const struct weft_connection_key *key,
				     struct weft_connection *connection)
{
	if (!p || !key || !connection)
		return WEFT_DROP_CT_INSERTION_FAILED;
	connection->used = bpf_ktime_get_coarse_ns();
	connection->expires = connection->used + lifetime(p, connection->proto_state);
	if (!bpf_map_update_elem(&conntrack, key, connection, BPF_ANY))
		return 0;
	count(WEFT_CONNTRACK_FULL);
	return WEFT_DROP_CT_INSERTION_FAILED;
}

/* May this packet, which no connection is known for, make one known? */
static __always_inline int opens(const struct weft_packet *p)
{
	if (p->proto == IPPROTO_TCP)
		return !(p->tcp_flags & TCP_RST) &&
		       (p->tcp_flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK);
	if (is_icmp(p))
		return is_echo_request(p);
	return 1;
}

/* Surely no answer. */
static __always_inline int is_opening(const struct weft_packet *p)
{
	if (p->proto == IPPROTO_TCP)
		return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	return is_icmp(p) && (is_echo_request(p) || !is_echo(p));
}

static __always_inline int is_error(const struct weft_packet *p)
{
	if (!is_icmp(p))
		return 0;
	if (p->v4)
		return p->sport == 3 || p->sport == 11 || p->sport == 12;
	return p->sport >= 1 && p->sport <= 4;
}

/* Does this ICMP error tell of a packet of a known connection, and is that still allowed? */
__noinline int is_related(struct __sk_buff *skb, const struct weft_packet *p, __u32 generation)
{
	if (!p)
		return 0;
	struct weft_connection_key key ALIGNED = {};
	struct weft_connection connection = {};
	__u8 head[40] ALIGNED;
	__u16 ports[4] ALIGNED;
	__u32 *words = (__u32 *)head;
	/* It is told to the one who sent the packet. */
	int out = p->dir == WEFT_IN, dir;
	__u8 *saddr, *daddr;
	__u32 at = p->l4 + 8;

	if (p->v4) {
		if (bpf_skb_load_bytes(skb, at, head, 20) || head[0] >> 4 != 4)
			return 0;
		key.proto = head[9];
		at += (head[0] & 15) * 4;
		put_v4(out ? key.local : key.remote, words[3]);
		put_v4(out ? key.remote : key.local, words[4]);
	} else {
		if (bpf_skb_load_bytes(skb, at, head, 40) || head[0] >> 4 != 6)
			return 0;
		key.proto = head[6];
		at += 40;
		saddr = head + 8;
		daddr = head + 24;
		copy_addr(out ? key.local : key.remote, saddr);
		copy_addr(out ? key.remote : key.local, daddr);
	}
	if (bpf_skb_load_bytes(skb, at, ports, 8))
		return 0;
	key.endpoint = p->endpoint;
	if (key.proto == (p->v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		key.lport = bpf_ntohs(ports[2]);
	} else if (key.proto == IPPROTO_TCP || key.proto == IPPROTO_UDP || key.proto == IPPROTO_SCTP) {
		key.lport = bpf_ntohs(out ? ports[0] : ports[1]);
		key.rport = bpf_ntohs(out ? ports[1] : ports[0]);
	}
	_Pragma("clang loop unroll(disable)")
	for (dir = 0; dir < 2; dir++) {
		key.dir = dir;
		if (!find_connection(&key, &connection))
			continue;
		if (connection.flags & WEFT_CONNECTION_TUNNEL)
			return 1;
		if (connection.generation == generation && !(connection.flags & WEFT_CONNECTION_REFUSED))
			return 1;
	}
	return 0;
}

#endif
