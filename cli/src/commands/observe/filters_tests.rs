use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    filters: Filters,
}

fn lists(line: &str) -> Result<(Vec<FlowFilter>, Vec<FlowFilter>), String> {
    let words = std::iter::once("observe").chain(line.split_whitespace());
    Ok(Cli::try_parse_from(words)
        .map_err(|e| e.to_string())?
        .filters
        .lists())
}

macro_rules! filter {
    ($($field:ident: [$($value:expr),*]),* $(,)?) => {
        FlowFilter { $($field: vec![$($value.into()),*],)* ..Default::default() }
    };
}

#[test]
fn flags_become_hubbles_filters() {
    for (line, expected) in [
        ("", vec![]),
        ("--from-pod shop", vec![filter!(source_pod: ["shop"])]),
        (
            "--pod shop",
            vec![filter!(source_pod: ["shop"]), filter!(destination_pod: ["shop"])],
        ),
        (
            "--pod shop --protocol http",
            vec![
                filter!(source_pod: ["shop"], protocol: ["http"]),
                filter!(destination_pod: ["shop"], protocol: ["http"]),
            ],
        ),
        (
            "-n kube",
            vec![
                filter!(source_pod: ["kube/"]),
                filter!(destination_pod: ["kube/"]),
            ],
        ),
        (
            "--from-namespace a --from-namespace b",
            vec![filter!(source_pod: ["a/", "b/"])],
        ),
        (
            "--from-namespace a --from-pod x",
            vec![filter!(source_pod: ["a/x"])],
        ),
        (
            "--from-namespace a --from-service x",
            vec![filter!(source_service: ["a/x"])],
        ),
        (
            "-A",
            vec![filter!(source_pod: ["/"]), filter!(destination_pod: ["/"])],
        ),
        (
            "--from-all-namespaces --from-pod x",
            vec![filter!(source_pod: ["/x"])],
        ),
        (
            "--from-identity world --to-identity 300",
            vec![filter!(source_identity: [2u32], destination_identity: [300u32])],
        ),
        (
            "--verdict DROPPED --verdict audit",
            vec![filter!(verdict: [Verdict::Dropped, Verdict::Audit])],
        ),
        (
            "--port 80",
            vec![filter!(source_port: ["80"]), filter!(destination_port: ["80"])],
        ),
        ("-4", vec![filter!(ip_version: [IpVersion::IPv4])]),
        (
            "--ip-version none",
            vec![filter!(ip_version: [IpVersion::IpNotUsed])],
        ),
        (
            "--traffic-direction Ingress",
            vec![filter!(traffic_direction: [TrafficDirection::Ingress])],
        ),
        (
            "--http-status 5+ --http-method GET",
            vec![filter!(http_status_code: ["5+"], http_method: ["GET"])],
        ),
        (
            "--drop-reason-desc POLICY_DENIED",
            vec![filter!(drop_reason_desc: [DropReason::PolicyDenied])],
        ),
        ("--encrypted", vec![filter!(encrypted: [true])]),
        (
            "--from-label app=a,b!=c",
            vec![filter!(source_label: ["app=a,b!=c"])],
        ),
    ] {
        assert_eq!(lists(line).unwrap(), (expected, vec![]), "{line}");
    }
    let (allow, _) =
        lists("-t trace:to-endpoint -t drop -t 129 --tcp-flags syn,ack --to-workload App/cart").unwrap();
    let types: Vec<_> = allow[0]
        .event_type
        .iter()
        .map(|t| (t.r#type, t.match_sub_type, t.sub_type))
        .collect();
    assert_eq!(types, [(4, true, 0), (1, false, 0), (129, false, 0)]);
    assert!(allow[0].tcp_flags[0].syn && allow[0].tcp_flags[0].ack && !allow[0].tcp_flags[0].fin);
    assert_eq!(allow[0].destination_workload[0].kind, "App");
}

#[test]
fn not_turns_the_next_filter_around() {
    let (allow, deny) = lists("--not --from-pod a --to-pod b --not --protocol udp").unwrap();
    assert_eq!(allow, [filter!(destination_pod: ["b"])]);
    assert_eq!(deny, [filter!(source_pod: ["a"], protocol: ["udp"])]);
    // What excludes each other may stand on different sides.
    assert!(lists("--from-ip 10.0.0.1 --not --from-pod a").is_ok());
    assert!(
        lists("--from-pod a --not")
            .unwrap_err()
            .contains("trailing --not")
    );
    assert!(
        lists("--not --not --from-pod a")
            .unwrap_err()
            .contains("consecutive --not")
    );
}

#[test]
fn mistakes_are_named() {
    for (line, says) in [
        ("--from-ip 10.0.0.1 --from-pod a", "--from-ip and --from-pod"),
        ("--label a --to-label b", "cannot be combined"),
        ("--from-namespace a --from-pod b/x", "namespace conflict"),
        ("--verdict LOST", "invalid --verdict"),
        ("--drop-reason-desc BORED", "--drop-reason-desc"),
        ("--type nothing", "policy-verdict"),
        ("--type trace:nowhere", "sub-type"),
        ("--identity nobody", "reserved name"),
        ("--tcp-flags XYZ", "unknown tcp flag"),
        ("--traffic-direction up", "ingress or egress"),
        ("--http-header a", "name:value"),
        ("--ip-trace-id 0", "greater than 0"),
        ("--ip-version 5", "v4, v6"),
        ("--cel-expression true", "not supported"),
    ] {
        let error = lists(line).unwrap_err();
        assert!(error.contains(says), "{line}: {error}");
    }
}

#[test]
fn every_flag_is_read() {
    for (name, _, value, _) in FLAGS {
        let sample = match *name {
            "not" | "cel-expression" => continue,
            "verdict" => "DROPPED",
            "type" => "drop",
            "drop-reason-desc" => "POLICY_DENIED",
            "traffic-direction" => "ingress",
            "tcp-flags" => "SYN",
            "http-header" => "a:b",
            "ip-version" => "v4",
            _ => "7",
        };
        let line = if value.is_empty() {
            format!("--{name}")
        } else {
            format!("--{name} {sample}")
        };
        let (allow, deny) = lists(&line).unwrap();
        assert!(!allow.is_empty() && deny.is_empty(), "{line}");
        assert_ne!(allow[0], FlowFilter::default(), "{line}");
    }
}
