//! What operators call kinds and objects, as with kubectl.

use anyhow::{Result, bail};
use weft_resources::Kind;

/// The kind that a word names: `httproute`, `httproutes`, `HTTPRoute`, `httproutes.gateway.networking.k8s.io`.
pub fn kind(word: &str) -> Option<Kind> {
    let lower = word.to_ascii_lowercase();
    Kind::ALL.into_iter().find(|kind| {
        let (plural, short) = kind.plural_and_short();
        let name = kind.name().to_ascii_lowercase();
        if lower == plural || lower == name || short.contains(&lower.as_str()) {
            return true;
        }
        let Some((first, group)) = lower.split_once('.') else {
            return false;
        };
        let group = kind
            .api_versions()
            .iter()
            .filter_map(|v| v.rsplit('/').next())
            .find_map(|version| group.strip_prefix(version)?.strip_prefix('.'))
            .unwrap_or(group);
        (first == plural || first == name) && !kind.group().is_empty() && group == kind.group()
    })
}

/// `gateways.gateway.networking.k8s.io`, as messages name a kind.
pub fn resource(kind: Kind) -> String {
    let (plural, _) = kind.plural_and_short();
    match kind.group() {
        "" => plural.to_owned(),
        group => format!("{plural}.{group}"),
    }
}

/// The kinds that words with commas between them name.
pub fn kinds(words: &str) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for word in words.split(',') {
        let Some(kind) = kind(word) else {
            bail!("there is no resource type {word:?}; see weft get --help");
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// `gateway.gateway.networking.k8s.io/web`, as `kubectl -o name` names an object.
pub fn named(kind: Kind, name: &str) -> String {
    format!("{}/{name}", one(kind))
}

/// `gateway.gateway.networking.k8s.io`, as messages name one object's kind.
pub fn one(kind: Kind) -> String {
    let singular = kind.name().to_ascii_lowercase();
    match kind.group() {
        "" => singular,
        group => format!("{singular}.{group}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn kinds_are_known_by_all_their_names() {
        for (word, expected) in [
            ("httproute", Some(Kind::HttpRoute)),
            ("httproutes", Some(Kind::HttpRoute)),
            ("HTTPRoute", Some(Kind::HttpRoute)),
            ("httproutes.gateway.networking.k8s.io", Some(Kind::HttpRoute)),
            (
                "httproutes.v1beta1.gateway.networking.k8s.io",
                Some(Kind::HttpRoute),
            ),
            ("httproutes.v2.gateway.networking.k8s.io", None),
            ("httproutes.a.test", None),
            ("gtw", Some(Kind::Gateway)),
            ("gc", Some(Kind::GatewayClass)),
            ("svc", Some(Kind::Service)),
            ("cnp", Some(Kind::CiliumNetworkPolicy)),
            ("ccnp", Some(Kind::CiliumClusterwideNetworkPolicy)),
            ("netpol", Some(Kind::NetworkPolicy)),
            ("ns", Some(Kind::Namespace)),
            ("pods", None),
            ("", None),
        ] {
            assert_eq!(kind(word), expected, "{word}");
        }
        let names: BTreeSet<String> = Kind::ALL.into_iter().map(resource).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
