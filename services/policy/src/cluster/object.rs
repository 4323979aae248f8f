//! One object as the API server sends it: what of it is kept, and what it is called.
//!
//! It is read like an object of a file. Only what its author wants is kept: not who manages which field,
//! not its version; of its status what is needed to see whether another is to be written.

use super::api::one_line;
use crate::{
    files::{Content, Reading},
    world::ObjectKey,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};
use weft_resources::{Kind, MAX_FILE_BYTES, Problem, Resource};

/// Larger ones are not looked into: `managedFields` may take as much as the object itself.
const MAX_RAW: usize = 2 * MAX_FILE_BYTES;

/// Kinds that get a status.
pub(super) const WITH_STATUS: [Kind; 8] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::Ingress,
    Kind::CiliumNetworkPolicy,
    Kind::CiliumClusterwideNetworkPolicy,
];

/// What the API server has of an object, as far as its status is concerned.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub api_version: &'static str,
    pub version: String,
    pub generation: u64,
    /// JSON, `null` for none.
    pub status: Arc<str>,
    pub rejected: Option<Arc<Rejected>>,
}

/// An object that is not taken.
#[derive(Debug, PartialEq)]
pub(super) struct Rejected {
    pub errors: Vec<String>,
    /// Of what it says, as written, what tells whose status it is: class or parents.
    pub of: Value,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Item {
    pub key: ObjectKey,
    pub version: String,
    /// Of what is kept.
    pub digest: u64,
    pub reading: Reading,
    pub facts: Option<Facts>,
}

type Parsed = Result<Vec<Resource>, Vec<Problem>>;

#[derive(Deserialize)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource_version: String,
}

/// How an object is called: `HTTPRoute shop/web`.
pub(crate) fn place(key: &ObjectKey) -> String {
    let ObjectKey {
        kind,
        namespace,
        name,
    } = key;
    match namespace.as_str() {
        "" => format!("{kind} {name}"),
        _ => format!("{kind} {namespace}/{name}"),
    }
}

