//! What comes over the hand-off, from its packets on, in both directions. Whatever is taken must, by
//! another reading of the same message, have an owner for each of its descriptors and nothing beyond the
//! bounds of the protocol.
//!
//! An input is a list of packets: of each the length (two bytes, little endian), how many descriptors
//! come beside it (one byte, of which the lower three bits count), and its bytes.

use crate::{
    HandoffError,
    incoming::{self, Incoming},
    message::{Family, MAX_BACKENDS, MAX_GATEWAY_PORTS, MAX_SOCKETS},
    node::{self, AgentRequest},
    wire::{Assembler, HEADER, MAX_DESCRIPTORS, MAX_MESSAGE, Received, plan},
};
use prost::Message as _;
use std::os::fd::OwnedFd;
use weft_fuzz::Corpus;
use weft_proto::weft::{dataplane::v1::WorkloadSpec, node::v1 as proto};

/// Descriptors beside a packet of an input.
const MOST: usize = 7;

fn packets(mut input: &[u8]) -> Vec<(&[u8], usize)> {
    let mut packets = Vec::new();
    while let Some(([low, high, fds], rest)) = input.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        packets.push((packet, usize::from(*fds) & MOST));
        input = rest;
    }
    packets
}

fn descriptors(n: usize) -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    (0..n)
        .map(|_| null.try_clone().expect("a descriptor").into())
        .collect()
}

