/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a packet of an endpoint, wherever it is met. */
#ifndef WEFT_VERDICT_BPF_H
#define WEFT_VERDICT_BPF_H

#include "conntrack.bpf.h"
#include "events.bpf.h"
#include "hurry.bpf.h"
#include "known.bpf.h"
#include "local.bpf.h"
#include "packet.bpf.h"
#include "policy.bpf.h"

#define WEFT_PASS 1
#define WEFT_REFUSE 0

__noinline int drop(struct __sk_buff *skb, const struct weft_packet *p, const struct weft_peer *peer,
			   struct weft_decision *decision)
{
	if (!p || !peer || !decision)
		return WEFT_REFUSE;
	if (decision->reason == WEFT_SILENT) {
		count(WEFT_PEER_UNKNOWN);
		return WEFT_REFUSE;
	}
	count(WEFT_PACKETS_DROPPED);
	decision->verdict = WEFT_VERDICT_DROPPED;
	tell(skb, p, peer, decision);
	return WEFT_REFUSE;
}

/* The port by which a connection is judged that was opened in `dir`: its server's. */
static __always_inline __u16 judged_port(const struct weft_packet *p, __u8 dir)
{
	/* The request's type, also when this is the answer. */
	if (is_icmp(p)) {
		if (is_echo(p))
			return (p->v4 ? 8 : 128) + 1;
		return p->sport + 1;
	}
	return dir == p->dir ? p->dport : p->sport;
}

static __always_inline void write_down(struct weft_connection *connection, const struct weft_peer *peer,
				       const struct weft_set *set, const struct weft_answer *answer,
				       __u32 epoch)
{
	connection->epoch = epoch;
	connection->generation = set->generation;
	connection->identity = peer->identity;
	connection->rule = answer->rule;
	connection->peer = peer->endpoint;
	/* What hangs on more than the set and the peer's identity is asked each time. */
	connection->flags = answer->flags & WEFT_POLICY_AUTH ? WEFT_CONNECTION_EACH : 0;
	if (peer->flags & WEFT_ADDRESS_HOST && peer->flags & WEFT_ADDRESS_LOCAL)
		connection->flags |= WEFT_CONNECTION_NODE;
}

/*
 * Whose socket a pod's packet goes to, at an address that the node's processes share. Of TCP the opening
 * tells, and the connection remembers: later its socket may be one that is only closing, on which
 * nothing is written.
 */
static __always_inline void find_listener(struct __sk_buff *skb, const struct weft_packet *p,
					  struct weft_connection_key *key, struct weft_connection *connection,
					  struct weft_peer *peer)
{
	peer->flags &= ~WEFT_PEER_LISTENS;
	if (p->proto == IPPROTO_TCP && !is_opening(p)) {
		connection_key(p, p->dir, key);
		if (find_connection(key, connection) && connection->flags & WEFT_CONNECTION_NODE) {
			peer->identity = connection->identity;
			peer->endpoint = connection->peer;
			return;
		}
	}
	become(peer, process_at(skb, p), 0);
}

/*
 * The agents' tunnels. WEFT_PASS, a reason to refuse, or 0: to be judged like others.
 */
static __always_inline int judge_tunnel(const struct weft_packet *p, const struct weft_endpoint *endpoint,
					const struct weft_peer *peer)
{
	/* Nobody is there: it would leave the cluster. */
	if (peer->flags & WEFT_ADDRESS_AGENT)
		return WEFT_DROP_UNKNOWN_TARGET;
	if (p->proto == IPPROTO_TCP && p->dport == tunnel_port) {
		/* Only agents speak it. */
		if (p->dir == WEFT_OUT)
			return WEFT_DROP_ENCAPSULATION_PROHIBITED;
		/* The agent that takes it judges who is inside. */
		if (peer->flags & WEFT_ADDRESS_HOST && !peer->endpoint &&
		    !(endpoint->flags & WEFT_ENDPOINT_PROCESS))
			return WEFT_PASS;
	}
	/* What should have come or gone by tunnel. */
	if (strict && peer->flags & WEFT_ADDRESS_TUNNEL)
		return WEFT_DROP_UNENCRYPTED;
	return 0;
}

