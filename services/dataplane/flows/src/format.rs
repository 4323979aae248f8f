//! How a flow reads: one line for people, one JSON object for programs. Both take the protobuf
//! form, so that the agent and the command line print the same.

use serde_json::{Map, Value, json};
use std::fmt::Write;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_proto::weft::dataplane::v1 as pb;

/// `<time> <verdict> <source> -> <destination> <direction> <kind> <method> <path> …`, one line
/// whatever the fields hold.
pub fn compact(flow: &pb::Flow) -> String {
    let mut line = String::with_capacity(192);
    let _ = write!(line, "{} {:9} ", time_text(flow.time, true), verdict(flow));
    side(&mut line, flow.source.as_ref());
    line.push_str(" -> ");
    side(&mut line, flow.destination.as_ref());
    let _ = write!(line, " {} {}", plain(&flow.direction), plain(&flow.kind));
    if !flow.protocol.is_empty() {
        let _ = write!(line, " {}", plain(&flow.protocol));
    }
    if flow.is_reply {
        line.push_str(" reply");
    }
    if !flow.method.is_empty() {
        let _ = write!(line, " {} {}", plain(&flow.method), plain(&flow.path));
    }
    if flow.status != 0 {
        let _ = write!(line, " {}", flow.status);
    }
    if flow.latency_microseconds != 0 {
        let _ = write!(line, " {:.1}ms", flow.latency_microseconds as f64 / 1000.0);
    }
    if flow.bytes_sent != 0 || flow.bytes_received != 0 {
        let _ = write!(line, " {}B/{}B", flow.bytes_sent, flow.bytes_received);
    }
    for text in [&flow.drop_reason, &flow.via] {
        if !text.is_empty() {
            let _ = write!(line, " {}", plain(text));
        }
    }
    for (name, text) in [
        ("rule", &flow.rule),
        ("route", &flow.route),
        ("proof", &flow.caller_proof),
        ("trace", &flow.trace_id),
    ] {
        if !text.is_empty() {
            let _ = write!(line, " {name}=\"{}\"", plain(text));
        }
    }
    line
}

/// One JSON object on one line; empty fields are left out.
pub fn json(flow: &pb::Flow) -> String {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        let empty =
            matches!(&value, Value::String(s) if s.is_empty()) || value == json!(0) || value.is_null();
        if !empty {
            object.insert(name.into(), value);
        }
    };
    put("time", time_text(flow.time, false).into());
    put("uuid", flow.uuid.as_str().into());
    put("node", flow.node.as_str().into());
    put("verdict", verdict(flow).into());
    put("source", flow.source.as_ref().map(peer_json).into());
    put("destination", flow.destination.as_ref().map(peer_json).into());
    put("direction", flow.direction.as_str().into());
    put("kind", flow.kind.as_str().into());
    put("drop_reason", flow.drop_reason.as_str().into());
    put("rule", flow.rule.as_str().into());
    put("route", flow.route.as_str().into());
    put("method", flow.method.as_str().into());
    put("path", flow.path.as_str().into());
    put("status", flow.status.into());
    put("latency_microseconds", flow.latency_microseconds.into());
    put("via", flow.via.as_str().into());
    put("caller_proof", flow.caller_proof.as_str().into());
    put("trace_id", flow.trace_id.as_str().into());
    put("protocol", flow.protocol.as_str().into());
    put("tcp_flags", flow.tcp_flags.into());
    if flow.is_reply {
        put("is_reply", true.into());
    }
    put("bytes_sent", flow.bytes_sent.into());
    put("bytes_received", flow.bytes_received.into());
    Value::Object(object).to_string()
}

