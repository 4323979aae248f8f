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
#include "service.bpf.h"

struct weft_route {
	/* What was chosen; the port is 0 if that is left to the agent. */
	struct weft_place target;
	/* weft_origin.flags. */
	__u16 flags;
	__u32 service;
};

/* 0, or an error number, negative, with which connect fails. */
static __always_inline int route_stream(const struct weft_caller *caller, const struct weft_service_key *key,
					struct weft_route *route)
{
	struct weft_endpoint *endpoint = 0;
	struct weft_service service = {};
	struct weft_backend backend ALIGNED = {};
	enum weft_found found;
	int captures = 0;

	if (caller->kind != WEFT_STRANGER) {
		endpoint = bpf_map_lookup_elem(&endpoints, &caller->index);
		captures = endpoint && endpoint->flags & WEFT_ENDPOINT_CAPTURE;
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
	return 0;
}

#endif
