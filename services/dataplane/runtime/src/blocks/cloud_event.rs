//! CloudEvents 1.0 in JSON, as Dapr makes and reads them.

use super::content_type;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime};
use weft_components_api::time::{duration, parse_rfc3339, rfc3339};

const TYPE: &str = "com.dapr.event.sent";
const SOURCE: &str = "Dapr";
const VERSION: &str = "1.0";

/// An event.
pub(crate) type Event = Map<String, Value>;

/// Who publishes what, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publication<'a> {
    pub app_id: &'a str,
    pub pubsub: &'a str,
    pub topic: &'a str,
    pub content_type: &'a str,
    pub data: &'a [u8],
    pub traceparent: &'a str,
    pub tracestate: &'a str,
}

/// The value of a name, whatever its case.
pub(crate) fn find<'a>(metadata: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut all = metadata.iter();
    let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(found.1.as_str())
}

/// The event that is published: what was given, if it is one; otherwise one around it. Metadata that
/// begin with `cloudevent.` take the place of its attributes.
pub(crate) fn wrap(p: &Publication<'_>, metadata: &[(String, String)]) -> Result<Event, String> {
    if content_type::is_cloud_event(p.content_type) {
        return completed(p);
    }
    let given = |name: &str| {
        let value = find(metadata, &format!("cloudevent.{name}"));
        value.filter(|value| !value.is_empty())
    };
    let trace = given("traceparent")
        .or_else(|| given("traceid"))
        .unwrap_or(p.traceparent);
    let content = if p.content_type.is_empty() {
        "text/plain"
    } else {
        p.content_type
    };
    let mut event = Event::new();
    let id = given("id").map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
    let mut put = |name: &str, value: Value| drop(event.insert(name.to_owned(), value));
    put("id", id.into());
    put("specversion", VERSION.into());
    put("datacontenttype", content.into());
    put("source", given("source").unwrap_or(p.app_id).into());
    put("type", given("type").unwrap_or(TYPE).into());
    put("topic", p.topic.into());
    put("pubsubname", p.pubsub.into());
    put("traceid", trace.into());
    put("traceparent", trace.into());
    put("tracestate", given("tracestate").unwrap_or(p.tracestate).into());
    put("time", rfc3339(SystemTime::now()).into());
    if let Some(subject) = given("subject") {
        put("subject", subject.into());
    }
    let text = || Value::from(String::from_utf8_lossy(p.data).into_owned());
    if content_type::is_json(content) {
        put("data", serde_json::from_slice(p.data).unwrap_or_else(|_| text()));
    } else if content_type::is_binary(content) || content_type::is_cloud_event_protobuf(content) {
        put("data_base64", STANDARD.encode(p.data).into());
    } else {
        put("data", text());
    }
    Ok(event)
}

/// An event of the app's own, with what every event has.
fn completed(p: &Publication<'_>) -> Result<Event, String> {
    let mut event: Event = serde_json::from_slice(p.data).map_err(|e| e.to_string())?;
    let mut default = |name: &str, value: Value| {
        if event.get(name).is_none_or(Value::is_null) {
            event.insert(name.to_owned(), value);
        }
    };
    default("time", rfc3339(SystemTime::now()).into());
    default("source", SOURCE.into());
    default("type", TYPE.into());
    default("specversion", VERSION.into());
    default("tracestate", p.tracestate.into());
    if !event.contains_key("traceid") {
        event.insert("traceid".into(), p.traceparent.into());
        event.insert("traceparent".into(), p.traceparent.into());
    }
    event.insert("topic".into(), p.topic.into());
    event.insert("pubsubname".into(), p.pubsub.into());
    Ok(event)
}

/// An event's content as bytes.
pub(crate) fn payload(event: &Event) -> Vec<u8> {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    if let Some(encoded) = text("data_base64") {
        return STANDARD.decode(encoded).unwrap_or_default();
    }
    let json = content_type::is_json(text("datacontenttype").unwrap_or_default());
    match event.get("data") {
        None => Vec::new(),
        Some(Value::String(text)) if !json => text.clone().into_bytes(),
        Some(other) => other.to_string().into_bytes(),
    }
}

