/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services and their backends, as sockets look them up.
 *
 * An element of a hash map that is replaced may be taken at once for another key, also while a
 * program still reads it. So a value is copied and believed only if the key leads to the same
 * element afterwards.
 */
#ifndef WEFT_SERVICE_BPF_H
#define WEFT_SERVICE_BPF_H

#include "addr.bpf.h"
#include "maps.bpf.h"

/* How often a reader begins anew when the writer changes what it reads. */
#define WEFT_TRIES 4

enum weft_found {
	/* No service has this address, port and protocol. */
	WEFT_NO_SERVICE,
	WEFT_FOUND,
	/* The service has no backends. */
	WEFT_EMPTY,
	/* The tables changed each time they were read. */
	WEFT_UNSETTLED,
};

/* WEFT_NO_SERVICE, WEFT_FOUND (also with no backends) or WEFT_UNSETTLED. */
static __always_inline enum weft_found find_service(const struct weft_service_key *key,
						    struct weft_service *service)
{
	int try;

	_Pragma("clang loop unroll(disable)")
	for (try = 0; try < WEFT_TRIES; try++) {
		struct weft_service *found = bpf_map_lookup_elem(&services, key);

		if (!found)
			return WEFT_NO_SERVICE;
		*service = *found;
		if (bpf_map_lookup_elem(&services, key) == found)
			return WEFT_FOUND;
	}
	return WEFT_UNSETTLED;
}

/* One of the service's backends, each as likely. What it finds of the service is left in `service`. */
static __always_inline enum weft_found pick_backend(const struct weft_service_key *key,
						    struct weft_service *service,
						    struct weft_backend *backend)
{
	int try;

	_Pragma("clang loop unroll(disable)")
	for (try = 0; try < WEFT_TRIES; try++) {
		enum weft_found found = find_service(key, service);
		struct weft_backend_key slot;
		struct weft_backend *value;

		if (found != WEFT_FOUND)
			return found;
		if (!service->count)
			return WEFT_EMPTY;
		slot.service = service->id;
		slot.slot = bpf_get_prandom_u32() % service->count;
		value = bpf_map_lookup_elem(&backends, &slot);
		/* The service has just become smaller: its new count is there already. */
		if (!value)
			continue;
		*backend = *value;
		if (bpf_map_lookup_elem(&backends, &slot) == value)
			return WEFT_FOUND;
	}
	return WEFT_UNSETTLED;
}

#endif
