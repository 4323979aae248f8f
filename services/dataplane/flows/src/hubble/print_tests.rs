use super::*;
use crate::{FlowLog, Kind, Packet, hubble::convert::tests::observer, sample::flow_of};
use proptest::prelude::*;

fn events(flow: crate::Flow) -> Vec<GetFlowsResponse> {
    let log = FlowLog::new("n1");
    log.record(flow);
    let crate::Seen::Flow(recorded) = log.read(0) else {
        panic!("it was recorded")
    };
    let response = |flow: Flow| GetFlowsResponse {
        time: flow.time,
        node_name: "n1".into(),
        response_types: Some(ResponseTypes::Flow(flow)),
    };
    observer().events(&recorded).into_iter().map(response).collect()
}

fn request() -> Vec<GetFlowsResponse> {
    events(crate::Flow {
        source_port: 41_000,
        authority: "cart.default:80".into(),
        ..flow_of("shop", "cart")
    })
}

fn refused() -> Vec<GetFlowsResponse> {
    events(crate::Flow {
        kind: Kind::Packet,
        verdict: crate::Verdict::Dropped,
        direction: crate::Direction::Ingress,
        drop_reason: Some(crate::DropReason::Kernel(133)),
        rule: Some("no rule of CiliumNetworkPolicy/default/cart: ingress".into()),
        packet: Some(Packet {
            protocol: 6,
            source_port: 40_000,
            tcp_flags: 2,
            reply: false,
            source: [10, 0, 0, 7].into(),
            destination: [10, 0, 0, 8].into(),
        }),
        ..flow_of("shop", "cart")
    })
}

fn print(mut printer: Printer, responses: &[GetFlowsResponse]) -> String {
    let mut text = String::new();
    for response in responses {
        match printer.write(response).unwrap() {
            Text::Out(out) => text += &out,
            Text::Err(err) => text += &format!("ERR {err}"),
            Text::None => {}
        }
    }
    text + &printer.finish()
}

#[test]
fn a_line_is_hubbles_line() {
    assert_eq!(
        print(Printer::new(Layout::Compact), &request()),
        "Nov 14 22:13:20.250: default/shop-1:41000 (ID:300) -> default/cart-1:50002 (ID:301) http-request \
         FORWARDED (HTTP/1.1 POST http://cart.default:80/checkout)\n\
         Nov 14 22:13:20.251: default/shop-1:41000 (ID:300) <- default/cart-1:50002 (ID:301) http-response \
         FORWARDED (HTTP/1.1 200 1ms (POST http://cart.default:80/checkout))\n"
    );
    let mut printer = Printer::new(Layout::Compact);
    (printer.node_name, printer.policy_names) = (true, true);
    assert_eq!(
        print(printer, &refused()),
        "Nov 14 22:13:20.250 [n1]: default/shop-1:40000 (ID:300) -> default/cart-1:7000 (ID:301) \
         policy-verdict:none INGRESS DENIED BY cart (CiliumNetworkPolicy) (TCP Flags: SYN)\n\
         Nov 14 22:13:20.250 [n1]: default/shop-1:40000 (ID:300) -> default/cart-1:7000 (ID:301) Policy \
         denied DROPPED (TCP Flags: SYN)\n"
            .replace(":7000", ":50002")
    );
}

#[test]
fn addresses_and_unknown_directions() {
    let mut printer = Printer::new(Layout::Compact);
    (printer.translate, printer.time) = (false, TimeFormat::Fraction(9));
    let mut responses = refused();
    responses.truncate(1);
    let Some(ResponseTypes::Flow(flow)) = &mut responses[0].response_types else {
        panic!("no flow")
    };
    flow.is_reply = None;
    flow.source.as_mut().unwrap().identity = 2;
    flow.auth_type = pb::AuthType::Spire.into();
    flow.ip.as_mut().unwrap().destination = "fd00::8".into();
    assert_eq!(
        print(printer, &responses),
        "2023-11-14T22:13:20.25Z: 10.0.0.7:40000 (world) <> [fd00::8]:50002 (ID:301) policy-verdict:none \
         INGRESS DENIED (TCP Flags: SYN; Auth: SPIRE)\n"
    );
}

