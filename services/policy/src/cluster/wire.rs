//! What the API server is asked and answers, as far as it matters.

use crate::world::ObjectKey;
use serde::Deserialize;
use serde_json::value::RawValue;
use weft_resources::Kind;

/// The path of a kind, and of an object in it.
pub(super) fn path(kind: Kind, api_version: &str, object: Option<&ObjectKey>) -> String {
    let root = match api_version.contains('/') {
        true => "/apis",
        false => "/api",
    };
    let plural = kind.plural_and_short().0;
    match object {
        None => format!("{root}/{api_version}/{plural}"),
        Some(key) if key.namespace.is_empty() => format!("{root}/{api_version}/{plural}/{}", key.name),
        Some(ObjectKey { namespace, name, .. }) => {
            format!("{root}/{api_version}/namespaces/{namespace}/{plural}/{name}")
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Page<'a> {
    pub metadata: ListMeta,
    #[serde(borrow)]
    pub items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub resource_version: String,
    #[serde(default, rename = "continue")]
    pub next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

#[derive(Deserialize)]
pub(super) struct Bookmark {
    pub metadata: ListMeta,
}

#[derive(Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let key = |kind, namespace: &str| ObjectKey {
            kind,
            namespace: namespace.into(),
            name: "a".into(),
        };
        assert_eq!(path(Kind::Service, "v1", None), "/api/v1/services");
        assert_eq!(
            path(
                Kind::HttpRoute,
                "gateway.networking.k8s.io/v1",
                Some(&key(Kind::HttpRoute, "shop"))
            ),
            "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/a"
        );
        assert_eq!(
            path(Kind::Namespace, "v1", Some(&key(Kind::Namespace, ""))),
            "/api/v1/namespaces/a"
        );
    }
}
