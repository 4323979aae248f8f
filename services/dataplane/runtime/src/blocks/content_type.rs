//! Kinds of content, as Dapr tells them apart.

/// Of CloudEvents in JSON.
pub(crate) const CLOUD_EVENT: &str = "application/cloudevents+json";

fn is(given: &str, wanted: &str) -> bool {
    let kind = given.split(';').next().unwrap_or_default();
    kind.eq_ignore_ascii_case(wanted)
}

/// A CloudEvent in JSON.
pub(crate) fn is_cloud_event(given: &str) -> bool {
    is(given, CLOUD_EVENT)
}

/// JSON.
pub(crate) fn is_json(given: &str) -> bool {
    is(given, "application/json")
}

/// Text.
pub(crate) fn is_text(given: &str) -> bool {
    let starts = given
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("text/"));
    starts || is(given, "application/xml")
}

/// Bytes.
pub(crate) fn is_binary(given: &str) -> bool {
    is(given, "application/octet-stream")
}

/// A CloudEvent in protobuf.
pub(crate) fn is_cloud_event_protobuf(given: &str) -> bool {
    is(given, "application/cloudevents+protobuf")
}
