//! Flows in their protobuf form: where ids and texts are made.

use crate::{Party, Recorded, filter::wire_verdict};
use weft_proto::weft::dataplane::v1 as pb;

pub(crate) fn flow(node: &str, run: u64, recorded: &Recorded) -> pb::Flow {
    let flow = &recorded.flow;
    let (mut source, mut destination) = (
        peer(&flow.source, 0),
        peer(&flow.destination, flow.destination_port),
    );
    if let Some(packet) = &flow.packet {
        source.port = packet.source_port.into();
        // Of several addresses the one that was used.
        source.address = packet.source.to_string();
        destination.address = packet.destination.to_string();
    }
    pb::Flow {
        time: Some(flow.time.into()),
        uuid: uuid(run, recorded.sequence),
        node: node.into(),
        verdict: wire_verdict(flow.verdict) as i32,
        source: Some(source),
        destination: Some(destination),
        direction: flow.direction.as_str().into(),
        kind: flow.kind.as_str().into(),
        drop_reason: flow.drop_reason.map(|r| r.as_str().into()).unwrap_or_default(),
        rule: flow.rule.as_deref().unwrap_or_default().into(),
        method: flow.method.as_str().into(),
        path: flow.path.to_string(),
        status: flow.status.into(),
        latency_microseconds: u64::try_from(flow.latency.as_micros()).unwrap_or(u64::MAX),
        via: flow.via.map(|v| v.as_str().into()).unwrap_or_default(),
        caller_proof: flow.caller_proof.map(|p| p.as_str().into()).unwrap_or_default(),
        trace_id: if flow.trace_id == [0; 16] {
            String::new()
        } else {
            hex::encode(flow.trace_id)
        },
        bytes_sent: flow.traffic.map_or(0, |t| t.sent),
        bytes_received: flow.traffic.map_or(0, |t| t.received),
        protocol: flow.packet.map(|p| protocol(p.protocol)).unwrap_or_default(),
        tcp_flags: flow.packet.map_or(0, |p| p.tcp_flags.into()),
        is_reply: flow.packet.is_some_and(|p| p.reply),
        route: flow.route.as_deref().unwrap_or_default().into(),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMPv4".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

/// The same flow has the same id whoever reads it: version 8 (RFC 9562), of the run and the number.
fn uuid(run: u64, sequence: u64) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&run.to_be_bytes());
    bytes[8..].copy_from_slice(&sequence.to_be_bytes());
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

fn peer(party: &Party, port: u16) -> pb::FlowPeer {
    pb::FlowPeer {
        namespace: party.namespace.to_string(),
        workload: party.workload.to_string(),
        app_id: party.app_id.to_string(),
        identity: party.identity.0,
        spiffe_id: party.spiffe_id.to_string(),
        address: party.address.map(|a| a.to_string()).unwrap_or_default(),
        port: port.into(),
        node: party.node.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{DropReason, Flow, FlowLog, Traffic, Verdict, filter::tests::flow_of};

    #[test]
    fn every_field_arrives() {
        let log = FlowLog::new("n1");
        log.record(Flow {
            verdict: Verdict::Dropped,
            drop_reason: Some(DropReason::PolicyDenied),
            rule: Some("CiliumNetworkPolicy default/cart ingress[0]".into()),
            route: Some("HTTPRoute/default/cart".into()),
            trace_id: [0xab; 16],
            status: 403,
            packet: Some(crate::Packet {
                protocol: 6,
                source_port: 40_000,
                tcp_flags: 2,
                reply: false,
                source: [10, 0, 0, 7].into(),
                destination: [10, 0, 0, 8].into(),
            }),
            traffic: Some(Traffic { sent: 5, received: 6 }),
            ..flow_of("shop", "cart")
        });
        log.record(flow_of("shop", "cart"));
        let past = log.past(0, None, &crate::Filter::default());
        let wire = log.to_proto(&past[0]);
        assert_eq!(wire.verdict(), pb::Verdict::Dropped);
        assert_eq!(wire.drop_reason, "POLICY_DENIED");
        assert_eq!(wire.rule, "CiliumNetworkPolicy default/cart ingress[0]");
        assert_eq!(wire.route, "HTTPRoute/default/cart");
        assert_eq!(wire.trace_id, "ab".repeat(16));
        let source = wire.source.as_ref().unwrap();
        assert_eq!((source.address.as_str(), source.port), ("10.0.0.7", 40_000));
        assert_eq!((wire.protocol.as_str(), wire.tcp_flags), ("TCP", 2));
        assert_eq!((wire.bytes_sent, wire.bytes_received), (5, 6));
        assert_eq!(wire.destination.as_ref().unwrap().port, 50002);
        assert_eq!(
            (wire.method.as_str(), wire.path.as_str(), wire.status),
            ("POST", "/checkout", 403)
        );
        assert_eq!(
            (wire.via.as_str(), wire.caller_proof.as_str()),
            ("same-node", "pod-listener")
        );
        assert_eq!(wire.latency_microseconds, 1234);
        assert_ne!(wire.uuid, log.to_proto(&past[1]).uuid);
        assert_eq!(wire.uuid, log.to_proto(&past[0]).uuid);
    }
}
