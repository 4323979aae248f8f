/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs at packets and user space both read; mirrored in `layout/packet.rs` like
 * types.bpf.h is in `layout.rs`. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; ports are in host
 * order, but for the port of a range, which is a prefix of bits.
 */
#ifndef WEFT_PACKET_TYPES_BPF_H
#define WEFT_PACKET_TYPES_BPF_H

#include <linux/types.h>

/* Which way a packet goes, as seen from the endpoint that is judged. */
#define WEFT_IN 0
#define WEFT_OUT 1

/* An address that an endpoint may send from. */
struct weft_source {
	__u32 endpoint;
	__u32 zero;
	__u8 addr[16];
};

/* An address range. */
struct weft_prefix {
	__u32 length;
	__u8 addr[16];
};

/* Who has an address. */
struct weft_address {
	__u32 identity;
	/* WEFT_ADDRESS_*. */
	__u32 flags;
	/* The endpoint's number, if it is of this node. */
	__u32 endpoint;
	/* Which other node; a number that user space knows. */
	__u32 node;
};

/* An endpoint of this node; of a node's own address: this node's. */
#define WEFT_ADDRESS_LOCAL 1
/* A workload of another node, reached by the agents' tunnel. */
#define WEFT_ADDRESS_TUNNEL 2
/* A node's own. */
#define WEFT_ADDRESS_HOST 4
/* In the cluster, but whose it is is not known yet. */
#define WEFT_ADDRESS_AGGREGATE 8
/* The agents answer there, for those whose connections they take: no packet ever goes there. */
#define WEFT_ADDRESS_AGENT 16

/* How a policy set is read. */
struct weft_set {
	/* WEFT_SHAPE_*: the kinds of keys in use. */
	__u32 shapes_in;
	__u32 shapes_out;
	/* WEFT_SET_*. */
	__u32 flags;
	/* Never the same for two sets or two contents. */
	__u32 generation;
};

/* Which parts a key names; the others are 0. */
#define WEFT_SHAPE_PEER_PORT 1
#define WEFT_SHAPE_PEER_PROTO 2
#define WEFT_SHAPE_PEER 4
#define WEFT_SHAPE_PORT 8
#define WEFT_SHAPE_PROTO 16
#define WEFT_SHAPE_ANY 32

/* What no entry allows is refused. */
#define WEFT_SET_DENY_IN 1
#define WEFT_SET_DENY_OUT 2
/* Ranges are to be asked. */
#define WEFT_SET_RANGES_IN 8
#define WEFT_SET_RANGES_OUT 16
/* No entry wants the proxy. */
#define WEFT_SET_DIRECT_IN 32
#define WEFT_SET_DIRECT_OUT 64

struct weft_policy_key {
	__u32 set;
	/* The peer's; 0 for anybody. */
	__u32 identity;
	/* The server's; for ICMP the message's type plus one; 0 for any. */
	__u16 port;
	/* 0 for any. */
	__u8 proto;
	__u8 dir;
};

/* A block of ports. A prefix of up to 96 bits: all but the port count always. */
struct weft_range {
	__u32 length;
	__u32 set;
	__u32 identity;
	__u8 dir;
	__u8 proto;
	/* The port in network order. */
	__u8 port[2];
};

/* What an entry says. 8 bytes, so that a reader has all of it or none. */
struct weft_policy {
	__u8 verdict;
	/* WEFT_POLICY_*. */
	__u8 flags;
	/* Of a block of ports, how many bits of protocol and port the narrowest of its rules names. */
	__u8 length;
	__u8 zero;
	/* What the rule is called in events; 0 for none. */
	__u32 rule;
};

#define WEFT_ALLOW 1
#define WEFT_DENY 2

/* Only through the proxy. */
#define WEFT_POLICY_REDIRECT 1
/* Only between ends that are proven. */
#define WEFT_POLICY_AUTH 2
/* Also between others, whatever a wider entry says. */
#define WEFT_POLICY_FREE 4
/* The one of these two that is there is a wider block's. */
#define WEFT_POLICY_DERIVED 8
/* One rule is about requests; another one may not be. */
#define WEFT_POLICY_PROXIED 16

/* A connection as one endpoint sees it. */
struct weft_connection_key {
	__u8 local[16];
	__u8 remote[16];
	__u32 endpoint;
	__u16 lport;
	__u16 rport;
	__u8 proto;
	/* The way that its first packet went. */
	__u8 dir;
	__u16 zero;
};