#[test]
fn the_other_layouts() {
    assert_eq!(
        print(Printer::new(Layout::Dict), &refused()),
        "  TIMESTAMP: Nov 14 22:13:20.250\n     SOURCE: default/shop-1:40000\nDESTINATION: \
         default/cart-1:50002\n       TYPE: policy-verdict:none INGRESS\n    VERDICT: DENIED\n    SUMMARY: TCP \
         Flags: SYN\n------------\n  TIMESTAMP: Nov 14 22:13:20.250\n     SOURCE: \
         default/shop-1:40000\nDESTINATION: default/cart-1:50002\n       TYPE: Policy denied\n    VERDICT: \
         DROPPED\n    SUMMARY: TCP Flags: SYN\n"
    );
    let table = print(Printer::new(Layout::Table), &refused());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0],
        "TIMESTAMP             SOURCE                 DESTINATION            TYPE                          \
         VERDICT   SUMMARY"
    );
    assert_eq!(
        lines[2],
        "Nov 14 22:13:20.250   default/shop-1:40000   default/cart-1:50002   Policy denied                 \
         DROPPED   TCP Flags: SYN"
    );
    let json = print(Printer::new(Layout::Json), &request());
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(first["flow"]["l7"]["http"]["method"], "POST");
    assert_eq!(first["flow"]["source"]["pod_name"], "shop-1");
    assert_eq!(print(Printer::new(Layout::Table), &[]), "");
}

#[test]
fn losses_and_nodes_that_are_away_are_told() {
    let of = |kind| GetFlowsResponse {
        node_name: "n1".into(),
        response_types: Some(kind),
        ..Default::default()
    };
    let lost = of(ResponseTypes::LostEvents(LostEvent {
        source: pb::LostEventSource::HubbleRingBuffer.into(),
        num_events_lost: 7,
        ..Default::default()
    }));
    let away = of(ResponseTypes::NodeStatus(NodeStatusEvent {
        state_change: NodeState::NodeUnavailable.into(),
        node_names: vec!["n2".into(), "n3".into()],
        ..Default::default()
    }));
    let both = [lost, away];
    assert_eq!(
        print(Printer::new(Layout::Compact), &both),
        "EVENTS LOST: HUBBLE_RING_BUFFER CPU(0) 7\nERR N/A [n1]: 2 nodes are unavailable: n2, n3\n"
    );
    assert!(print(Printer::new(Layout::Table), &both).contains("EVENTS LOST"));
}

#[test]
fn colours_are_for_terminals() {
    let mut printer = Printer::new(Layout::Compact);
    printer.color = true;
    let text = print(printer, &refused());
    assert!(
        text.contains("\x1b[31mDROPPED\x1b[0m") && text.contains("\x1b[35m(ID:300)\x1b[0m"),
        "{text}"
    );
}

#[test]
fn time_formats_by_name() {
    let time = Some(prost_types::Timestamp {
        seconds: 1_700_000_000,
        nanos: 250_100_000,
    });
    for (name, expected) in [
        ("StampMilli", "Nov 14 22:13:20.250"),
        ("YearMonthDay", "2023-11-14"),
        ("YearMonthDayHour", "2023-11-14T22Z"),
        ("YearMonthDayHourMinute", "2023-11-14T22:13Z"),
        ("RFC3339", "2023-11-14T22:13:20Z"),
        ("RFC3339Milli", "2023-11-14T22:13:20.25Z"),
        ("RFC3339Micro", "2023-11-14T22:13:20.2501Z"),
        ("RFC3339Nano", "2023-11-14T22:13:20.2501Z"),
        ("RFC1123Z", "Tue, 14 Nov 2023 22:13:20 +0000"),
    ] {
        assert_eq!(TimeFormat::by_name(name).unwrap().text(time), expected, "{name}");
    }
    assert_eq!(TimeFormat::by_name("Kitchen"), None);
    assert_eq!(TimeFormat::StampMilli.text(None), "N/A");
}

proptest! {
    #[test]
    fn no_field_can_break_a_line(path in any::<String>(), pod in any::<String>(), seconds in any::<i64>(), nanos in any::<i32>(), verdict in any::<i32>()) {
        let mut responses = request();
        for response in &mut responses {
            let Some(ResponseTypes::Flow(flow)) = &mut response.response_types else { panic!("no flow") };
            flow.summary = path.clone();
            flow.source.as_mut().unwrap().pod_name = pod.clone();
            flow.time = Some(prost_types::Timestamp { seconds, nanos });
            flow.verdict = verdict;
        }
        let text = print(Printer::new(Layout::Compact), &responses);
        prop_assert_eq!(text.lines().count(), 2);
        prop_assert!(!text.replace('\n', "").contains(char::is_control));
        print(Printer::new(Layout::Table), &responses);
    }
}
