/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * UDP to services: each socket keeps the backend it was given for a service for as long as that is
 * one, connected or not, and sees the service's address in what comes back.
 *
 * The kernel runs all of these with the socket locked, so two threads on one socket take turns.
 */
#ifndef WEFT_DATAGRAM_BPF_H
#define WEFT_DATAGRAM_BPF_H

#include <linux/errno.h>

#include "addr.bpf.h"
#include "caller.bpf.h"
#include "maps.bpf.h"
#include "service.bpf.h"

static __always_inline int is_member(const struct weft_mapping *mapping)
{
	struct weft_member key ALIGNED = {};

	copy_addr(key.addr, mapping->backend);
	key.service = mapping->id;
	key.port = mapping->bport;
	return bpf_map_lookup_elem(&members, &key) != 0;
}

static __always_inline struct weft_mapping *mapping_of(struct weft_datagram *datagram,
						       const struct weft_service_key *key)
{
	int at;

	_Pragma("clang loop unroll(disable)")
	for (at = 0; at < WEFT_MAPPINGS; at++) {
		struct weft_mapping *mapping = &datagram->mappings[at];

		if (mapping->bport && mapping->sport == key->port && same_addr(mapping->service, key->addr))
			return mapping;
	}
	return 0;
}

/* Where a new one goes: the one that was used least recently has to leave when all are in use. */
static __always_inline struct weft_mapping *mapping_for(struct weft_datagram *datagram)
{
	struct weft_mapping *oldest = &datagram->mappings[0];
	int at;

	_Pragma("clang loop unroll(disable)")
	for (at = 0; at < WEFT_MAPPINGS; at++) {
		struct weft_mapping *mapping = &datagram->mappings[at];

		if (!mapping->bport)
			return mapping;
		if ((__s32)(mapping->used - oldest->used) < 0)
			oldest = mapping;
	}
	count(WEFT_UDP_FORGOTTEN);
	return oldest;
}

/*
 * The backend of this socket for `key`, written to `to`; or an error number, negative. 1 if `key` is
 * no service.
 */
static __always_inline int datagram_to(struct bpf_sock_addr *ctx, const struct weft_caller *caller,
				       const struct weft_service_key *key, struct weft_place *to)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_service service = {};
	enum weft_found found = find_service(key, &service);
	struct weft_datagram *datagram;
	struct weft_mapping *mapping;
	struct weft_backend backend ALIGNED = {};
	__u64 flags = 0;

	if (!sk)
		return 1;
	/* Whose packets these are is asked when they leave, and told by the socket. */
	if (found != WEFT_NO_SERVICE || caller->kind == WEFT_PROCESS)
		flags = BPF_SK_STORAGE_GET_F_CREATE;
	datagram = bpf_sk_storage_get(&datagrams, sk, 0, flags);
	if (!datagram) {
		if (!flags)
			return 1;
		count(WEFT_NO_STORAGE);
		/* An answer could not be translated back. */
		return found == WEFT_NO_SERVICE ? 1 : -ENOMEM;
	}
	datagram->index = caller->kind == WEFT_PROCESS ? caller->index : 0;
	if (found == WEFT_NO_SERVICE)
		return 1;

	mapping = mapping_of(datagram, key);
	if (found == WEFT_FOUND && service.count && mapping && mapping->id == service.id) {
		if (mapping->generation == service.generation || is_member(mapping)) {
			mapping->generation = service.generation;
			mapping->used = ++datagram->clock;
			copy_addr(to->addr, mapping->backend);
			to->port = mapping->bport;
			return 0;
		}
	}
	found = pick_backend(key, &service, &backend);
	if (found == WEFT_NO_SERVICE)
		return 1;
	if (found != WEFT_FOUND) {
		/* What it had is gone: an answer of that is not this service's any more. */
		if (mapping)
			mapping->bport = 0;
		count(found == WEFT_EMPTY ? WEFT_NO_BACKENDS : WEFT_BACKEND_UNUSABLE);
		return found == WEFT_EMPTY ? -ECONNREFUSED : -EAGAIN;
	}
	if (!mapping)
		mapping = mapping_for(datagram);
	copy_addr(mapping->service, key->addr);
	copy_addr(mapping->backend, backend.addr);
	mapping->sport = key->port;
	mapping->bport = backend.port;
	mapping->id = service.id;
	mapping->generation = service.generation;
	mapping->used = ++datagram->clock;
	copy_addr(to->addr, backend.addr);
	to->port = backend.port;
	return 0;
}

/* Remembers, for whoever closes sockets, what this one is connected to: nothing, if not a service. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct weft_service_key *key,
				     const struct weft_place *to)
{
	struct weft_connected value ALIGNED = {};
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (!to) {
		bpf_map_delete_elem(&connected, &cookie);
		return;
	}
	copy_addr(value.service, key->addr);
	copy_addr(value.backend, to->addr);
	value.sport = key->port;
	value.bport = to->port;
	if (bpf_map_update_elem(&connected, &cookie, &value, BPF_ANY))
		count(WEFT_NO_STORAGE);
}

/*
 * The service behind which `from` answers this socket. Two may have the same backend: then it is the
 * one that was asked last.
 */
static __always_inline int service_of(struct bpf_sock_addr *ctx, const struct weft_place *from,
				      struct weft_place *service)
{
	struct bpf_sock *sk = ctx->sk;
	struct weft_datagram *datagram;
	__u32 used = 0;
	int at, found = 0;

	if (!sk)
		return 0;
	datagram = bpf_sk_storage_get(&datagrams, sk, 0, 0);
	if (!datagram)
		return 0;
	_Pragma("clang loop unroll(disable)")
	for (at = 0; at < WEFT_MAPPINGS; at++) {
		struct weft_mapping *mapping = &datagram->mappings[at];

		if (!mapping->bport || mapping->bport != from->port || !same_addr(mapping->backend, from->addr))
			continue;
		if (found && (__s32)(mapping->used - used) < 0)
			continue;
		copy_addr(service->addr, mapping->service);
		service->port = mapping->sport;
		used = mapping->used;
		found = 1;
	}
	return found;
}

#endif
