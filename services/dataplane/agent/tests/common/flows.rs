//! What a client of Hubble's API sees, put together again: one entry for each decision, a request with its
//! answer.

use std::collections::BTreeMap;
use tonic::transport::Channel;
use weft_proto::hubble::{
    flow::{self as pb, TrafficDirection, layer4, layer7},
    observer::{GetFlowsRequest, get_flows_response::ResponseTypes, observer_client::ObserverClient},
};

pub use weft_proto::hubble::flow::Verdict;

/// One of the two who are at the ends.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub workload: String,
    pub app_id: String,
    pub identity: u32,
    pub spiffe_id: String,
    pub address: String,
    pub port: u32,
    pub node: String,
}

/// A decision.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    pub verdict: i32,
    pub source: Option<Peer>,
    pub destination: Option<Peer>,
    pub direction: String,
    pub kind: String,
    pub drop_reason: String,
    pub rule: String,
    /// Names of the policies that refuse it: the caller's, and the callee's.
    pub denied_by: [Vec<String>; 2],
    pub method: String,
    pub path: String,
    /// Of the answer; 0 where there is none.
    pub status: u32,
    pub via: String,
    pub caller_proof: String,
    pub route: String,
    pub protocol: &'static str,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

impl Flow {
    pub fn verdict(&self) -> Verdict {
        Verdict::try_from(self.verdict).unwrap()
    }
}

/// All that a node's agent holds.
pub async fn all(channel: Channel) -> Vec<Flow> {
    let mut client = ObserverClient::new(channel);
    let asked = client.get_flows(GetFlowsRequest::default());
    let mut stream = asked.await.unwrap().into_inner();
    let mut order = Vec::new();
    let mut records: BTreeMap<String, Flow> = BTreeMap::new();
    while let Some(response) = stream.message().await.unwrap() {
        let Some(ResponseTypes::Flow(event)) = response.response_types else {
            continue;
        };
        let key = record_of(&event.uuid);
        let known = records.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Flow::default()
        });
        take(known, event);
    }
    let flows = order.into_iter().map(|key| records.remove(&key).unwrap());
    flows.collect()
}

/// The events of one record differ in the two last bits of their ids.
fn record_of(uuid: &str) -> String {
    let (most, last) = uuid.split_at(uuid.len() - 1);
    format!("{most}{:x}", u8::from_str_radix(last, 16).unwrap() >> 2)
}

fn take(known: &mut Flow, event: pb::Flow) {
    let http = event.l7.as_ref().and_then(|l7| match &l7.record {
        Some(layer7::Record::Http(http)) => Some(http),
        _ => None,
    });
    if let Some(http) = http {
        known.status = known.status.max(http.code);
        known.method.clone_from(&http.method);
        let path = http
            .url
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        known.path = path.unwrap_or_default().to_owned();
    }
    // How it ended; who is who, as the first says it: an answer goes the other way.
    known.verdict = event.verdict;
    if known.source.is_some() {
        return;
    }
    let (weft, ip) = (event.weft.clone().unwrap(), event.ip.clone().unwrap());
    let (protocol, ports) = ports(&event);
    let peer = |endpoint: Option<pb::Endpoint>, party: Option<pb::Party>, address, port| {
        let (endpoint, party) = (endpoint.unwrap(), party.unwrap());
        Some(Peer {
            workload: endpoint.pod_name,
            app_id: party.app_id,
            identity: endpoint.identity,
            spiffe_id: party.spiffe_id,
            address,
            port,
            node: party.node,
        })
    };
    let names = |policies: &[pb::Policy]| policies.iter().map(|p| p.name.clone()).collect();
    known.denied_by = [names(&event.egress_denied_by), names(&event.ingress_denied_by)];
    known.direction = match event.traffic_direction() {
        TrafficDirection::Ingress => "ingress".into(),
        _ => "egress".into(),
    };
    known.source = peer(event.source, weft.source, ip.source, ports[0]);
    known.destination = peer(event.destination, weft.destination, ip.destination, ports[1]);
    known.kind = weft.kind;
    known.drop_reason = weft.drop_reason;
    known.rule = weft.rule;
    known.via = weft.via;
    known.caller_proof = weft.caller_proof;
    known.route = weft.route;
    known.protocol = protocol;
    known.bytes_sent = weft.bytes_sent;
    known.bytes_received = weft.bytes_received;
}

fn ports(event: &pb::Flow) -> (&'static str, [u32; 2]) {
    use layer4::Protocol;
    match event.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => ("TCP", [tcp.source_port, tcp.destination_port]),
        Some(Protocol::Udp(udp)) => ("UDP", [udp.source_port, udp.destination_port]),
        Some(Protocol::Sctp(sctp)) => ("SCTP", [sctp.source_port, sctp.destination_port]),
        Some(Protocol::IcmPv4(_)) => ("ICMPv4", [0, 0]),
        Some(Protocol::IcmPv6(_)) => ("ICMPv6", [0, 0]),
        None => ("", [0, 0]),
    }
}
