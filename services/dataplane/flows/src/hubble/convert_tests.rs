use super::*;
use crate::{FlowLog, HttpVersion, Packet, ServiceName, Traffic, sample::flow_of};
use std::time::Duration;

struct Known;

impl Directory for Known {
    fn labels(&self, identity: NumericIdentity) -> Vec<String> {
        match identity.0 {
            300 => vec![
                "k8s:app=shop".into(),
                "k8s:io.kubernetes.pod.namespace=default".into(),
            ],
            _ => Vec::new(),
        }
    }

    fn endpoint(&self, party: &Party) -> u32 {
        u32::from(&*party.workload == "shop-1") * 7
    }
}

pub(crate) fn observer() -> Observer {
    Observer::new("n1".into(), 5, Arc::new(Known))
}

fn events(flow: Flow) -> Vec<pb::Flow> {
    let log = FlowLog::new("n1");
    log.record(flow);
    let crate::Seen::Flow(recorded) = log.read(0) else {
        panic!("it was recorded")
    };
    observer().events(&recorded)
}

fn packet_of(direction: Direction, verdict: Verdict, reason: Option<DropReason>, rule: Option<&str>) -> Flow {
    let base = flow_of("shop", "cart");
    Flow {
        direction,
        verdict,
        kind: Kind::Packet,
        drop_reason: reason,
        rule: rule.map(Into::into),
        packet: Some(Packet {
            protocol: 6,
            source_port: 40_000,
            tcp_flags: 0x02,
            reply: false,
            source: [10, 0, 0, 7].into(),
            destination: [10, 0, 0, 8].into(),
        }),
        ..base
    }
}