/// What is called so.
pub(crate) fn key_of(place: &str) -> Option<ObjectKey> {
    let (kind, rest) = place.split_once(' ')?;
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind)?;
    let (namespace, name) = match kind.is_of_cluster() {
        true => ("", rest),
        false => rest.split_once('/')?,
    };
    Some(ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Reads again what [`read`] kept.
pub(crate) fn reread(place: &str, kept: &[u8]) -> Result<Vec<Resource>, Vec<Problem>> {
    let json = serde_json::from_slice::<Value>(kept).map_err(|e| vec![problem(place, e.to_string())])?;
    weft_resources::parse_object(place, &json).map(|r| vec![r])
}

pub(super) fn problem(place: &str, text: String) -> Problem {
    Problem {
        file: place.to_owned(),
        line: 0,
        path: String::new(),
        text,
    }
}

/// The key of an object; an error when it has none.
pub(super) fn key(kind: Kind, raw: &str) -> Result<(ObjectKey, String), String> {
    let head: Head = serde_json::from_str(raw).map_err(|e| one_line(&e.to_string()))?;
    let HeadMeta {
        name,
        namespace,
        resource_version,
    } = head.metadata;
    // What is called otherwise can not be of an API server, and would be called like something else.
    weft_model::check_name(&name).map_err(|e| one_line(&e.to_string()))?;
    if kind.is_of_cluster() != namespace.is_empty() || namespace.contains('/') {
        return Err(format!("{kind} {name}: namespace {namespace:?}"));
    }
    let key = ObjectKey {
        kind,
        namespace,
        name,
    };
    Ok((key, resource_version))
}

/// Reads an object of a list or an event. An error when it can not be told which object it is.
pub(super) fn read(kind: Kind, api_version: &'static str, raw: &str) -> Result<Item, String> {
    let (key, version) = key(kind, raw)?;
    let place = place(&key);
    let too_large = |bytes: usize| {
        let text = format!("{bytes} bytes are above the limit of {MAX_FILE_BYTES}");
        Err(vec![problem(&place, text)])
    };
    if raw.len() > MAX_RAW {
        let parsed = too_large(raw.len());
        return Ok(item(
            (key, version),
            digest(raw.as_bytes()),
            (place, Vec::new(), parsed),
            None,
        ));
    }
    let mut object: Value = serde_json::from_str(raw).map_err(|e| one_line(&e.to_string()))?;
    object["apiVersion"] = api_version.into();
    // In lists of the core's kinds it is not said.
    object["kind"] = kind.name().into();
    let status = object.as_object_mut().and_then(|o| o.remove("status"));
    let generation = object["metadata"]["generation"].as_u64().unwrap_or_default();
    strip(&mut object);
    let bytes = object.to_string().into_bytes();
    let parsed = match bytes.len() {
        length if length > MAX_FILE_BYTES => too_large(length),
        _ => weft_resources::parse_object(&place, &object).map(|r| vec![r]),
    };
    let facts = WITH_STATUS.contains(&kind).then(|| Facts {
        api_version,
        version: version.clone(),
        generation,
        status: status.unwrap_or_default().to_string().into(),
        rejected: parsed.as_ref().err().map(|problems| {
            Arc::new(Rejected {
                errors: problems.iter().map(said).collect(),
                of: whose(kind, &object),
            })
        }),
    });
    let digest = digest(&bytes);
    Ok(item((key, version), digest, (place, bytes, parsed), facts))
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn item(
    (key, version): (ObjectKey, String),
    digest: u64,
    (path, bytes, parsed): (String, Vec<u8>, Parsed),
    facts: Option<Facts>,
) -> Item {
    Item {
        key,
        version,
        digest,
        reading: Reading {
            path,
            content: Some(Content { bytes, parsed }),
        },
        facts,
    }
}

/// Takes away what is of the API server and changes with every write of a status.
fn strip(object: &mut Value) {
    let Some(meta) = object["metadata"].as_object_mut() else {
        return;
    };
    meta.remove("managedFields");
    meta.remove("resourceVersion");
    meta.remove("selfLink");
    if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

fn said(problem: &Problem) -> String {
    match problem.path.as_str() {
        "" => problem.text.clone(),
        path => format!("{path}: {}", problem.text),
    }
}

fn whose(kind: Kind, object: &Value) -> Value {
    match kind {
        Kind::Gateway => object["spec"]["gatewayClassName"].clone(),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute => object["spec"]["parentRefs"].clone(),
        _ => Value::Null,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(meta: Value, port: Value) -> String {
        let mut all = json!({"name": "a", "namespace": "shop", "uid": "1", "resourceVersion": "7"});
        all.as_object_mut()
            .unwrap()
            .extend(meta.as_object().unwrap().clone());
        json!({"metadata": all, "spec": {"ports": [{"port": port}]}, "status": {"loadBalancer": {}}})
            .to_string()
    }

    fn read_service(raw: &str) -> Item {
        read(Kind::Service, "v1", raw).unwrap()
    }

    #[test]
    fn a_change_is_a_change_of_what_its_author_wants() {
        let plain = read_service(&service(json!({}), json!(80)));
        assert_eq!(
            (plain.version.as_str(), place(&plain.key).as_str()),
            ("7", "Service shop/a")
        );
        assert_eq!(key_of("Service shop/a"), Some(plain.key.clone()));
        let of_server = json!({"resourceVersion": "8", "managedFields": [{"manager": "kubectl"}]});
        let same = read_service(&service(of_server, json!(80)));
        assert_eq!((same.digest, same.version.as_str()), (plain.digest, "8"));
        for other in [
            service(json!({"labels": {"a": "b"}}), json!(80)),
            service(json!({}), json!(81)),
        ] {
            assert_ne!(read_service(&other).digest, plain.digest);
        }
        let Some(Content { bytes, parsed }) = plain.reading.content else {
            panic!("no content")
        };
        let again = reread("Service shop/a", &bytes).unwrap();
        assert_eq!(again, parsed.unwrap());
        assert_eq!(again[0].origin.to_string(), "Service shop/a");
    }

    #[test]
    fn what_is_wrong_is_said_of_the_object_and_its_field() {
        let item = read_service(&service(json!({}), json!(0)));
        let problems = item.reading.content.unwrap().parsed.unwrap_err();
        assert_eq!(
            problems[0].to_string(),
            "Service shop/a: spec.ports[0].port: must be a port number from 1 to 65535"
        );
        let large = service(
            json!({"annotations": {"x": "x".repeat(MAX_FILE_BYTES)}}),
            json!(80),
        );
        let huge = service(
            json!({"annotations": {"x": "x".repeat(10 * MAX_FILE_BYTES)}}),
            json!(80),
        );
        for raw in [large, huge] {
            let problems = read_service(&raw).reading.content.unwrap().parsed.unwrap_err();
            assert!(
                problems[0].to_string().contains("above the limit of 1048576"),
                "{problems:?}"
            );
        }
        // What others manage does not count.
        let managed = json!({"managedFields": [{"x": "x".repeat(MAX_FILE_BYTES)}]});
        assert!(
            read_service(&service(managed, json!(80)))
                .reading
                .content
                .unwrap()
                .parsed
                .is_ok()
        );
    }

    #[test]
    fn what_has_no_name_is_no_object() {
        for raw in [
            "[]",
            "{}",
            r#"{"metadata": {"name": "", "namespace": "shop"}}"#,
            r#"{"metadata": {"name": "a/b", "namespace": "shop"}}"#,
            r#"{"metadata": {"name": "a"}}"#,
            r#"{"metadata": {"name": "a", "namespace": "x/y"}}"#,
        ] {
            assert!(read(Kind::Service, "v1", raw).is_err(), "{raw} was taken");
        }
        let named = r#"{"metadata": {"name": "a", "namespace": "shop"}}"#;
        assert!(read(Kind::Service, "v1", named).is_ok());
        assert!(read(Kind::Namespace, "v1", named).is_err());
    }

    #[test]
    fn a_status_is_kept_only_where_one_is_written() {
        let raw = json!({
            "metadata": {"name": "a", "namespace": "shop", "generation": 3, "resourceVersion": "7"},
            "spec": {"parentRefs": [{"name": "g"}], "rules": 1},
            "status": {"parents": []},
        });
        let item = read(Kind::HttpRoute, "gateway.networking.k8s.io/v1", &raw.to_string()).unwrap();
        let facts = item.facts.unwrap();
        assert_eq!((facts.generation, &*facts.status), (3, r#"{"parents":[]}"#));
        let rejected = facts.rejected.unwrap();
        assert_eq!(rejected.of, json!([{"name": "g"}]));
        assert_eq!(rejected.errors[0], "spec.rules: must be a list, found a number");
        assert!(read_service(&service(json!({}), json!(80))).facts.is_none());
    }
}
