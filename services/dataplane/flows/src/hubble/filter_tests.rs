use super::bounds::{MAX_EXPRESSIONS, MAX_VALUE_BYTES, MAX_VALUES};
use super::*;
use crate::{FlowLog, Kind, Packet, hubble::convert::tests::observer, sample::flow_of};
use proptest::prelude::*;

/// A request (shop → cart, answered 404), its answer, and a packet with a reply.
fn events() -> Vec<Flow> {
    let log = FlowLog::new("n1");
    log.record(crate::Flow {
        status: 404,
        source_port: 41_000,
        trace_id: [0xab; 16],
        authority: "cart.default:80".into(),
        ..flow_of("shop", "cart")
    });
    log.record(crate::Flow {
        kind: Kind::Packet,
        direction: crate::Direction::Ingress,
        verdict: crate::Verdict::Dropped,
        drop_reason: Some(crate::DropReason::Kernel(133)),
        packet: Some(Packet {
            protocol: 17,
            source_port: 53,
            tcp_flags: 0,
            reply: true,
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
        }),
        ..flow_of("dns", "shop")
    });
    log.record(crate::Flow {
        kind: Kind::Packet,
        packet: Some(Packet {
            protocol: 6,
            source_port: 40_000,
            tcp_flags: 0x12,
            reply: false,
            source: [10, 0, 0, 7].into(),
            destination: [10, 0, 0, 8].into(),
        }),
        ..flow_of("shop", "cart")
    });
    let observer = observer();
    (0..3)
        .flat_map(|n| match log.read(n) {
            crate::Seen::Flow(recorded) => observer.events(&recorded),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// What of the events above a filter lets through, by their summaries.
#[track_caller]
fn passed(filter: FlowFilter) -> Vec<&'static str> {
    let filters = Filters::new(&[filter], &[]).unwrap();
    events()
        .iter()
        .filter(|e| filters.pass(e))
        .map(|e| match (e.event_type.as_ref().unwrap().r#type, e.is_reply) {
            (129, Some(false)) => "request",
            (129, _) => "answer",
            (5, _) => "verdict",
            (1, _) => "drop",
            _ => "packet",
        })
        .collect()
}

macro_rules! filter {
    ($($field:ident: $value:expr),* $(,)?) => {
        FlowFilter { $($field: $value,)* ..Default::default() }
    };
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

#[test]
fn each_field_means_what_hubble_says_it_means() {
    const ALL: &[&str] = &["request", "answer", "verdict", "drop", "packet"];
    let kind = |name: &str, kind: &str| pb::Workload {
        name: name.into(),
        kind: kind.into(),
    };
    let event = |r#type, match_sub_type, sub_type| pb::EventTypeFilter {
        r#type,
        match_sub_type,
        sub_type,
    };
    let flags = |syn, fin| pb::TcpFlags {
        syn,
        fin,
        ..Default::default()
    };
    let header = pb::HttpHeader {
        key: "a".into(),
        value: "b".into(),
    };
    let uuid = events()[0].uuid.clone();
    let trace = "ab".repeat(16);
    let cases: Vec<(FlowFilter, &[&str])> = vec![
        (filter!(), ALL),
        (filter!(uuid: vec![uuid]), &["request"]),
        (
            filter!(source_pod: texts(&["default/shop"])),
            &["request", "packet"],
        ),
        (filter!(source_pod: texts(&["shop-1"])), &["request", "packet"]),
        (filter!(source_pod: texts(&["/sho"])), &["request", "packet"]),
        (filter!(source_pod: texts(&["other/shop"])), &[]),
        (filter!(source_pod: texts(&["default/"])), ALL),
        (filter!(source_pod: texts(&["/"])), ALL),
        (
            filter!(destination_pod: texts(&["nobody", "shop"])),
            &["answer", "verdict", "drop"],
        ),
        (
            filter!(source_pod: texts(&["shop"]), destination_pod: texts(&["dns"])),
            &[],
        ),
        (
            filter!(source_label: texts(&["app=shop"])),
            &["request", "verdict", "drop", "packet"],
        ),
        (
            filter!(source_label: texts(&["app in (x)", "k8s:app"]), reply: vec![false]),
            &["request", "packet"],
        ),
        (filter!(source_identity: vec![301]), &["answer"]),
        (filter!(destination_identity: vec![1, 300]), &["answer"]),
        (
            filter!(source_workload: vec![kind("shop", "")]),
            &["request", "packet"],
        ),
        (
            filter!(source_workload: vec![kind("shop", "App")]),
            &["request", "packet"],
        ),
        (filter!(source_workload: vec![kind("shop", "Deployment")]), &[]),
        (filter!(destination_workload: vec![kind("", "")]), ALL),
        (filter!(source_cluster_name: texts(&["default"])), ALL),
        (filter!(destination_cluster_name: texts(&["other"])), &[]),
        (filter!(source_service: texts(&["cart"])), &[]),
        (filter!(destination_fqdn: texts(&["*.example.com"])), &[]),
        (filter!(source_ip: texts(&["10.0.0.7"])), &["packet"]),
        (
            filter!(source_ip: texts(&["10.0.0.0/8"])),
            &["request", "answer", "packet"],
        ),
        (
            filter!(destination_ip: texts(&["fd00::/64", "192.0.2.1"])),
            &["verdict", "drop"],
        ),
        (filter!(source_ip_xlated: texts(&["10.0.0.7"])), &[]),
        (
            filter!(ip_version: vec![pb::IpVersion::IPv6.into()]),
            &["verdict", "drop"],
        ),
        (filter!(encrypted: vec![true]), &[]),
        (filter!(encrypted: vec![false]), ALL),
        (
            filter!(source_port: texts(&["53", "41000"])),
            &["request", "verdict", "drop"],
        ),
        (filter!(destination_port: texts(&["41000"])), &["answer"]),
        (filter!(protocol: texts(&["UDP"])), &["verdict", "drop"]),
        (filter!(protocol: texts(&["http"])), &["request", "answer"]),
        (
            filter!(protocol: texts(&["tcp"])),
            &["request", "answer", "packet"],
        ),
        (filter!(protocol: texts(&["icmp", "kafka", "dns", "sctp"])), &[]),
        (filter!(tcp_flags: vec![flags(true, false)]), &["packet"]),
        (filter!(tcp_flags: vec![flags(true, true)]), &[]),
        (filter!(reply: vec![true]), &["answer", "verdict", "drop"]),
        (
            filter!(verdict: vec![pb::Verdict::Dropped.into()]),
            &["verdict", "drop"],
        ),
        (
            filter!(drop_reason_desc: vec![pb::DropReason::PolicyDenied.into()]),
            &["verdict", "drop"],
        ),
        (
            filter!(drop_reason_desc: vec![pb::DropReason::InvalidSourceIp.into()]),
            &[],
        ),
        (
            filter!(traffic_direction: vec![pb::TrafficDirection::Egress.into()]),
            &["request", "answer", "packet"],
        ),
        (filter!(event_type: vec![event(1, false, 0)]), &["drop"]),
        (filter!(event_type: vec![event(1, true, 133)]), &["drop"]),
        (filter!(event_type: vec![event(1, true, 132)]), &[]),
        (filter!(event_type: vec![event(0, true, 5)]), &["packet"]),
        (
            filter!(event_type: vec![event(129, false, 0), event(5, false, 0)]),
            &["request", "answer", "verdict"],
        ),
        (filter!(http_status_code: texts(&["404"])), &["answer"]),
        (filter!(http_status_code: texts(&["4+"])), &["answer"]),
        (filter!(http_status_code: texts(&["41+", "5+"])), &[]),
        (filter!(http_method: texts(&["post"])), &["request", "answer"]),
        (
            filter!(http_path: texts(&["^/check.*t$"])),
            &["request", "answer"],
        ),
        (filter!(http_path: texts(&["cart"])), &[]),
        (filter!(http_url: texts(&["cart.*out"])), &["request", "answer"]),
        (filter!(http_header: vec![header]), &[]),
        (filter!(dns_query: texts(&["."])), &[]),
        (filter!(trace_id: vec![trace]), &["request", "answer"]),
        (filter!(node_name: texts(&["n*"])), ALL),
        (filter!(node_name: texts(&["default/"])), ALL),
        (filter!(node_name: texts(&["other/n1", "n2"])), &[]),
        (filter!(node_labels: texts(&["!zone"])), ALL),
        (filter!(node_labels: texts(&["zone"])), &[]),
        (filter!(ip_trace_id: vec![1]), &[]),
        (filter!(interface: vec![pb::NetworkInterface::default()]), &[]),
    ];
    for (filter, expected) in cases {
        assert_eq!(passed(filter.clone()), expected, "{filter:?}");
    }
}

#[test]
fn what_means_nothing_is_named_with_its_field() {
    let drops = vec![pb::EventTypeFilter {
        r#type: 1,
        ..Default::default()
    }];
    let cel = pb::flow_filter::Experimental {
        cel_expression: texts(&["true"]),
    };
    for (filter, says) in [
        (filter!(source_pod: texts(&[""])), "source_pod"),
        (filter!(source_label: texts(&["a b"])), "comma"),
        (filter!(source_ip: texts(&["10.0.0"])), "no IP address"),
        (filter!(destination_ip: texts(&["10.0.0.1/33"])), "no CIDR"),
        (filter!(source_port: texts(&["65536"])), "no port"),
        (filter!(protocol: texts(&["smtp"])), "smtp"),
        (filter!(http_status_code: texts(&["600"])), "status code"),
        (filter!(http_status_code: texts(&["404+"])), "status code"),
        (filter!(http_path: texts(&["("])), "http_path"),
        (filter!(dns_query: texts(&["(a{1000}){1000}"])), "dns_query"),
        (filter!(node_name: texts(&["a/b/c"])), "slashes"),
        (filter!(node_name: texts(&["a b"])), "node_name"),
        (filter!(source_fqdn: texts(&["a..", "b/"])), "source_fqdn"),
        (
            filter!(http_method: texts(&["GET"]), event_type: drops),
            "'l7' events",
        ),
        (filter!(experimental: Some(cel)), "CEL"),
        (filter!(uuid: vec![String::new(); MAX_VALUES + 1]), "values"),
        (
            filter!(http_path: vec!["a".into(); MAX_EXPRESSIONS + 1]),
            "expressions",
        ),
        (
            filter!(http_method: vec!["a".repeat(MAX_VALUE_BYTES + 1)]),
            "longer",
        ),
    ] {
        let error = Filters::new(&[], std::slice::from_ref(&filter))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    assert!(Filters::new(&vec![filter!(); MAX_FILTERS + 1], &[]).is_err());
    assert!(Filters::new(&vec![filter!(); MAX_FILTERS], &[]).is_ok());
}

#[test]
fn one_of_the_allowed_and_none_of_the_denied() {
    let shop = filter!(source_pod: texts(&["shop"]));
    let replies = filter!(reply: vec![true]);
    let http = filter!(protocol: texts(&["http"]));
    let count = |allow: &[FlowFilter], deny: &[FlowFilter]| {
        let filters = Filters::new(allow, deny).unwrap();
        events().iter().filter(|e| filters.pass(e)).count()
    };
    assert_eq!(count(&[], &[]), 5);
    assert_eq!(count(&[shop.clone(), replies.clone()], &[]), 5);
    assert_eq!(count(std::slice::from_ref(&shop), &[]), 2);
    assert_eq!(count(&[shop], std::slice::from_ref(&http)), 1);
    assert_eq!(count(&[], &[http, replies]), 1);
    assert_eq!(count(&[], &[filter!()]), 0, "an empty filter matches everything");
}

/// The same read sentence by sentence, for the fields that are drawn below.
fn naive(filter: &FlowFilter, flow: &Flow) -> bool {
    let source = flow.source.clone().unwrap();
    let pod = |wanted: &String| match wanted.find('/') {
        Some(0) => source.pod_name.starts_with(&wanted[1..]),
        Some(at) => source.namespace == wanted[..at] && source.pod_name.starts_with(&wanted[at + 1..]),
        None => source.namespace == "default" && source.pod_name.starts_with(wanted),
    };
    let mut all = true;
    if !filter.source_pod.is_empty() {
        all &= filter.source_pod.iter().any(pod);
    }
    if !filter.source_identity.is_empty() {
        all &= filter.source_identity.contains(&source.identity);
    }
    if !filter.verdict.is_empty() {
        all &= filter.verdict.contains(&flow.verdict);
    }
    if !filter.reply.is_empty() {
        all &= filter.reply.iter().any(|r| flow.is_reply == Some(*r));
    }
    if !filter.traffic_direction.is_empty() {
        all &= filter.traffic_direction.contains(&flow.traffic_direction);
    }
    if !filter.source_port.is_empty() {
        let port = match flow.l4.as_ref().unwrap().protocol.as_ref().unwrap() {
            pb::layer4::Protocol::Tcp(l4) => l4.source_port,
            pb::layer4::Protocol::Udp(l4) => l4.source_port,
            other => panic!("{other:?}"),
        };
        all &= filter.source_port.iter().any(|p| *p == port.to_string());
    }
    if !filter.http_method.is_empty() {
        let record = flow.l7.as_ref().map(|l| l.record.clone().unwrap());
        all &= match record {
            Some(pb::layer7::Record::Http(http)) => {
                filter.http_method.iter().any(|m| m.to_uppercase() == http.method)
            }
            _ => false,
        };
    }
    all
}

prop_compose! {
    fn filters()(
        source_pod in proptest::collection::vec(prop_oneof!["(default|x)?/?(shop|cart|dns|)(-1)?", "sh?"], 0..3)
            .prop_map(|pods| pods.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>()),
        source_identity in proptest::collection::vec(299u32..302, 0..3),
        verdict in proptest::collection::vec(0i32..4, 0..3),
        reply in proptest::collection::vec(any::<bool>(), 0..2),
        traffic_direction in proptest::collection::vec(0i32..3, 0..2),
        source_port in proptest::collection::vec(prop_oneof![Just("53"), Just("41000"), Just("40000")], 0..2),
        http_method in proptest::collection::vec(prop_oneof![Just("post"), Just("GET")], 0..2),
    ) -> FlowFilter {
        filter!(
            source_pod: source_pod,
            source_identity: source_identity,
            verdict: verdict,
            reply: reply,
            traffic_direction: traffic_direction,
            source_port: source_port.into_iter().map(str::to_owned).collect(),
            http_method: http_method.into_iter().map(str::to_owned).collect(),
        )
    }
}

proptest! {
    #[test]
    fn it_says_what_a_naive_reading_says(
        allow in proptest::collection::vec(filters(), 0..4),
        deny in proptest::collection::vec(filters(), 0..3),
    ) {
        let compiled = Filters::new(&allow, &deny).unwrap();
        for flow in events() {
            let one = |list: &[FlowFilter]| list.iter().any(|f| naive(f, &flow));
            let expected = (allow.is_empty() || one(&allow)) && !one(&deny);
            prop_assert_eq!(compiled.pass(&flow), expected, "{:?} {:?} {:?}", &allow, &deny, &flow);
        }
    }

    #[test]
    fn nothing_from_outside_breaks_it(
        text in prop_oneof![any::<String>(), "[a-z0-9:/.*+(){}|\\\\\\[\\]^$-]{0,24}"],
        field in 0usize..18,
        number in any::<i32>(),
    ) {
        let values = vec![text.clone()];
        let mut filter = filter!(
            verdict: vec![number],
            event_type: vec![pb::EventTypeFilter { r#type: number, match_sub_type: true, sub_type: number }],
        );
        let fields = [
            &mut filter.source_ip, &mut filter.source_pod, &mut filter.source_fqdn, &mut filter.source_label,
            &mut filter.source_service, &mut filter.source_port, &mut filter.destination_cluster_name,
            &mut filter.http_status_code, &mut filter.http_method, &mut filter.http_path, &mut filter.http_url,
            &mut filter.protocol, &mut filter.dns_query, &mut filter.node_name, &mut filter.node_labels,
            &mut filter.trace_id, &mut filter.uuid, &mut filter.destination_ip,
        ];
        *fields.into_iter().nth(field).unwrap() = values;
        if let Ok(filters) = Filters::new(&[filter], &[]) {
            for flow in events() {
                filters.pass(&flow);
            }
        }
    }
}