/// The event around a message that was published as it is.
pub(crate) fn around_raw(data: &[u8], topic: &str, pubsub: &str) -> Event {
    let pairs = [
        ("id", uuid::Uuid::new_v4().to_string()),
        ("specversion", VERSION.to_owned()),
        ("datacontenttype", "application/octet-stream".to_owned()),
        ("source", SOURCE.to_owned()),
        ("type", TYPE.to_owned()),
        ("topic", topic.to_owned()),
        ("pubsubname", pubsub.to_owned()),
        ("data_base64", STANDARD.encode(data)),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()
}

/// Ends the event when its TTL says so: `ttlInSeconds` or `ttl`, as seconds or as Go writes durations.
pub(crate) fn set_expiration(event: &mut Event, metadata: &[(String, String)]) {
    if let Some(ttl) = ttl(metadata) {
        let end = SystemTime::now().checked_add(ttl);
        if let Some(end) = end {
            event.insert("expiration".into(), rfc3339(end).into());
        }
    }
}

fn ttl(metadata: &[(String, String)]) -> Option<Duration> {
    let text = find(metadata, "ttl").or_else(|| find(metadata, "ttlInSeconds"))?;
    let seconds = || text.parse().ok().filter(|s| *s > 0).map(Duration::from_secs);
    seconds().or_else(|| duration(text))
}

/// Whether its time is over.
pub(crate) fn has_expired(event: &Event) -> bool {
    let end = event.get("expiration").and_then(Value::as_str);
    end.and_then(parse_rfc3339)
        .is_some_and(|end| end < SystemTime::now())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn publication<'a>(content_type: &'a str, data: &'a [u8]) -> Publication<'a> {
        Publication {
            app_id: "cart",
            pubsub: "bus",
            topic: "orders",
            content_type,
            data,
            traceparent: TRACE,
            tracestate: "a=b",
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn content_is_wrapped_by_its_kind() {
        for (kind, data, field, wanted) in [
            (
                "application/json",
                r#"{"a":1}"#,
                "data",
                serde_json::json!({"a": 1}),
            ),
            (
                "application/json; charset=utf-8",
                "[1]",
                "data",
                serde_json::json!([1]),
            ),
            ("application/json", "no json", "data", "no json".into()),
            ("text/plain", "hi", "data", "hi".into()),
            ("", "hi", "data", "hi".into()),
            ("application/octet-stream", "hi", "data_base64", "aGk=".into()),
        ] {
            let event = wrap(&publication(kind, data.as_bytes()), &[]).unwrap();
            assert_eq!(event[field], wanted, "{kind}");
            assert_eq!(
                event["datacontenttype"],
                if kind.is_empty() { "text/plain" } else { kind }
            );
            for (name, value) in [
                ("source", "cart"),
                ("type", "com.dapr.event.sent"),
                ("specversion", "1.0"),
                ("topic", "orders"),
                ("pubsubname", "bus"),
                ("traceparent", TRACE),
                ("traceid", TRACE),
                ("tracestate", "a=b"),
            ] {
                assert_eq!(event[name], value);
            }
            assert_eq!(event["id"].as_str().unwrap().len(), 36);
            assert!(parse_rfc3339(event["time"].as_str().unwrap()).is_some());
        }
    }

    #[test]
    fn attributes_can_be_given() {
        let given = pairs(&[
            ("cloudevent.id", "7"),
            ("cloudevent.source", "shop"),
            ("CloudEvent.Type", "order.made"),
            ("cloudevent.subject", "s"),
            ("cloudevent.traceparent", "other"),
            ("cloudevent.topic", "not this"),
        ]);
        let event = wrap(&publication("text/plain", b"x"), &given).unwrap();
        assert_eq!(
            (event["id"].as_str(), event["source"].as_str()),
            (Some("7"), Some("shop"))
        );
        assert_eq!(
            (event["type"].as_str(), event["subject"].as_str()),
            (Some("order.made"), Some("s"))
        );
        assert_eq!(
            (&event["traceid"], &event["traceparent"]),
            (&"other".into(), &"other".into())
        );
        assert_eq!(event["topic"], "orders");
    }

    #[test]
    fn an_event_of_the_apps_own_is_completed_and_kept() {
        let own = br#"{"id": "1", "source": "me", "specversion": "1.0", "type": "t", "data": 5, "ext": true, "topic": "x"}"#;
        let event = wrap(&publication(content_type::CLOUD_EVENT, own), &[]).unwrap();
        assert_eq!(
            (&event["source"], &event["ext"], &event["data"]),
            (&"me".into(), &true.into(), &5.into())
        );
        assert_eq!(
            (&event["topic"], &event["traceid"]),
            (&"orders".into(), &TRACE.into())
        );
        let bare = wrap(
            &publication("application/cloudevents+json; charset=utf-8", b"{}"),
            &[],
        )
        .unwrap();
        assert_eq!((&bare["source"], &bare["type"]), (&"Dapr".into(), &TYPE.into()));
        for bad in [&b"[]"[..], b"x", b""] {
            assert!(wrap(&publication(content_type::CLOUD_EVENT, bad), &[]).is_err());
        }
    }

    #[test]
    fn events_end_with_their_ttl() {
        let mut event = Event::new();
        set_expiration(&mut event, &pairs(&[("ttlInSeconds", "100")]));
        assert!(event.contains_key("expiration") && !has_expired(&event));
        event.insert("expiration".into(), "2020-01-01T00:00:00Z".into());
        assert!(has_expired(&event));
        for none in ["0", "-5", "soon", ""] {
            let mut event = Event::new();
            set_expiration(&mut event, &pairs(&[("ttlInSeconds", none)]));
            assert_eq!(event.contains_key("expiration"), none == "0", "{none:?}");
        }
        assert!(!has_expired(&Event::new()));
    }

    #[test]
    fn fuzz_cloud_event() {
        let seeds = [
            r#"{"id": "1", "source": "me", "specversion": "1.0", "type": "t", "data": {"a": [1]}, "time": "2026-01-01T00:00:00Z"}"#,
            r#"{"data_base64": "aGk=", "expiration": "2020-01-01T00:00:00Z", "traceid": null}"#,
        ];
        let corpus = weft_fuzz::Corpus::of(seeds).words(["\"id\"", "null", "{}", "\"topic\"", "expiration"]);
        weft_fuzz::target!(corpus, |data: &[u8]| {
            for kind in [
                content_type::CLOUD_EVENT,
                "application/json",
                "text/plain",
                "application/octet-stream",
            ] {
                let Ok(event) = wrap(&publication(kind, data), &[]) else {
                    continue;
                };
                let again: Event = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
                assert_eq!(
                    (&again["topic"], &again["pubsubname"]),
                    (&"orders".into(), &"bus".into())
                );
                let _ = has_expired(&again);
            }
        });
    }

    proptest! {
        /// Bytes survive, whatever they are.
        #[test]
        fn bytes_arrive_as_they_were(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let event = wrap(&publication("application/octet-stream", &data), &[]).unwrap();
            prop_assert_eq!(STANDARD.decode(event["data_base64"].as_str().unwrap()).unwrap(), data.clone());
            let raw = around_raw(&data, "t", "p");
            prop_assert_eq!(STANDARD.decode(raw["data_base64"].as_str().unwrap()).unwrap(), data);
        }
    }
}
