/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a policy set says. Every shape of key that the set uses is asked, so an answer costs the same
 * however many rules there are: one deny is enough to refuse; else what any rule allows is allowed,
 * through the proxy only if all that allow it say so, between proven ends if one of them does.
 */
#ifndef WEFT_POLICY_BPF_H
#define WEFT_POLICY_BPF_H

#include "addr.bpf.h"
#include "packet_maps.bpf.h"

/* Whoever has no address of the cluster. */
#define WEFT_IDENTITY_WORLD 2

/* What is asked: may this peer be talked to? */
struct weft_question {
	__u32 set;
	__u32 identity;
	/* The server's; for ICMP the message's type plus one. */
	__u16 port;
	__u8 proto;
	/* WEFT_IN or WEFT_OUT. */
	__u8 dir;
};

struct weft_ruling {
	/* WEFT_ALLOW or WEFT_DENY; 0 while nothing was found. */
	__u8 verdict;
	/* WEFT_POLICY_*. */
	__u8 flags;
	__u16 zero;
	/* The lowest number among those that decided; 0: the default. */
	__u32 rule;
};

/* Who has an address; none: nobody in the cluster. */
static __always_inline struct weft_address *find_address(const __u8 *addr)
{
	struct weft_prefix key = { .length = 128 };

	copy_addr(key.addr, addr);
	return bpf_map_lookup_elem(&addresses, &key);
}

static __always_inline void weigh(struct weft_ruling *ruling, struct weft_policy *entry)
{
	struct weft_policy held;

	if (!entry)
		return;
	/* In one piece: a writer may be replacing it. */
	*(__u64 *)&held = *(volatile __u64 *)entry;
	if (held.verdict == ruling->verdict) {
		__u8 all = ruling->flags & held.flags, any = ruling->flags | held.flags;

		ruling->flags = (all & WEFT_POLICY_REDIRECT) | (any & WEFT_POLICY_AUTH);
		if (held.rule < ruling->rule)
			ruling->rule = held.rule;
		return;
	}
	if (ruling->verdict == WEFT_DENY)
		return;
	ruling->verdict = held.verdict;
	ruling->flags = held.flags;
	ruling->rule = held.rule;
}

static __always_inline void ask_shape(const struct weft_question *question, struct weft_ruling *ruling,
				      __u32 identity, __u8 proto, __u16 port)
{
	struct weft_policy_key key = {
		.set = question->set,
		.identity = identity,
		.port = port,
		.proto = proto,
		.dir = question->dir,
	};

	weigh(ruling, bpf_map_lookup_elem(&policy, &key));
}

static __always_inline void ask_ranges(const struct weft_question *question, struct weft_ruling *ruling,
				       __u32 identity)
{
	struct weft_range key = {
		.length = 96,
		.set = question->set,
		.identity = identity,
		.dir = question->dir,
		.proto = question->proto,
		.port = { question->port >> 8, question->port & 0xff },
	};

	weigh(ruling, bpf_map_lookup_elem(&range_deny, &key));
	weigh(ruling, bpf_map_lookup_elem(&range_allow, &key));
}

/* 0, or -1 if the set is not there: then nothing is known and nothing is allowed. */
static __attribute__((noinline)) int ask_policy(const struct weft_question *question,
						struct weft_ruling *ruling)
{
	__u32 number = question->set, identity = question->identity;
	struct weft_set *set = bpf_map_lookup_elem(&sets, &number);
	__u32 shapes, flags;
	int out = question->dir == WEFT_OUT;

	__builtin_memset(ruling, 0, sizeof(*ruling));
	if (!set)
		return -1;
	shapes = out ? set->shapes_out : set->shapes_in;
	flags = set->flags;
	if (shapes & WEFT_SHAPE_PEER_PORT)
		ask_shape(question, ruling, identity, question->proto, question->port);
	if (shapes & WEFT_SHAPE_PEER_PROTO)
		ask_shape(question, ruling, identity, question->proto, 0);
	if (shapes & WEFT_SHAPE_PEER)
		ask_shape(question, ruling, identity, 0, 0);
	if (shapes & WEFT_SHAPE_PORT)
		ask_shape(question, ruling, 0, question->proto, question->port);
	if (shapes & WEFT_SHAPE_PROTO)
		ask_shape(question, ruling, 0, question->proto, 0);
	if (shapes & WEFT_SHAPE_ANY)
		ask_shape(question, ruling, 0, 0, 0);
	if (flags & (out ? WEFT_SET_RANGES_OUT : WEFT_SET_RANGES_IN)) {
		ask_ranges(question, ruling, identity);
		ask_ranges(question, ruling, 0);
	}
	if (!ruling->verdict)
		ruling->verdict = flags & (out ? WEFT_SET_DENY_OUT : WEFT_SET_DENY_IN) ? WEFT_DENY : WEFT_ALLOW;
	return 0;
}

#endif
