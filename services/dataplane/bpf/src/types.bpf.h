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

/* What is enforced for an endpoint, by its number. */
struct weft_endpoint {
	__u32 identity;
	/* The number of its policy set. */
	__u32 set;
	/* WEFT_ENDPOINT_*. */
	__u32 flags;
	__u32 generation;
};

/* It holds a valid SVID. */
#define WEFT_ENDPOINT_HAS_SVID 1
/* What policy forbids is told and lets pass. */
#define WEFT_ENDPOINT_AUDIT 2
/* It is told apart by its cgroup and shares the node's addresses. */
#define WEFT_ENDPOINT_PROCESS 4
/* The agent listens for captured connections in its namespace. */
#define WEFT_ENDPOINT_CAPTURE 8

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
	/* What was chosen in its place. */
	__u8 target[16];
	__u16 dport;
	/* 0: nothing was, or the agent chooses. */
	__u16 tport;
	/* 4 or 6: the family of connect's argument. */
	__u16 family;
	/* WEFT_ORIGIN_*. */
	__u16 flags;
	/* The endpoint's number at that moment. */
	__u32 index;
	/* weft_service.id, if the destination is a service. */
	__u32 service;
};

/* The connection was sent to the agent's capture listener. */
#define WEFT_ORIGIN_CAPTURED 1
/* The destination is a service's address. */
#define WEFT_ORIGIN_SERVICE 2
/* The caller is a pod, told by its namespace: `cgroup` is 0. */
#define WEFT_ORIGIN_POD 4

/* Kept on the connecting socket. */
struct weft_active {
	struct weft_origin origin;
	/* What the socket was really connected to, if not to what the caller wrote: port 0 if it was. */
	__u8 peer[16];
	/* The key under which the origin is in `pending`, and the 5-tuple that is in `processes`. */
	struct weft_tuple tuple;
	__u16 pport;
	/* WEFT_ACTIVE_*: which of the two. */
	__u16 entries;
	__u32 zero;
};

#define WEFT_ACTIVE_PENDING 1
#define WEFT_ACTIVE_PROCESS 2

/* A connection or exchange of a process, without its namespace: the table is the node's. */
struct weft_process {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 zero[3];
};

/* An address and a port. */
struct weft_place {
	__u8 addr[16];
	__u16 port;
};

/* What callers write to reach a service. */
struct weft_service_key {
	__u8 addr[16];
	__u16 port;
	__u8 proto;
	__u8 zero;
};

struct weft_service {
	__u32 id;
	/* Slots 0 to count - 1 of `backends` are filled. */
	__u32 count;
	/* WEFT_SERVICE_*. */
	__u32 flags;
	/* Goes up with each change. */
	__u32 generation;
};

/* Its routes are the agent's business. */
#define WEFT_SERVICE_CAPTURE 1

struct weft_backend_key {
	__u32 service;
	__u32 slot;
};

struct weft_backend {
	__u8 addr[16];
	__u16 port;
	__u16 flags;
	/* The endpoint's number if it is on this node. */
	__u32 endpoint;
};

/* An address that is a backend of a service, in whatever slot. */
struct weft_member {
	__u8 addr[16];
	__u32 service;
	__u16 port;
	__u16 zero;
};

/* Which backend a UDP socket was given for a service. */
struct weft_mapping {
	__u8 service[16];
	__u8 backend[16];
	__u16 sport;
	/* 0: not in use. */
	__u16 bport;
	/* weft_service's, when the backend was last seen to be one. */
	__u32 id;
	__u32 generation;
	/* weft_datagram.clock when it was last sent to. */
	__u32 used;
};

/* A connected UDP socket that was given a backend: sock_diag shows no storage of such sockets. */
struct weft_connected {
	__u8 service[16];
	__u8 backend[16];
	__u16 sport;
	__u16 bport;
	__u32 zero;
};

/* A resolver asks a handful of servers from one socket. */
#define WEFT_MAPPINGS 8

/* Where a question to a resolver comes from that was sent to the agent. */
struct weft_asked_key {
	__u64 netns;
	__u8 saddr[16];
	__u16 sport;
	__u16 zero[3];
};

/* Whom it was for. */
struct weft_asked {
	/* The resolver as the caller wrote it. */
	__u8 daddr[16];
	/* What was chosen in its place: a service's backend, or the same. */
	__u8 target[16];
	/* 0: nothing was asked. */
	__u16 dport;
	__u16 tport;
	/* The caller's endpoint number. */
	__u32 index;
};

/* Kept on UDP sockets. */
struct weft_datagram {
	/* The endpoint of the process that sent last; 0 if it was none. */
	__u32 index;
	__u32 clock;
	struct weft_mapping mappings[WEFT_MAPPINGS];
	/* The namespace's cookie, and the last question that was sent to the agent. */
	__u64 netns;
	struct weft_asked asked;
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
	/* Connections sent to a backend, and to the agent's capture listener. */
	WEFT_BALANCED,
	WEFT_CAPTURED,
	/* Refused: the service has no backends. */
	WEFT_NO_BACKENDS,
	/* Refused: the backend could not be read, or is of a family that the socket cannot reach. */
	WEFT_BACKEND_UNUSABLE,
	/* A UDP socket used more services than it can remember: answers show the backend's address. */
	WEFT_UDP_FORGOTTEN,
	/* Packets refused: each has an event with its reason, if the buffer had room. */
	WEFT_PACKETS_DROPPED,
	/* Packets that policy refuses and audit let pass. */
	WEFT_PACKETS_AUDITED,
	/* Packets refused without an event, because they are expected to come again: the endpoint ... */
	WEFT_ENDPOINT_UNKNOWN,
	/* ... or the peer is not known yet. */
	WEFT_PEER_UNKNOWN,
	/* Refused: the endpoint's policy set is not there. */
	WEFT_SET_MISSING,
	/* Refused: the connection could not be written down. */
	WEFT_CONNTRACK_FULL,
	/* Events that found no room in the buffer. */
	WEFT_EVENTS_LOST,
	/* Refused: the agent is to look into the connection, or to answer, and there is no listener for it. */
	WEFT_REDIRECT_CLOSED,
	/* Refused: it has to go by tunnel, and there is no listener for it. */
	WEFT_TUNNEL_CLOSED,
	WEFT_COUNTERS,
};

#endif