fn peer_json(peer: &pb::FlowPeer) -> Value {
    let texts = [
        ("namespace", &peer.namespace),
        ("workload", &peer.workload),
        ("app_id", &peer.app_id),
        ("spiffe_id", &peer.spiffe_id),
        ("address", &peer.address),
        ("node", &peer.node),
    ];
    let mut object: Map<String, Value> = texts
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.to_owned(), text.as_str().into()))
        .collect();
    object.insert("identity".into(), peer.identity.into());
    if peer.port != 0 {
        object.insert("port".into(), peer.port.into());
    }
    Value::Object(object)
}

fn verdict(flow: &pb::Flow) -> &'static str {
    match flow.verdict() {
        pb::Verdict::Forwarded => "FORWARDED",
        pb::Verdict::Dropped => "DROPPED",
        pb::Verdict::Error => "ERROR",
        pb::Verdict::Audit => "AUDIT",
        pb::Verdict::Unspecified => "UNKNOWN",
    }
}

fn side(line: &mut String, peer: Option<&pb::FlowPeer>) {
    let Some(peer) = peer else {
        line.push('?');
        return;
    };
    let name = if peer.app_id.is_empty() {
        &peer.workload
    } else {
        &peer.app_id
    };
    if name.is_empty() {
        line.push_str(&plain(if peer.address.is_empty() {
            "?"
        } else {
            &peer.address
        }));
    } else {
        let _ = write!(line, "{}/{}", plain(&peer.namespace), plain(name));
    }
    if peer.port != 0 {
        let _ = write!(line, ":{}", peer.port);
    }
    let _ = write!(line, " ({})", peer.identity);
}

/// A text of an outsider as it may be printed: no control characters, no line ends, no quotes.
fn plain(text: &str) -> std::borrow::Cow<'_, str> {
    let bad = |c: char| c.is_control() || c == '"' || c == '\\';
    if text.contains(bad) {
        text.chars()
            .flat_map(char::escape_default)
            .collect::<String>()
            .into()
    } else {
        text.into()
    }
}

fn time_text(time: Option<prost_types::Timestamp>, clock_only: bool) -> String {
    let Some(time) = time else { return "-".into() };
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let Ok(moment) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
        return "-".into();
    };
    if clock_only {
        let (h, m, s, milli) = moment.to_hms_milli();
        return format!("{h:02}:{m:02}:{s:02}.{milli:03}");
    }
    moment.format(&Rfc3339).unwrap_or_else(|_| "-".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Filter, FlowLog, filter::tests::flow_of};
    use proptest::prelude::*;

    fn sample() -> pb::Flow {
        let log = FlowLog::new("n1");
        log.record(flow_of("shop", "cart"));
        log.to_proto(&log.past(0, None, &Filter::default())[0])
    }

    #[test]
    fn a_line_says_who_whom_what_and_how() {
        assert_eq!(
            compact(&sample()),
            "22:13:20.250 FORWARDED default/shop (300) -> default/cart:50002 (301) egress invoke \
             POST /checkout 200 1.2ms same-node proof=\"pod-listener\""
        );
    }

    #[test]
    fn json_has_the_fields_that_are_set() {
        let value: Value = serde_json::from_str(&json(&sample())).unwrap();
        assert_eq!(value["time"], "2023-11-14T22:13:20.25Z");
        assert_eq!(value["verdict"], "FORWARDED");
        assert_eq!(value["source"]["app_id"], "shop");
        assert_eq!(value["destination"]["port"], 50002);
        assert_eq!(value["status"], 200);
        assert!(value.get("rule").is_none());
    }

    proptest! {
        #[test]
        fn no_field_can_break_the_line(path in any::<String>(), id in any::<String>(), seconds in any::<i64>(), nanos in any::<i32>()) {
            let mut flow = sample();
            flow.time = Some(prost_types::Timestamp { seconds, nanos });
            flow.path = path;
            flow.source.as_mut().unwrap().app_id = id;
            let line = compact(&flow);
            prop_assert!(!line.contains(char::is_control));
            prop_assert!(serde_json::from_str::<Value>(&json(&flow)).is_ok());
        }
    }
}
