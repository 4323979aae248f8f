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

/* 0 if the packet must be looked at, else it may pass. */
__noinline int is_known(const struct weft_packet *p, const struct weft_peer *peer)
{
	if (!p || !peer)
		return 0;
	struct weft_connection_key key ALIGNED = {};
	struct weft_connection connection;
	struct weft_connection *found;
	__u32 generation;
	__u64 now;
	int is_reply = 1;

	if (is_opening(p) || is_error(p) || peer->flags & WEFT_PEER_OWN)
		return 0;
	if (strict && peer->flags & WEFT_ADDRESS_TUNNEL)
		return 0;
	generation = present_generation(p->endpoint);
	if (!generation)
		return 0;
	/* An answer first: a connection of the other way that was refused must not be opened anew. */
	connection_key(p, !p->dir, &key);
	found = bpf_map_lookup_elem(&conntrack, &key);
	if (!found) {
		if (p->proto == IPPROTO_TCP && p->dport == tunnel_port)
			return 0;
		is_reply = 0;
		key.dir = p->dir;
		found = bpf_map_lookup_elem(&conntrack, &key);
		if (!found)
			return 0;
	}
	connection = *found;
	if (bpf_map_lookup_elem(&conntrack, &key) != found)
		return 0;
	if (connection.generation != generation || connection.identity != peer->identity ||
	    connection.flags)
		return 0;
	now = bpf_ktime_get_ns();
	if (connection.expires <= now)
		return 0;
	/* Nothing to write down: neither its state nor, more than once a second, its age. */
	if (now - connection.used >= SECONDS || (is_reply && connection.proto_state == WEFT_STATE_NEW) ||
	    (connection.proto_state != WEFT_STATE_CLOSING && p->proto == IPPROTO_TCP &&
	     p->tcp_flags & (TCP_FIN | TCP_RST)))
		touch_connection(p, &key, is_reply);
	return connection.proto_state == WEFT_STATE_NEW ? 1 : WEFT_STEADY;
}

#endif