#[test]
fn a_request_is_two_events_and_the_answer_goes_the_other_way() {
    let flow = Flow {
        source_port: 41_000,
        latency: Duration::from_micros(3_400),
        authority: "cart.default:80".into(),
        version: HttpVersion::Http2,
        trace_id: [0xab; 16],
        service: Some(Arc::new(ServiceName {
            namespace: "default".into(),
            name: "cart".into(),
        })),
        forged: Box::new(["dapr-caller-app-id"]),
        via: Some(Via::Tunnel),
        ..flow_of("shop", "cart")
    };
    let events = events(flow);
    let [asked, answer] = &events[..] else {
        panic!("{events:#?}")
    };
    assert_eq!(asked.summary, "HTTP/2 POST http://cart.default:80/checkout");
    assert_eq!(
        answer.summary,
        "HTTP/2 200 3ms (POST http://cart.default:80/checkout)"
    );
    for event in &events {
        assert_eq!(
            (event.r#type(), event.verdict()),
            (pb::FlowType::L7, pb::Verdict::Forwarded)
        );
        assert_eq!(event.event_type.unwrap().r#type, 129);
        assert_eq!(
            event
                .trace_context
                .as_ref()
                .unwrap()
                .parent
                .as_ref()
                .unwrap()
                .trace_id,
            "ab".repeat(16)
        );
        assert_eq!(event.weft.as_ref().unwrap().forged, ["dapr-caller-app-id"]);
        assert!(event.ip.as_ref().unwrap().encrypted, "it went by a tunnel");
    }
    assert_eq!((asked.is_reply, answer.is_reply), (Some(false), Some(true)));
    assert_ne!(asked.uuid, answer.uuid);
    let (seven, Some(http)) = (answer.l7.as_ref().unwrap(), http(answer)) else {
        panic!("{answer:#?}")
    };
    assert_eq!(
        (seven.r#type(), seven.latency_ns, http.code),
        (pb::L7FlowType::Response, 3_400_000, 200)
    );
    assert_eq!(http.protocol, "HTTP/2");
    let (asked_at, answered_at) = (asked.time.unwrap(), answer.time.unwrap());
    assert_eq!(answered_at.nanos - asked_at.nanos, 3_400_000);

    let source = asked.source.as_ref().unwrap();
    assert_eq!(
        (source.id, source.identity, &*source.pod_name),
        (7, 300, "shop-1")
    );
    assert_eq!(source.labels[0], "k8s:app=shop");
    assert_eq!(source.workloads[0].name, "shop");
    assert_eq!(answer.destination.as_ref(), Some(source));
    assert_eq!(asked.destination_service, answer.source_service);
    assert_eq!(asked.destination_service.as_ref().unwrap().name, "cart");
    let ports = |event: &pb::Flow| match event.l4.as_ref().unwrap().protocol.as_ref().unwrap() {
        pb::layer4::Protocol::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (ports(asked), ports(answer)),
        ((41_000, 50_002), (50_002, 41_000))
    );
}

#[test]
fn a_question_to_a_resolver_is_a_flow_of_dns() {
    let told = crate::Dns {
        protocol: 17,
        query: "www.example.test".into(),
        kind: "A".into(),
        answered: true,
        code: 0,
        addresses: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
        ttl: 30,
        aliases: vec!["edge.test".into()],
        kinds: vec!["A".into(), "CNAME".into()],
    };
    let flow = |told: crate::Dns, verdict| Flow {
        kind: Kind::Dns,
        verdict,
        drop_reason: (verdict == Verdict::Dropped).then_some(DropReason::PolicyDenied),
        destination_port: 53,
        source_port: 41_000,
        latency: Duration::from_millis(3),
        dns: Some(Box::new(told)),
        ..flow_of("shop", "cart")
    };
    let all = events(flow(told.clone(), Verdict::Forwarded));
    let [asked, answer] = &all[..] else {
        panic!("{all:#?}")
    };
    assert_eq!(asked.summary, "DNS Query www.example.test. A");
    assert_eq!(
        answer.summary,
        "DNS Answer \"192.0.2.1,192.0.2.2\" TTL: 30 (CNAMEs: \"edge.test.\") (Proxy www.example.test. A)"
    );
    let Some(pb::layer7::Record::Dns(dns)) = answer.l7.as_ref().and_then(|seven| seven.record.clone()) else {
        panic!("{answer:#?}")
    };
    assert_eq!((&*dns.query, dns.ttl, dns.rcode), ("www.example.test.", 30, 0));
    assert_eq!(
        (dns.ips.len(), &dns.cnames[..]),
        (2, &["edge.test.".to_owned()][..])
    );
    assert_eq!(
        (dns.qtypes, dns.rrtypes),
        (vec!["A".to_owned()], vec!["A".to_owned(), "CNAME".to_owned()])
    );
    assert_eq!(dns.observation_source, "proxy");
    assert_eq!((asked.is_reply, answer.is_reply), (Some(false), Some(true)));
    let ports = |event: &pb::Flow| match event.l4.as_ref().unwrap().protocol.as_ref().unwrap() {
        pb::layer4::Protocol::Udp(udp) => (udp.source_port, udp.destination_port),
        other => panic!("{other:?}"),
    };
    assert_eq!((ports(asked), ports(answer)), ((41_000, 53), (53, 41_000)));

    let none = crate::Dns {
        code: 3,
        addresses: Vec::new(),
        aliases: Vec::new(),
        ..told.clone()
    };
    let all = events(flow(none, Verdict::Forwarded));
    assert_eq!(
        all[1].summary,
        "DNS Answer RCode: Non-Existent Domain (Proxy www.example.test. A)"
    );
    let refused = crate::Dns {
        answered: false,
        ..told
    };
    let all = events(flow(refused, Verdict::Dropped));
    let [asked] = &all[..] else { panic!("{all:#?}") };
    assert_eq!(
        (asked.verdict(), asked.drop_reason_desc()),
        (pb::Verdict::Dropped, pb::DropReason::PolicyDenied)
    );
}

fn http(event: &pb::Flow) -> Option<&pb::Http> {
    match event.l7.as_ref()?.record.as_ref()? {
        pb::layer7::Record::Http(http) => Some(http),
        pb::layer7::Record::Dns(_) => None,
    }
}

#[test]
fn a_refused_request_has_no_answer_and_names_its_policy() {
    let flow = Flow {
        verdict: Verdict::Dropped,
        direction: Direction::Ingress,
        drop_reason: Some(DropReason::PolicyDenied),
        rule: Some("no rule of CiliumNetworkPolicy/default/cart: ingress, CiliumClusterwideNetworkPolicy//all: ingress".into()),
        status: 403,
        ..flow_of("shop", "cart")
    };
    let events = events(flow.clone());
    let [refused] = &events[..] else {
        panic!("{events:#?}")
    };
    assert_eq!(refused.verdict(), pb::Verdict::Dropped);
    assert_eq!(
        (refused.drop_reason, refused.drop_reason_desc()),
        (133, pb::DropReason::PolicyDenied)
    );
    let names: Vec<_> = refused
        .ingress_denied_by
        .iter()
        .map(|p| (&*p.kind, &*p.namespace, &*p.name))
        .collect();
    assert_eq!(
        names,
        [
            ("CiliumNetworkPolicy", "default", "cart"),
            ("CiliumClusterwideNetworkPolicy", "", "all")
        ]
    );
    assert!(refused.ingress_allowed_by.is_empty() && refused.egress_denied_by.is_empty());

    // Its twin, let in by a rule.
    let flow = Flow {
        verdict: Verdict::Forwarded,
        drop_reason: None,
        rule: Some("CiliumNetworkPolicy/default/cart: ingress[0].toPorts[0]".into()),
        status: 200,
        ..flow
    };
    for event in self::events(flow) {
        assert_eq!(event.ingress_allowed_by[0].name, "cart");
        assert!(event.ingress_denied_by.is_empty());
        assert_eq!(event.drop_reason, 0);
    }
}

#[test]
fn what_failed_on_the_way_was_let_through() {
    let flow = Flow {
        verdict: Verdict::Error,
        drop_reason: Some(DropReason::Unreachable),
        status: 500,
        ..flow_of("shop", "cart")
    };
    let verdicts: Vec<_> = events(flow).iter().map(pb::Flow::verdict).collect();
    assert_eq!(verdicts, [pb::Verdict::Forwarded, pb::Verdict::Error]);
}

#[test]
fn a_packet_is_what_policy_said_and_what_became_of_it() {
    use Direction::{Egress, Ingress};
    let rule = Some("CiliumNetworkPolicy/default/cart: ingress[0].toPorts[0]");
    let none = Some("no rule of CiliumNetworkPolicy/default/cart: ingress");
    let denied = Some(DropReason::Kernel(133));
    let source_ip = Some(DropReason::Kernel(132));
    for (direction, verdict, reason, rule, expected) in [
        (Ingress, Verdict::Forwarded, None, rule, vec![(5, 0), (4, 0)]),
        (Ingress, Verdict::Forwarded, None, None, vec![(4, 0)]),
        (Egress, Verdict::Forwarded, None, None, vec![(4, 5)]),
        (Ingress, Verdict::Dropped, denied, none, vec![(5, 0), (1, 133)]),
        (Ingress, Verdict::Dropped, source_ip, None, vec![(1, 132)]),
        (Ingress, Verdict::Audit, denied, none, vec![(5, 0), (4, 0)]),
    ] {
        let events = events(packet_of(direction, verdict, reason, rule));
        let types: Vec<_> = events
            .iter()
            .map(|e| e.event_type.as_ref().map(|t| (t.r#type, t.sub_type)).unwrap())
            .collect();
        assert_eq!(types, expected, "{direction:?} {verdict:?} {reason:?}");
        for event in &events {
            assert_eq!(event.summary, "TCP Flags: SYN");
            assert_eq!(event.ip.as_ref().unwrap().source, "10.0.0.7");
        }
        let last = events.last().unwrap().verdict();
        let passed = verdict != Verdict::Dropped;
        assert_eq!(last == pb::Verdict::Forwarded, passed);
        if verdict == Verdict::Audit {
            assert_eq!(events[0].verdict(), pb::Verdict::Audit);
            assert_eq!(events[0].ingress_denied_by[0].name, "cart");
        }
    }
    let match_types = |rule| events(packet_of(Ingress, Verdict::Forwarded, None, rule))[0].policy_match_type;
    assert_eq!(match_types(rule), 2);
    assert_eq!(
        match_types(Some("CiliumNetworkPolicy/default/cart: ingress[0]")),
        1
    );
    let auth = packet_of(Ingress, Verdict::Dropped, Some(DropReason::AuthRequired), rule);
    assert!(events(auth).iter().all(|e| e.auth_type() == pb::AuthType::Spire));
}

#[test]
fn connections_read_as_their_first_and_last_packets() {
    let opened = Flow {
        kind: Kind::Connection,
        ..flow_of("shop", "cart")
    };
    let closed = Flow {
        kind: Kind::Closed,
        direction: Direction::Ingress,
        traffic: Some(Traffic { sent: 5, received: 6 }),
        ..opened.clone()
    };
    let lost = Flow {
        verdict: Verdict::Error,
        drop_reason: Some(DropReason::NoEndpoint),
        ..opened.clone()
    };
    let one = |flow: Flow| events(flow).pop().unwrap();
    let (opened, closed, lost) = (one(opened), one(closed), one(lost));
    assert_eq!(opened.summary, "TCP Flags: SYN");
    assert_eq!(
        opened.trace_observation_point(),
        pb::TraceObservationPoint::ToProxy
    );
    assert_eq!(closed.summary, "TCP Flags: ACK, FIN");
    assert_eq!(
        closed.trace_observation_point(),
        pb::TraceObservationPoint::ToEndpoint
    );
    let weft = closed.weft.unwrap();
    assert_eq!(
        (weft.bytes_sent, weft.bytes_received, weft.duration_ns),
        (5, 6, 1_234_000)
    );
    assert_eq!(lost.event_type.unwrap().sub_type, 158);
    assert_eq!(lost.verdict(), pb::Verdict::Error);
}

#[test]
fn reserved_identities_are_named_by_their_label() {
    let world = Party {
        namespace: "".into(),
        workload: "reserved:world".into(),
        app_id: "".into(),
        identity: NumericIdentity(2),
        spiffe_id: "".into(),
        address: Some([192, 0, 2, 1].into()),
        node: "".into(),
    };
    let flow = Flow {
        source: Arc::new(world),
        ..flow_of("shop", "cart")
    };
    let event = events(flow).remove(0);
    let source = event.source.unwrap();
    assert_eq!(
        (&*source.pod_name, source.labels),
        ("", vec!["reserved:world".to_owned()])
    );
}

#[test]
fn texts_that_name_no_policy_have_none() {
    for text in [
        "",
        "the workload's policy is not known yet",
        "a/b: c",
        "K/n",
        "no rule of ",
        "K!/a/b: c",
    ] {
        assert_eq!(policies(text), [], "{text}");
    }
    assert_eq!(policies("K/n/a: b, K/n/a: c").len(), 1, "the same object once");
}