struct weft_connection {
	/* When it was last used, and until when it is known; by bpf_ktime_get_ns. */
	__u64 used;
	__u64 expires;
	/* weft_set.generation when it was judged. */
	__u32 generation;
	/* The peer's identity then. */
	__u32 identity;
	/* What was said of it. */
	__u32 rule;
	/* The peer's number, if it is of this node. */
	__u32 peer;
	__u8 proto_state;
	/* WEFT_CONNECTION_*. */
	__u8 flags;
	__u16 zero;
	/* Of the tables when all that a packet of it meets was last looked up; 0: never. */
	__u32 epoch;
};

/* Each packet is judged, not only those of a changed policy. */
#define WEFT_CONNECTION_EACH 1
/* It is the agents' and no policy's business. */
#define WEFT_CONNECTION_TUNNEL 2
/* Refused when it was last judged. */
#define WEFT_CONNECTION_REFUSED 4
/* The other end is on this node itself, whatever address it has. */
#define WEFT_CONNECTION_NODE 8
/* Opened by the agent, which asks policy of each request in it. */
#define WEFT_CONNECTION_AGENT 16

/* weft_connection.proto_state. */
#define WEFT_STATE_NEW 0
#define WEFT_STATE_ANSWERED 1
#define WEFT_STATE_CLOSING 2

/* Packets that a CPU lets pass at once: see hurry.bpf.h. One line of its cache. */
struct weft_passing {
	__u8 saddr[16];
	__u8 daddr[16];
	/* Where it is met, and where it came in. */
	__u32 ifindex;
	__u32 ingress;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 dir;
	__u16 zero;
	/* When it was looked at: the epoch, and the clock in units of about a second. */
	__u32 epoch;
	__u32 period;
	__u64 zero2;
};

/* How many a CPU has. A power of two. */
#define WEFT_PASSING 1024

/* A datagram in pieces, of which the first alone shows ports. */
struct weft_fragment {
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 endpoint;
	__u32 id;
	__u8 proto;
	__u8 dir;
	__u16 zero;
};

struct weft_ports {
	__u16 sport;
	__u16 dport;
	__u16 id;
	__u16 zero;
};

/* What user space is told of a packet. */
struct weft_event {
	/* bpf_ktime_get_ns. */
	__u64 time;
	/* WEFT_EVENT_*. */
	__u8 kind;
	/* WEFT_DROP_*, of a packet that was refused, or would have been but for audit. */
	__u8 reason;
	__u8 dir;
	/* WEFT_VERDICT_*. */
	__u8 verdict;
	/* Who was judged, and the peer's number if it is of this node. */
	__u32 endpoint;
	__u32 peer;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 len;
	__u32 ifindex;
	__u8 saddr[16];
	__u8 daddr[16];
	/* For ICMP the type, and the code. */
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 is_reply;
	__u8 zero;
};

/* As Hubble numbers them. */
#define WEFT_EVENT_DROP 1
#define WEFT_EVENT_TRACE 4
#define WEFT_EVENT_POLICY 5

#define WEFT_VERDICT_FORWARDED 1
#define WEFT_VERDICT_DROPPED 2
#define WEFT_VERDICT_AUDIT 4

/* Hubble's DropReason, as far as used. */
enum weft_drop {
	WEFT_DROP_NONE = 0,
	WEFT_DROP_INVALID_SOURCE_IP = 132,
	WEFT_DROP_POLICY_DENIED = 133,
	WEFT_DROP_INVALID_PACKET = 134,
	WEFT_DROP_UNSUPPORTED_L3 = 139,
	WEFT_DROP_UNKNOWN_TARGET = 150,
	WEFT_DROP_CT_INSERTION_FAILED = 155,
	WEFT_DROP_INVALID_EXTENSION_HEADER = 156,
	WEFT_DROP_NO_CONFIGURATION = 165,
	WEFT_DROP_UNSUPPORTED_L2 = 166,
	WEFT_DROP_ENCAPSULATION_PROHIBITED = 170,
	WEFT_DROP_FIRST_FRAGMENT_NOT_FOUND = 175,
	WEFT_DROP_FORBIDDEN_ICMPV6 = 176,
	WEFT_DROP_PROXY_NOT_SUPPORTED = 180,
	WEFT_DROP_POLICY_DENY = 181,
	WEFT_DROP_VLAN_FILTERED = 182,
	WEFT_DROP_AUTH_REQUIRED = 189,
	WEFT_DROP_UNENCRYPTED = 195,
};

#endif