/*
 * Whether policy that wants the agent to look into a connection has what it wants: it is the agent's own,
 * to where its requests go after each was judged. What makes it so is the mark on the socket, which the
 * node's part sets on those that it makes for the agent, and which crosses into this namespace with the
 * packet. Somebody else in the pod who may send whatever he likes could put bytes between the agent's: so
 * only what carries none passes without the mark, as the kernel answers for sockets that are gone.
 */
static __always_inline int is_of_agent(struct __sk_buff *skb, const struct weft_packet *p,
				       const struct weft_connection *connection)
{
	struct bpf_sock *sk = skb->sk;
	__u8 offset = 0;

	if (p->proto != IPPROTO_TCP)
		return 0;
	if (p->dir == WEFT_IN)
		return connection->flags & WEFT_CONNECTION_AGENT;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk && bpf_sk_storage_get(&own, sk, 0, 0))
		return 1;
	if (!(connection->flags & WEFT_CONNECTION_AGENT) || is_opening(p) || p->part != WEFT_WHOLE)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + 12, &offset, 1))
		return 0;
	return skb->len <= p->l4 + (offset >> 4) * 4;
}

/* WEFT_PASS or WEFT_REFUSE. */
__noinline int decide(struct __sk_buff *skb, struct weft_packet *p, struct weft_peer *peer)
{
	if (!p || !peer)
		return WEFT_REFUSE;
	struct weft_connection_key key ALIGNED = {};
	struct weft_connection connection = {};
	struct weft_question question = {};
	struct weft_endpoint endpoint = {};
	struct weft_decision decision = {};
	struct weft_answer answer = {};
	__u8 dir = p->dir;
	int known = 0, reason, is_reply = 0, of_agent = 0;

	known = is_known(p, peer);
	if (known == WEFT_STEADY)
		let_pass(skb, p);
	if (known)
		return WEFT_PASS;
	if (!find_endpoint(p->endpoint, &endpoint)) {
		count(WEFT_ENDPOINT_UNKNOWN);
		return WEFT_REFUSE;
	}
	if (peer->endpoint == p->endpoint || peer->flags & WEFT_PEER_OWN)
		return WEFT_PASS;
	decision.identity = endpoint.identity;

	if (!is_opening(p)) {
		connection_key(p, !dir, &key);
		is_reply = find_connection(&key, &connection);
		if (is_reply)
			dir = !dir;
	}
	decision.is_reply = is_reply;
	/*
	 * A pod's interface shows who of the node calls, but not who answers or is answered: there the
	 * connection tells.
	 */
	if (is_reply && connection.flags & WEFT_CONNECTION_NODE &&
	    !(endpoint.flags & WEFT_ENDPOINT_PROCESS)) {
		peer->flags = WEFT_ADDRESS_HOST | WEFT_ADDRESS_LOCAL;
		peer->identity = connection.identity;
		if (p->dir == WEFT_OUT)
			peer->endpoint = endpoint_that_sent(p);
	}
	if (!is_reply && peer->flags & WEFT_PEER_LISTENS)
		find_listener(skb, p, &key, &connection, peer);
	if (is_reply && connection.flags & WEFT_CONNECTION_TUNNEL) {
		touch_connection(p, &key, 1);
		return WEFT_PASS;
	}
	if (!is_reply) {
		reason = judge_tunnel(p, &endpoint, peer);
		if (reason == WEFT_PASS) {
			connection_key(p, dir, &key);
			known = find_connection(&key, &connection);
			if (known && connection.flags & WEFT_CONNECTION_TUNNEL) {
				touch_connection(p, &key, 0);
				return WEFT_PASS;
			}
			connection.flags = WEFT_CONNECTION_TUNNEL;
			connection.identity = peer->identity;
			reason = opens(p) ? put_connection(p, &key, &connection) : 0;
			if (!reason)
				return WEFT_PASS;
		}
		if (reason) {
			decision.reason = reason;
			return drop(skb, p, peer, &decision);
		}
	} else if (strict && peer->flags & WEFT_ADDRESS_TUNNEL) {
		decision.reason = WEFT_DROP_UNENCRYPTED;
		return drop(skb, p, peer, &decision);
	}

	if (!find_set(endpoint.set, &question.set)) {
		count(WEFT_SET_MISSING);
		decision.reason = WEFT_DROP_NO_CONFIGURATION;
		return drop(skb, p, peer, &decision);
	}
	if (is_reply && connection.generation == question.set.generation &&
	    connection.identity == peer->identity &&
	    !(connection.flags & ~(WEFT_CONNECTION_NODE | WEFT_CONNECTION_AGENT))) {
		touch_connection(p, &key, 1);
		return WEFT_PASS;
	}
	if (!is_reply && is_error(p) && p->part != WEFT_LATER &&
	    is_related(skb, p, question.set.generation))
		return WEFT_PASS;

	question.key.set = endpoint.set;
	question.key.identity = peer->identity;
	question.key.port = judged_port(p, dir);
	question.key.proto = p->proto;
	question.key.dir = dir;
	reason = judge(&question, &endpoint, peer, &answer);
	decision.rule = answer.rule;
	decision.verdict = WEFT_VERDICT_FORWARDED;
	if (!is_reply) {
		connection_key(p, dir, &key);
		known = find_connection(&key, &connection);
		/* The same ports again, for another connection. */
		if (known && p->proto == IPPROTO_TCP && is_opening(p) && connection.proto_state != WEFT_STATE_NEW) {
			known = 0;
			__builtin_memset(&connection, 0, sizeof(connection));
		}
	}
	if (reason == WEFT_DROP_PROXY_NOT_SUPPORTED && dir == WEFT_OUT)
		of_agent = is_of_agent(skb, p, &connection);
	if (of_agent)
		reason = answer.flags & WEFT_POLICY_AUTH ? WEFT_DROP_AUTH_REQUIRED : 0;
	decision.reason = reason;
	if (reason && !(endpoint.flags & WEFT_ENDPOINT_AUDIT)) {
		if (known || is_reply) {
			connection.flags |= WEFT_CONNECTION_REFUSED;
			put_connection(p, &key, &connection);
		}
		return drop(skb, p, peer, &decision);
	}
	if (reason) {
		decision.verdict = WEFT_VERDICT_AUDIT;
		/* What is not known yet is not told where it is refused; here it will not come again. */
		if (reason == WEFT_SILENT)
			decision.reason = WEFT_DROP_POLICY_DENIED;
	}

	/* Is there anything to write down? */
	if ((known || is_reply) && connection.generation == question.set.generation &&
	    connection.identity == peer->identity && !(connection.flags & WEFT_CONNECTION_REFUSED)) {
		touch_connection(p, &key, is_reply);
		return WEFT_PASS;
	}
	if (!known && !is_reply && !opens(p))
		return WEFT_PASS;
	write_down(&connection, peer, &question.set, &answer, p->epoch);
	if (reason)
		connection.flags |= WEFT_CONNECTION_EACH;
	if (of_agent)
		connection.flags |= WEFT_CONNECTION_AGENT;
	reason = put_connection(p, &key, &connection);
	if (reason) {
		decision.reason = reason;
		return drop(skb, p, peer, &decision);
	}
	if (known || is_reply)
		return WEFT_PASS;
	if (decision.verdict == WEFT_VERDICT_AUDIT)
		count(WEFT_PACKETS_AUDITED);
	tell(skb, p, peer, &decision);
	return WEFT_PASS;
}

#endif
