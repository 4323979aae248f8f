/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps. All are pinned by name, so they outlive the process that loaded them and the next one
 * adopts them with what they hold.
 */
#ifndef WEFT_MAPS_BPF_H
#define WEFT_MAPS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.bpf.h"

/* cgroup id -> workload. Written by user space only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, struct weft_workload);
} workloads SEC(".maps");

/* Cookie of a pod's network namespace -> its endpoint number. Written by user space only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, __u32);
} namespaces SEC(".maps");

/* Endpoint number -> what is enforced. One that is absent is not known yet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct weft_endpoint);
} endpoints SEC(".maps");

/*
 * How many entries of `pending` a workload holds, by its cgroup id, or a pod, by its namespace's
 * cookie with the highest bit set. Entries are made by user space.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, __s32);
} shares SEC(".maps");

/* On connecting sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct weft_active);
} connects SEC(".maps");

/* Connections on their way from connect(2) to the listener. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_tuple);
	__type(value, struct weft_origin);
} pending SEC(".maps");

/* On accepted sockets: what user space reads with the socket's descriptor as key. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct weft_origin);
} origins SEC(".maps");

/* On sockets that the node made for the agent. Written by user space only. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, __u32);
} own SEC(".maps");

/* On sockets that processes bound, and on those accepted from them: the workload's cgroup. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, __u64);
} owners SEC(".maps");

/* On UDP sockets that send to services or belong to processes. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct weft_datagram);
} datagrams SEC(".maps");

/* Socket cookie -> what it is connected to. Cookies are given once, so what is old harms nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64);
	__type(value, struct weft_connected);
} connected SEC(".maps");

/*
 * The resolvers that questions on their way to the agent were for: written as they leave, when their source is
 * known. The oldest give way.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_asked_key);
	__type(value, struct weft_asked);
} asked SEC(".maps");

/* Whose packets these are, for processes. The oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_process);
	__type(value, __u32);
} processes SEC(".maps");

/* The services, written by user space only: see services.rs for the order. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_service_key);
	__type(value, struct weft_service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_backend_key);
	__type(value, struct weft_backend);
} backends SEC(".maps");

/* Twice as many as backends: while a set changes both the old and the new are members. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_member);
	__type(value, __u32);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WEFT_COUNTERS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Where the agent listens for captured connections, on the loopback of the caller's namespace. */
const volatile __u16 capture_port = 15001;
/* The same for questions to resolvers. */
const volatile __u16 dns_port = 15053;

/* Puts the enumeration into the object's BTF, where the names are compared with user space's. */
const volatile enum weft_counter last_counter = WEFT_COUNTERS;

static __always_inline void count(enum weft_counter what)
{
	__u32 index = what;
	__u64 *value = bpf_map_lookup_elem(&counters, &index);

	if (value)
		*value += 1;
}

#endif
