//! `icmps`: messages by type, as number or by name.

use super::{IcmpRule, parts::MAX_PORTS};
use crate::{
    fields::{Field, Problems},
    tree::Value,
};

/// Names of types as Cilium has them (IANA's numbers).
const IPV4: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// The same for IPv6.
const IPV6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<IcmpRule>> {
    let items = field.list(problems)?;
    let mut rules = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(mut object) = item.object(problems) else {
            continue;
        };
        let Some(list) = object.need("fields", problems) else {
            continue;
        };
        let elements = list.list(problems).unwrap_or_default();
        if elements.is_empty() {
            list.fail(problems, "names no message and would match nothing");
        }
        if elements.len() > MAX_PORTS {
            let found = elements.len();
            list.fail(
                problems,
                format_args!("has {found} elements, at most {MAX_PORTS} are allowed"),
            );
        }
        for (j, f) in elements.iter().enumerate() {
            rules.extend(message(f, format!("icmps[{i}].fields[{j}]"), problems));
        }
        object.finish(problems);
    }
    // As with ports, an empty list does not narrow the rule.
    (!items.is_empty()).then_some(rules)
}

fn message(field: &Field<'_>, path: String, problems: &mut Problems) -> Option<IcmpRule> {
    let mut object = field.object(problems)?;
    let family = match object.take("family") {
        None => Some(false),
        Some(f) => match f.text(problems)?.as_str() {
            "IPv4" => Some(false),
            "IPv6" => Some(true),
            other => {
                f.fail(problems, format_args!("{other:?} is neither IPv4 nor IPv6"));
                None
            }
        },
    };
    let kind = object.need("type", problems);
    object.finish(problems);
    let (v6, kind) = (family?, kind?);
    let names: &[(&str, u8)] = if v6 { &IPV6 } else { &IPV4 };
    let number = match &kind.node.value {
        Value::Integer(number) => u8::try_from(*number).ok(),
        Value::Text(text) => text.parse().ok().or_else(|| {
            names
                .iter()
                .find(|(name, _)| name == text)
                .map(|(_, number)| *number)
        }),
        _ => None,
    };
    if number.is_none() {
        let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        kind.fail(
            problems,
            format_args!("must be a number from 0 to 255 or one of {}", all.join(", ")),
        );
    }
    Some(IcmpRule {
        path,
        protocol: if v6 { 58 } else { 1 },
        kind: number?,
    })
}