/// The messages that are whole, until the link is lost.
fn assembled(input: &[u8], each: &mut dyn FnMut(Received)) {
    let mut assembler = Assembler::default();
    for (packet, fds) in packets(input) {
        match assembler.push(packet, descriptors(fds)) {
            Ok(Some(received)) => {
                assert!(received.message.len() <= MAX_MESSAGE);
                assert!(received.descriptors.len() <= MAX_DESCRIPTORS);
                each(received);
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// How many descriptors a message lists.
fn listed(message: &[u8]) -> usize {
    use proto::node_message::Message as M;
    let message = proto::NodeMessage::decode(message).expect("it was read before");
    match message.message.expect("it was read before") {
        M::Hello(it) => it.listeners.len() + it.maps.len(),
        M::Placed(it) => it.listeners.len(),
        M::GatewayPorts(it) => it.listeners.len(),
        M::Sockets(it) => usize::try_from(it.count).expect("a count"),
        M::Gone(_) | M::Done(_) | M::Failure(_) | M::SocketsClosed(_) => 0,
    }
}

type FromNode = dyn Fn(Received) -> Result<(u64, Incoming), HandoffError>;

fn agent_holds(decode: &FromNode, input: &[u8]) {
    assembled(input, &mut |received| {
        let (message, count) = (received.message.clone(), received.descriptors.len());
        if decode(received).is_ok() {
            assert_eq!(listed(&message), count, "a descriptor without an owner");
        }
    });
}

type FromAgent = dyn Fn(&[u8]) -> Result<node::Request, HandoffError>;

fn node_holds(decode: &FromAgent, input: &[u8]) {
    assembled(input, &mut |received| {
        let Ok(request) = decode(&received.message) else {
            return;
        };
        match request.message {
            AgentRequest::OpenSockets { family, count, .. } => {
                assert!((1..=MAX_SOCKETS).contains(&count), "{count} sockets");
                assert!(matches!(family, Family::V4 | Family::V6));
            }
            AgentRequest::GatewayPorts(ports) => {
                assert!(
                    ports.len() <= MAX_GATEWAY_PORTS && !ports.contains(&0),
                    "{ports:?}"
                );
            }
            AgentRequest::CloseSockets(backends) => assert!(backends.len() <= MAX_BACKENDS),
            _ => {}
        }
    });
}

/// A message as it is sent.
fn sent(message: &[u8], fds: usize) -> Vec<u8> {
    let mut input = Vec::new();
    for packet in plan(message.len(), fds).expect("it fits") {
        let content = if packet.with_message { message } else { &[] };
        let length = u16::try_from(HEADER + content.len()).expect("a small message");
        input.extend(length.to_le_bytes());
        input.push(u8::try_from(packet.descriptors.len()).expect("a few"));
        input.extend(packet.header);
        input.extend(content);
    }
    input
}

fn listener(kind: proto::ListenerKind, address: &str) -> proto::Listener {
    proto::Listener {
        kind: kind.into(),
        address: address.into(),
    }
}

fn from_node() -> Corpus {
    use proto::node_message::Message as M;
    let listeners = || {
        vec![
            listener(proto::ListenerKind::RuntimeHttp, "127.0.0.1:3500"),
            listener(proto::ListenerKind::LocalApi, "/run/weft/agent.sock"),
        ]
    };
    let hello = proto::NodeHello {
        node: "n1".into(),
        software: "0.1.0".into(),
        listeners: listeners(),
        maps: vec!["policy".into(), "services".into()],
        addresses: vec!["10.0.0.1".into(), "fd00::1".into()],
        workloads: 1,
        ..Default::default()
    };
    let placed = proto::WorkloadPlaced {
        id: "n1/shop/cart/1".into(),
        spec: Some(WorkloadSpec::default()),
        listeners: listeners(),
        cgroup: "/sys/fs/cgroup/weft/cart".into(),
        addresses: vec!["10.0.0.2".into()],
        ..Default::default()
    };
    let gateway_ports = proto::GatewayPortsOpened {
        listeners: vec![listener(proto::ListenerKind::Gateway, "0.0.0.0:80")],
        ..Default::default()
    };
    let all = [
        (M::Hello(hello), 4),
        (M::Placed(placed), 2),
        (M::Sockets(proto::SocketsOpened { count: 3 }), 3),
        (M::GatewayPorts(gateway_ports), 1),
        (M::Gone(proto::WorkloadGone::default()), 0),
        (M::Done(proto::Done::default()), 0),
    ];
    let messages = all.into_iter().map(|(message, fds)| {
        let message = proto::NodeMessage {
            request_id: 1,
            message: Some(message),
        };
        sent(&message.encode_to_vec(), fds)
    });
    let messages: Vec<_> = messages.collect();
    // One after another on one link.
    let link = messages.concat();
    Corpus::of(messages)
        .and([link])
        .words(["\x57\x01\x00\x00", "\x57\x01\x01\x00", "\x12", "\x1a"])
}

fn from_agent() -> Corpus {
    use proto::agent_message::Message as M;
    let backend = proto::GoneBackend {
        protocol: proto::TransportProtocol::Tcp.into(),
        backend: "10.0.0.2:8080".into(),
        services: vec!["10.96.0.1:80".into()],
    };
    let all = [
        M::OpenSockets(proto::OpenSockets {
            workload_id: "n1/shop/cart/1".into(),
            family: 4,
            count: 64,
        }),
        M::GatewayPorts(proto::OpenGatewayPorts { ports: vec![80, 443] }),
        M::CloseSockets(proto::CloseSockets {
            backends: vec![backend; 3],
        }),
        M::Place(proto::PlaceWorkload {
            spec: Some(WorkloadSpec::default()),
        }),
        M::Ready(proto::AgentReady::default()),
    ];
    let messages = all.into_iter().map(|message| {
        let message = proto::AgentMessage {
            request_id: 3,
            message: Some(message),
        };
        sent(&message.encode_to_vec(), 0)
    });
    Corpus::of(messages.collect::<Vec<_>>()).words(["\x57\x01\x00\x00", "\x18\x41", "\x18\x00", "\x0a\x00"])
}

#[test]
fn fuzz_handoff_agent() {
    weft_fuzz::target!(from_node(), |input: &[u8]| agent_holds(&incoming::decode, input));
}

#[test]
fn the_target_notices_descriptors_that_are_dropped() {
    let forgiving = |received: Received| {
        let Received {
            message,
            mut descriptors,
        } = received;
        // As many as it lists, and no look at the rest.
        if proto::NodeMessage::decode(&*message).is_ok_and(|m| m.message.is_some()) {
            descriptors.truncate(listed(&message));
        }
        incoming::decode(Received { message, descriptors })
    };
    assert!(weft_fuzz::finds!(
        20_000,
        from_node(),
        |input: &[u8]| agent_holds(&forgiving, input)
    ));
}

#[test]
fn fuzz_handoff_node() {
    weft_fuzz::target!(from_agent(), |input: &[u8]| node_holds(&node::decode, input));
}

#[test]
fn the_target_notices_a_count_that_is_not_bounded() {
    let boundless = |message: &[u8]| {
        let asked = proto::AgentMessage::decode(message);
        if let Ok(proto::AgentMessage {
            request_id,
            message: Some(proto::agent_message::Message::OpenSockets(open)),
        }) = asked
        {
            return Ok(node::Request {
                id: request_id,
                message: AgentRequest::OpenSockets {
                    workload: open.workload_id,
                    family: Family::V4,
                    count: usize::try_from(open.count).expect("a count"),
                },
            });
        }
        node::decode(message)
    };
    assert!(weft_fuzz::finds!(
        20_000,
        from_agent(),
        |input: &[u8]| node_holds(&boundless, input)
    ));
}

#[test]
fn what_is_sent_is_taken() {
    for (corpus, count) in [(from_node(), 6), (from_agent(), 5)] {
        let mut whole = 0;
        for seed in corpus.seeds().iter().take(count) {
            assembled(seed, &mut |_| whole += 1);
        }
        assert_eq!(whole, count);
    }
    let mut taken = 0;
    for seed in from_node().seeds() {
        assembled(seed, &mut |received| {
            taken += usize::from(incoming::decode(received).is_ok())
        });
    }
    assert_eq!(taken, 6 + 6);
}
