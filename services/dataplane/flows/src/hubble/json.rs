//! The JSON form of Hubble's messages: proto3's, with the names as the `.proto` files have them.

use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use std::sync::LazyLock;
use weft_proto::{HUBBLE_DESCRIPTORS, hubble::flow::FlowFilter};

/// Made once; nothing changes it.
static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(HUBBLE_DESCRIPTORS).ok());
/// Longest filter that is read.
const MAX_FILTER_BYTES: usize = 64 * 1024;

/// Why something has no JSON form, or is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// The descriptor of a message by its full name, "flow.Flow".
pub(crate) fn descriptor(name: &str) -> Result<MessageDescriptor, JsonError> {
    let pool = POOL.as_ref();
    pool.and_then(|pool| pool.get_message_by_name(name))
        .ok_or_else(|| JsonError(format!("no message {name}")))
}

/// `message`, whose full name is `name`, as one object on one line.
pub fn to_json(name: &str, message: &impl Message) -> Result<String, JsonError> {
    let mut dynamic = DynamicMessage::new(descriptor(name)?);
    dynamic
        .transcode_from(message)
        .map_err(|e| JsonError(e.to_string()))?;
    dynamic_to_json(&dynamic)
}

pub(crate) fn dynamic_to_json(message: &DynamicMessage) -> Result<String, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::new(&mut text);
    message
        .serialize_with_options(&mut serializer, &options)
        .map_err(|e| JsonError(e.to_string()))?;
    String::from_utf8(text).map_err(|e| JsonError(e.to_string()))
}

/// Filters as `--allowlist` takes them: any number of objects behind each other.
pub fn filters(text: &str) -> Result<Vec<FlowFilter>, JsonError> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(JsonError(format!("longer than {MAX_FILTER_BYTES} bytes")));
    }
    let descriptor = descriptor("flow.FlowFilter")?;
    let options = DeserializeOptions::new();
    let mut objects = serde_json::Deserializer::from_str(text);
    let mut filters = Vec::new();
    loop {
        match objects.end() {
            Ok(()) => return Ok(filters),
            Err(_) => {
                let message =
                    DynamicMessage::deserialize_with_options(descriptor.clone(), &mut objects, &options)
                        .map_err(|e| JsonError(e.to_string()))?;
                filters.push(message.transcode_to().map_err(|e| JsonError(e.to_string()))?);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::hubble::{flow as pb, observer};

    #[test]
    fn a_flow_reads_as_hubbles_clients_expect_it() {
        let flow = pb::Flow {
            time: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 250_000_000,
            }),
            verdict: pb::Verdict::Forwarded.into(),
            ip: Some(pb::Ip {
                source: "10.0.0.1".into(),
                ip_version: pb::IpVersion::IPv4.into(),
                ..Default::default()
            }),
            r#type: pb::FlowType::L7.into(),
            is_reply: Some(false),
            l7: Some(pb::Layer7 {
                latency_ns: 3_000_000,
                ..Default::default()
            }),
            ..Default::default()
        };
        let response = observer::GetFlowsResponse {
            node_name: "n1".into(),
            response_types: Some(observer::get_flows_response::ResponseTypes::Flow(flow)),
            ..Default::default()
        };
        let text = to_json("observer.GetFlowsResponse", &response).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["node_name"], "n1");
        let flow = &value["flow"];
        assert_eq!(flow["time"], "2023-11-14T22:13:20.250Z");
        assert_eq!(flow["verdict"], "FORWARDED");
        assert_eq!(flow["IP"]["ipVersion"], "IPv4");
        assert_eq!(flow["Type"], "L7");
        assert_eq!(flow["is_reply"], false);
        assert_eq!(
            flow["l7"]["latency_ns"], "3000000",
            "64 bits are no number in JSON"
        );
        assert!(flow.get("drop_reason").is_none());
        assert!(to_json("flow.Nothing", &response).is_err());
    }

    #[test]
    fn filters_are_read_and_mistakes_named() {
        let read =
            filters(r#"{"source_pod":["default/shop"],"verdict":["DROPPED"]} {"http_method":["GET"]}"#);
        let read = read.unwrap();
        assert_eq!(read[0].source_pod, ["default/shop"]);
        assert_eq!(read[0].verdict, [pb::Verdict::Dropped as i32]);
        assert_eq!(read[1].http_method, ["GET"]);
        assert_eq!(filters("").unwrap(), []);
        for (text, says) in [
            (r#"{"source_bod":[]}"#, "source_bod"),
            (r#"{"verdict":["LOST"]}"#, "LOST"),
            ("[]", ""),
            ("{", ""),
        ] {
            let error = filters(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let long = format!("{{\"uuid\":[\"{}\"]}}", "a".repeat(MAX_FILTER_BYTES));
        assert!(filters(&long).unwrap_err().to_string().contains("longer"));
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_reader(text in any::<String>()) {
            let _ = filters(&text);
        }

        #[test]
        fn what_is_written_is_read_back(pods in proptest::collection::vec("[a-z/]{0,8}", 0..4), identity in any::<u32>(), reply in any::<bool>()) {
            let filter = FlowFilter {
                source_pod: pods,
                source_identity: vec![identity],
                reply: vec![reply],
                ..Default::default()
            };
            let text = to_json("flow.FlowFilter", &filter).unwrap();
            prop_assert_eq!(filters(&text).unwrap(), [filter]);
        }
    }
}
