/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps of the programs at packets; pinned by name like those of maps.bpf.h. */
#ifndef WEFT_PACKET_MAPS_BPF_H
#define WEFT_PACKET_MAPS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "packet_types.bpf.h"

/* Index of an interface towards a pod -> its endpoint number. Written by the node only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

/* Which addresses an endpoint may send from. Written by the node only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_source);
	__type(value, __u32);
} endpoint_addresses SEC(".maps");

/* Who has an address: the longest prefix tells. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_prefix);
	__type(value, struct weft_address);
} addresses SEC(".maps");

/* Number of a policy set -> how it is read. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct weft_set);
} sets SEC(".maps");

/* The entries of all sets. Memory is taken as they come. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_policy_key);
	__type(value, struct weft_policy);
} policy SEC(".maps");

/* Blocks of ports. Of each the longest is asked, so those that allow do not hide those that refuse. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_range);
	__type(value, struct weft_policy);
} range_allow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_range);
	__type(value, struct weft_policy);
} range_deny SEC(".maps");

/* Connections of all endpoints. The least used give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_connection_key);
	__type(value, struct weft_connection);
} conntrack SEC(".maps");

/* Ports of datagrams in pieces. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct weft_fragment);
	__type(value, struct weft_ports);
} fragments SEC(".maps");

/*
 * Goes up with each change of interfaces, of addresses of endpoints and others, of endpoints and sets:
 * user space adds to it in its own memory, after the change.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} epoch SEC(".maps");

/* WEFT_PASSING for each CPU, which alone reads and writes them. Mapped, so that each is one line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEFT_PASSING);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct weft_passing);
} passing SEC(".maps");

/* struct weft_event each. What finds no room is counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1048576);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Puts the struct into the object's BTF: no map's definition names it. */
const volatile struct weft_event event_shape = {};
const volatile enum weft_drop last_drop = WEFT_DROP_UNENCRYPTED;

/* Where agents take tunnels. */
const volatile __u16 tunnel_port = 15008;

/* Workloads of other nodes are reached by tunnel or not at all. */
const volatile __u8 strict = 0;

/* The node's own cgroup and how deep it lies, for sockets of the node's own components. */
const volatile __u64 root_cgroup = 0;
const volatile __u32 root_level = 0;

#endif
