/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a TCP connection goes: to what the caller wrote, to a backend of that service, or to the
 * agent's capture listener in the caller's namespace, with the destination kept in the record.
 */
#ifndef WEFT_STREAM_BPF_H
#define WEFT_STREAM_BPF_H

#include <linux/errno.h>

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "maps.bpf.h"
#include "policy.bpf.h"
#include "service.bpf.h"

struct weft_route {
	/* What was chosen; the port is 0 if that is left to the agent. */
	struct weft_place target;
	/* weft_origin.flags. */
	__u16 flags;
	__u32 service;
};

static __always_inline int redirects(const struct weft_endpoint *endpoint, __u8 dir, __u32 identity,
				     const struct weft_place *target, __u8 proto)
{
	struct weft_question question = {
		.key = {
			.set = endpoint->set,
			.identity = identity,
			.port = target->port,
			.proto = proto,
			.dir = dir,
		},
	};
	struct weft_answer answer = {};

	/* What is not known or not allowed is refused where its packets pass. */
	if (!find_set(endpoint->set, &question.set))
		return 0;
	/* Most sets have no rule about requests. */
	if (question.set.flags & (dir == WEFT_OUT ? WEFT_SET_DIRECT_OUT : WEFT_SET_DIRECT_IN))
		return 0;
	ask_policy(&question, &answer);
	return answer.verdict == WEFT_ALLOW && answer.flags & WEFT_POLICY_REDIRECT;
}

/* Does the policy of either end want the agent to look into this connection? */
static __always_inline int wants_agent(const struct weft_endpoint *endpoint, const struct weft_peer *peer,
				       const struct weft_place *target)
{
	struct weft_endpoint other = {};

	if (redirects(endpoint, WEFT_OUT, peer->identity, target, IPPROTO_TCP))
		return 1;
	if (!(peer->flags & WEFT_ADDRESS_LOCAL) || !find_endpoint(peer->endpoint, &other))
		return 0;
	return redirects(&other, WEFT_IN, endpoint->identity, target, IPPROTO_TCP);
}

/* 0, or an error number, negative, with which connect fails. */
static __always_inline int route_stream(const struct weft_caller *caller, const struct weft_service_key *key,
					struct weft_route *route)
{
	struct weft_endpoint endpoint = {};
	struct weft_service service = {};
	struct weft_backend backend ALIGNED = {};
	struct weft_peer peer = {};
	enum weft_found found;
	int known = 0, captures = 0;

	if (caller->kind != WEFT_STRANGER) {
		known = find_endpoint(caller->index, &endpoint);
		captures = known && endpoint.flags & WEFT_ENDPOINT_CAPTURE;
	}
	copy_addr(route->target.addr, key->addr);
	route->target.port = key->port;

	found = pick_backend(key, &service, &backend);
	if (found != WEFT_NO_SERVICE) {
		route->flags |= WEFT_ORIGIN_SERVICE;
		route->service = service.id;
		/* Its routes decide, also whether there is anything to go to. */
		if (captures && service.flags & WEFT_SERVICE_CAPTURE) {
			route->flags |= WEFT_ORIGIN_CAPTURED;
			route->target.port = 0;
			return 0;
		}
		if (found == WEFT_EMPTY) {
			count(WEFT_NO_BACKENDS);
			return -ECONNREFUSED;
		}
		if (found != WEFT_FOUND) {
			count(WEFT_BACKEND_UNUSABLE);
			return -EAGAIN;
		}
		copy_addr(route->target.addr, backend.addr);
		route->target.port = backend.port;
	}
	if (is_loopback(route->target.addr))
		return 0;
	find_address(route->target.addr, &peer);
	/* Also for the node's own: nobody is there but the agents. */
	if (peer.flags & WEFT_ADDRESS_AGENT) {
		if (!captures) {
			count(WEFT_REDIRECT_CLOSED);
			return -EPERM;
		}
		route->flags |= WEFT_ORIGIN_CAPTURED;
		return 0;
	}
	if (caller->kind == WEFT_STRANGER)
		return 0;
	/* Agents' tunnels are no workload's to open: its packets are refused, and none goes by the agent. */
	if (route->target.port == tunnel_port)
		return 0;

	if (peer.flags & WEFT_ADDRESS_TUNNEL) {
		if (captures) {
			route->flags |= WEFT_ORIGIN_CAPTURED;
			return 0;
		}
		if (strict) {
			count(WEFT_TUNNEL_CLOSED);
			return -EPERM;
		}
	}
	if (known && wants_agent(&endpoint, &peer, &route->target)) {
		if (!captures) {
			count(WEFT_REDIRECT_CLOSED);
			return -EPERM;
		}
		route->flags |= WEFT_ORIGIN_CAPTURED;
	}
	return 0;
}

#endif
