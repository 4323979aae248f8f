/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What user space is told: each packet that is refused, and the first of each connection. */
#ifndef WEFT_EVENTS_BPF_H
#define WEFT_EVENTS_BPF_H

#include "addr.bpf.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "policy.bpf.h"

/* What was decided of a packet. */
struct weft_decision {
	/* The endpoint's. */
	__u32 identity;
	__u32 rule;
	/* WEFT_VERDICT_*, and enum weft_drop. */
	__u8 verdict;
	__u8 reason;
	__u8 is_reply;
	__u8 zero;
};

__noinline int tell(struct __sk_buff *skb, const struct weft_packet *p, const struct weft_peer *peer,
			   const struct weft_decision *decision)
{
	if (!p || !peer || !decision)
		return -1;
	struct weft_event *event;
	int out = p->dir == WEFT_OUT;

	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count(WEFT_EVENTS_LOST);
		return 0;
	}
	event->time = bpf_ktime_get_ns();
	event->kind = decision->verdict == WEFT_VERDICT_DROPPED ? WEFT_EVENT_DROP : WEFT_EVENT_POLICY;
	event->reason = decision->reason;
	event->dir = p->dir;
	event->verdict = decision->verdict;
	event->endpoint = p->endpoint;
	event->peer = peer->endpoint;
	event->src_identity = out ? decision->identity : peer->identity;
	event->dst_identity = out ? peer->identity : decision->identity;
	event->rule = decision->rule;
	event->len = skb->len;
	event->ifindex = skb->ifindex;
	copy_addr(event->saddr, p->saddr);
	copy_addr(event->daddr, p->daddr);
	event->sport = p->sport;
	event->dport = p->dport;
	event->proto = p->proto;
	event->tcp_flags = p->tcp_flags;
	event->is_reply = decision->is_reply;
	event->zero = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif
