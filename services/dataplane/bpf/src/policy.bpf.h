/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who an address is, and what policy says of it.
 *
 * Every kind of key in use is probed. Any entry that refuses wins, else any that allows does, else
 * the direction's default. Of several that allow, one without the proxy suffices to pass directly.
 * Whether both ends must be proven say the narrowest, as Cilium reckons it (proof.rs of the engine
 * has it in words). The lowest rule is told.
 *
 * An element of a hash map that is removed may be taken at once for another key, also while a
 * program still reads it; so what was read counts only if its key leads to the same element
 * afterwards. Tries wait before they take an element again.
 */
#ifndef WEFT_POLICY_BPF_H
#define WEFT_POLICY_BPF_H

#include "addr.bpf.h"
#include "maps.bpf.h"
#include "packet_maps.bpf.h"
#include "service.bpf.h"

#define WEFT_HOST 1
#define WEFT_WORLD 2

/* The other end. */
struct weft_peer {
	__u32 identity;
	/* WEFT_ADDRESS_*, and below. */
	__u32 flags;
	/* Its number if it is of this node and known to be who it says. */
	__u32 endpoint;
	__u32 zero;
};

/* A socket of the node's own components. */
#define WEFT_PEER_OWN 0x10000
/* At an address that many share, and whose socket it is was not asked yet. */
#define WEFT_PEER_LISTENS 0x20000

static __always_inline void find_address(const __u8 *addr, struct weft_peer *peer)
{
	struct weft_prefix key ALIGNED = { .length = 128 };
	struct weft_address *found;

	copy_addr(key.addr, addr);
	found = bpf_map_lookup_elem(&addresses, &key);
	if (!found) {
		peer->identity = WEFT_WORLD;
		peer->flags = 0;
		peer->endpoint = 0;
		return;
	}
	peer->identity = found->identity;
	peer->flags = found->flags;
	peer->endpoint = found->endpoint;
}

/* 0 if there is none. */
static __always_inline int find_endpoint(__u32 index, struct weft_endpoint *endpoint)
{
	int try;

	_Pragma("clang loop unroll(disable)")
	for (try = 0; try < WEFT_TRIES; try++) {
		struct weft_endpoint *found = bpf_map_lookup_elem(&endpoints, &index);

		if (!found)
			return 0;
		*endpoint = *found;
		if (bpf_map_lookup_elem(&endpoints, &index) == found)
			return 1;
	}
	return 0;
}

static __always_inline int find_set(__u32 number, struct weft_set *set)
{
	int try;

	_Pragma("clang loop unroll(disable)")
	for (try = 0; try < WEFT_TRIES; try++) {
		struct weft_set *found = bpf_map_lookup_elem(&sets, &number);

		if (!found)
			return 0;
		*set = *found;
		if (bpf_map_lookup_elem(&sets, &number) == found)
			return 1;
	}
	return 0;
}

struct weft_question {
	/* All parts named. */
	struct weft_policy_key key;
	struct weft_set set;
};

/* What the entries come to, as far as they were asked, that name the peer; or those for anybody. */
struct weft_side {
	__u8 there;
	/* The narrowest says itself whether both ends must be proven. */
	__u8 own;
	__u8 auth;
	__u8 proxied;
	__u8 length;
	__u8 zero[3];
};

struct weft_answer {
	/* 0: no entry matches. */
	__u8 verdict;
	__u8 flags;
	__u16 zero;
	__u32 rule;
	struct weft_side sides[2];
};

/* From the widest to the narrowest. */
static __always_inline void add_side(struct weft_side *side, struct weft_policy found, __u8 length)
{
	__u8 says = found.flags & (WEFT_POLICY_AUTH | WEFT_POLICY_FREE);
	__u8 own = says && !(found.flags & WEFT_POLICY_DERIVED);
	__u8 proxied = found.flags & WEFT_POLICY_PROXIED;

	/* Below one by the proxy, what says nothing is none. */
	if (side->proxied && !proxied && !own)
		return;
	side->there = 1;
	side->own = own;
	if (says)
		side->auth = says & WEFT_POLICY_AUTH;
	side->proxied |= proxied;
	side->length = length;
}

static __always_inline __u8 must_be_proven(const struct weft_answer *answer)
{
	const struct weft_side *named = &answer->sides[0], *anybody = &answer->sides[1];
	int alike = named->proxied == anybody->proxied;

	if (!named->there || !anybody->there)
		return named->auth | anybody->auth;
	if (alike ? anybody->length > named->length : anybody->proxied != 0)
		return anybody->auth | (alike && !anybody->own ? named->auth : 0);
	return named->auth | (alike && !named->own ? anybody->auth : 0);
}

