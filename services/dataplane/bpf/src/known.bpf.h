/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packets that are most of them: of a connection that was allowed, under a policy that has not
 * changed since. A set's generation is another one with each change of its content, and no two sets
 * have the same; so equal generations mean that judging it again would find the same.
 *
 * What was read from an element that became another's meanwhile has another generation, and is
 * judged; only the connection's own is read twice.
 */
#ifndef WEFT_KNOWN_BPF_H
#define WEFT_KNOWN_BPF_H

#include "conntrack.bpf.h"
#include "packet.bpf.h"
#include "policy.bpf.h"

/* The endpoint behind the interface; 0 if it leads to none. */
static __always_inline __u32 endpoint_behind(__u32 ifindex)
{
	__u32 *index = bpf_map_lookup_elem(&interfaces, &ifindex);

	return index ? *index : 0;
}

/* The present generation of the endpoint's set; 0 if there is none. */
static __always_inline __u32 present_generation(__u32 index)
{
	struct weft_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &index);
	struct weft_set *set;
	__u32 number;

	if (!endpoint)
		return 0;
	number = endpoint->set;
	set = bpf_map_lookup_elem(&sets, &number);
	return set ? set->generation : 0;
}

/* It may pass, and so may all that follow in the middle of the connection, while nothing changes. */
#define WEFT_STEADY 2

/*
 * So long after it was used last a connection's packets are worth a place of their own (hurry.bpf.h). Most
 * connections end before.
 */
#define WEFT_LASTING (SECONDS / 1000)

/* 0 if the packet's connection is not known; `is_reply`: it was opened the other way. */
static __always_inline int find_of_packet(const struct weft_packet *p, struct weft_connection_key *key,
					  struct weft_connection *connection, int *is_reply)
{
	struct weft_connection *found;

	*is_reply = 1;
	/* An answer first: a connection of the other way that was refused must not be opened anew. */
	connection_key(p, !p->dir, key);
	found = bpf_map_lookup_elem(&conntrack, key);
	if (!found) {
		if (p->proto == IPPROTO_TCP && p->dport == tunnel_port)
			return 0;
		*is_reply = 0;
		key->dir = p->dir;
		found = bpf_map_lookup_elem(&conntrack, key);
		if (!found)
			return 0;
	}
	*connection = *found;
	return bpf_map_lookup_elem(&conntrack, key) == found;
}

/* 0 if it is over, else 1 or WEFT_STEADY; writes down that it was used. */
static __always_inline int use_connection(const struct weft_packet *p, const struct weft_connection_key *key,
					  const struct weft_connection *connection, int is_reply)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (connection->expires <= now)
		return 0;
	/* Nothing to write down: neither its state nor, more than once a second, its age. */
	if (now - connection->used >= SECONDS || (is_reply && connection->proto_state == WEFT_STATE_NEW) ||
	    (connection->proto_state != WEFT_STATE_CLOSING && p->proto == IPPROTO_TCP &&
	     p->tcp_flags & (TCP_FIN | TCP_RST)))
		touch_connection(p, key, is_reply);
	return connection->proto_state == WEFT_STATE_NEW || now - connection->used < WEFT_LASTING
		       ? 1
		       : WEFT_STEADY;
}

/* 0 if the packet must be looked at, else it may pass. */
__noinline int is_known(const struct weft_packet *p, const struct weft_peer *peer)
{
	if (!p || !peer)
		return 0;
	struct weft_connection_key key ALIGNED = {};
	struct weft_connection connection;
	__u32 generation;
	int is_reply, known;

	if (is_opening(p) || is_error(p) || peer->flags & WEFT_PEER_OWN)
		return 0;
	if (strict && peer->flags & WEFT_ADDRESS_TUNNEL)
		return 0;
	generation = present_generation(p->endpoint);
	if (!generation || !find_of_packet(p, &key, &connection, &is_reply))
		return 0;
	if (connection.generation != generation || connection.identity != peer->identity ||
	    connection.flags)
		return 0;
	known = use_connection(p, &key, &connection, is_reply);
	if (known && p->epoch && connection.epoch != p->epoch) {
		/* In place it could be written to another's element. */
		connection.epoch = p->epoch;
		connection.peer = peer->endpoint;
		bpf_map_update_elem(&conntrack, &key, &connection, BPF_EXIST);
	}
	return known;
}

/*
 * The same before anything else is looked up: in this epoch a packet of the connection has met all of it,
 * and found that it may pass. Only where it came in is asked of each.
 */
__noinline int is_settled(struct __sk_buff *skb, const struct weft_packet *p)
{
	if (!p)
		return 0;
	struct weft_connection_key key ALIGNED = {};
	struct weft_connection connection;
	int is_reply;

	if (!p->epoch || is_opening(p) || is_error(p) || !find_of_packet(p, &key, &connection, &is_reply))
		return 0;
	if (connection.epoch != p->epoch || connection.flags)
		return 0;
	if (p->dir == WEFT_IN) {
		/* From nowhere: of the node itself, whatever its address says. */
		if (!skb->ingress_ifindex)
			return 0;
		if (connection.peer && endpoint_behind(skb->ingress_ifindex) != connection.peer)
			return 0;
	}
	return use_connection(p, &key, &connection, is_reply);
}

#endif
