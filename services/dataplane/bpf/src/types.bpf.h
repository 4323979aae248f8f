/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and user space both read. `layout.rs` mirrors every struct here, and a test
 * compares the two through the object's BTF. A change of any of these needs a new LAYOUT there.
 */
#ifndef WEFT_TYPES_BPF_H
#define WEFT_TYPES_BPF_H

#include <linux/types.h>

/* What user space knows of a cgroup that is a workload. */
struct weft_workload {
	__u32 index;
	__u32 identity;
};

/* A TCP connection in one namespace. IPv4 is written as ::ffff:a.b.c.d, ports in host order. */
struct weft_tuple {
	__u64 netns;
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u32 zero;
};

/* Who opened a connection, as the kernel saw it in connect(2). */
struct weft_origin {
	/* The workload's cgroup, also when the caller sat in a cgroup below it. */
	__u64 cgroup;
	__u64 netns;
	/* Cookie of the connecting socket. */
	__u64 socket;
	/* The destination as the caller wrote it. */
	__u8 daddr[16];
	__u16 dport;
	/* 4 or 6: the family of connect's argument. */
	__u16 family;
	/* weft_workload.index at that moment. */
	__u32 index;
};

/* Kept on the connecting socket. */
struct weft_active {
	struct weft_origin origin;
	/* The key under which the origin is in `pending`, if it is. */
	struct weft_tuple tuple;
	__u32 published;
	__u32 zero;
};

enum weft_counter {
	/* connect(2) in the subtree by a process in no registered workload, the node's own included. */
	WEFT_CONNECT_UNREGISTERED,
	/* Records written to, and taken from, the table of pending connections. */
	WEFT_PUBLISHED,
	WEFT_DELIVERED,
	/* Records dropped because the connecting socket closed before anything accepted it. */
	WEFT_ABANDONED,
	/* The table was full: the connection has no record and is refused by its listener. */
	WEFT_PENDING_FULL,
	/* The same because of the workload's own share of the table. */
	WEFT_SHARE_USED_UP,
	/* Socket storage could not be had: same consequence. */
	WEFT_NO_STORAGE,
	/*
	 * A connection that came in without a record: a refusal if the listener was the node's, of no
	 * consequence if it was an app's.
	 */
	WEFT_ACCEPT_UNKNOWN,
	WEFT_COUNTERS,
};

#endif