static __always_inline void add_answer(struct weft_answer *answer, struct weft_policy found, int anybody,
				       __u8 length)
{
	if (found.verdict != WEFT_ALLOW) {
		if (answer->verdict != WEFT_DENY || found.rule < answer->rule)
			answer->rule = found.rule;
		answer->verdict = WEFT_DENY;
		return;
	}
	if (answer->verdict == WEFT_DENY)
		return;
	if (anybody)
		add_side(&answer->sides[1], found, length);
	else
		add_side(&answer->sides[0], found, length);
	if (!answer->verdict) {
		answer->verdict = WEFT_ALLOW;
		answer->flags = found.flags & WEFT_POLICY_REDIRECT;
		answer->rule = found.rule;
		return;
	}
	answer->flags &= found.flags;
	if (found.rule < answer->rule)
		answer->rule = found.rule;
}

/* `parts`: how many of protocol and port it leaves out. */
__noinline int probe_entry(const struct weft_policy_key *key, struct weft_answer *answer, int anybody, int parts)
{
	if (!key || !answer)
		return -1;
	int try;

	_Pragma("clang loop unroll(disable)")
	for (try = 0; try < WEFT_TRIES; try++) {
		struct weft_policy *found = bpf_map_lookup_elem(&policy, key);
		struct weft_policy copy;

		if (!found)
			return 0;
		*(__u64 *)&copy = *(volatile __u64 *)found;
		if (bpf_map_lookup_elem(&policy, key) == found) {
			add_answer(answer, copy, anybody, parts == 0 ? 24 : parts == 1 ? 8 : 0);
			return 0;
		}
	}
	answer->verdict = WEFT_DENY;
	return 0;
}

__noinline int probe_ranges(const struct weft_policy_key *key, struct weft_answer *answer, int anybody)
{
	if (!key || !answer)
		return -1;
	struct weft_range range = {};
	struct weft_policy *found;

	range.length = 96;
	range.set = key->set;
	range.dir = key->dir;
	range.proto = key->proto;
	range.port[0] = key->port >> 8;
	range.port[1] = key->port;
	range.identity = anybody ? 0 : key->identity;
	found = bpf_map_lookup_elem(&range_deny, &range);
	if (found)
		add_answer(answer, *found, anybody, 0);
	found = bpf_map_lookup_elem(&range_allow, &range);
	if (found)
		add_answer(answer, *found, anybody, found->length);
	return 0;
}

__noinline int ask_policy(const struct weft_question *question, struct weft_answer *answer)
{
	if (!question || !answer)
		return -1;
	int out = question->key.dir == WEFT_OUT;
	__u32 shapes = out ? question->set.shapes_out : question->set.shapes_in;
	__u32 ranges = question->set.flags & (out ? WEFT_SET_RANGES_OUT : WEFT_SET_RANGES_IN);
	int shape;

	/* From anything by protocol to port, of anybody and of the peer. */
	_Pragma("clang loop unroll(disable)")
	for (shape = 5; shape >= 0; shape--) {
		struct weft_policy_key key = question->key;
		int anybody = shape >= 3;
		int parts = anybody ? shape - 3 : shape;

		if (ranges && !parts)
			probe_ranges(&question->key, answer, anybody);
		if (!(shapes & (1 << shape)))
			continue;
		if (anybody)
			key.identity = 0;
		if (parts > 0)
			key.port = 0;
		if (parts > 1)
			key.proto = 0;
		probe_entry(&key, answer, anybody, parts);
	}
	answer->flags |= must_be_proven(answer);
	return 0;
}

/* Refused, but nobody is told: it will come again. */
#define WEFT_SILENT 1

/* 0, or the reason to refuse. */
__noinline int judge(const struct weft_question *question, const struct weft_endpoint *endpoint,
			    const struct weft_peer *peer, struct weft_answer *answer)
{
	if (!question || !endpoint || !peer || !answer)
		return WEFT_DROP_POLICY_DENIED;
	int out = question->key.dir == WEFT_OUT;

	ask_policy(question, answer);
	if (answer->verdict == WEFT_DENY)
		return WEFT_DROP_POLICY_DENY;
	if (!answer->verdict) {
		__u32 deny = question->set.flags & (out ? WEFT_SET_DENY_OUT : WEFT_SET_DENY_IN);
		__u32 ranges = question->set.flags & (out ? WEFT_SET_RANGES_OUT : WEFT_SET_RANGES_IN);
		__u32 shapes = out ? question->set.shapes_out : question->set.shapes_in;

		/* A rule may name it once it is known. */
		if (peer->flags & WEFT_ADDRESS_AGGREGATE && (deny || ranges || shapes))
			return WEFT_SILENT;
		return deny ? WEFT_DROP_POLICY_DENIED : 0;
	}
	if (answer->flags & WEFT_POLICY_REDIRECT)
		return WEFT_DROP_PROXY_NOT_SUPPORTED;
	if (answer->flags & WEFT_POLICY_AUTH) {
		struct weft_endpoint other = {};

		if (!(endpoint->flags & WEFT_ENDPOINT_HAS_SVID) || !peer->endpoint ||
		    !find_endpoint(peer->endpoint, &other) || !(other.flags & WEFT_ENDPOINT_HAS_SVID))
			return WEFT_DROP_AUTH_REQUIRED;
	}
	return 0;
}

#endif
