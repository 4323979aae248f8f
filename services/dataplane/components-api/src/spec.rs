//! What a manifest of kind Component says, as the policy service sends it.

use crate::{
    metadata::{Block, Metadata, MetadataError},
    time::duration,
};
use serde_json::Value;
use std::time::Duration;

/// How long a component may take to be opened when its manifest does not say.
const INIT_TIMEOUT: Duration = Duration::from_secs(5);
/// A manifest may not wait longer.
const MAX_INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What is wrong with a component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is not of the form that the API has.
    #[error("{0}")]
    Form(String),
    /// Its metadata is wrong.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

fn form(text: impl Into<String>) -> SpecError {
    SpecError::Form(text.into())
}

/// A value that a secret store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// The metadata's name.
    pub field: String,
    /// The secret's.
    pub name: String,
    /// Which of its values; the one of the secret's own name where the manifest does not say.
    pub key: String,
}

/// For whom a component is opened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The app's namespace.
    pub namespace: String,
    /// Its app-id.
    pub app_id: String,
}

/// A component as it is desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.type`.
    pub kind: String,
    /// `spec.version`.
    pub version: String,
    /// App-ids that it is for; empty for all of its namespace.
    pub scopes: Vec<String>,
    /// `spec.ignoreErrors`.
    pub ignore_errors: bool,
    /// How long opening it may take.
    pub init_timeout: Duration,
    /// Its metadata, before placeholders are filled in and without what secrets hold.
    pub metadata: Metadata,
    /// `auth.secretStore`; empty without one.
    pub secret_store: String,
    /// Metadata that the secret store has.
    pub secrets: Vec<SecretRef>,
}

impl ComponentSpec {
    /// Reads a manifest as JSON.
    pub fn read(namespace: &str, name: &str, scopes: &[String], json: &[u8]) -> Result<Self, SpecError> {
        let object: Value = serde_json::from_slice(json).map_err(|e| form(e.to_string()))?;
        let spec = &object["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
        let kind = text("type");
        if kind.is_empty() {
            return Err(form("spec.type is missing"));
        }
        let init_timeout = match spec["initTimeout"].as_str().filter(|t| !t.is_empty()) {
            None => INIT_TIMEOUT,
            Some(given) => duration(given)
                .filter(|t| !t.is_zero())
                .ok_or_else(|| form(format!("spec.initTimeout: {given:?} is no duration")))?
                .min(MAX_INIT_TIMEOUT),
        };
        let none = Vec::new();
        let (mut pairs, mut secrets) = (Vec::new(), Vec::new());
        for item in spec["metadata"].as_array().unwrap_or(&none) {
            let key = item["name"].as_str().unwrap_or_default();
            if key.is_empty() {
                return Err(form("an item of spec.metadata has no name"));
            }
            match secret(key, item)? {
                Some(reference) => secrets.push(reference),
                None => pairs.push((key.to_owned(), value(key, item)?)),
            }
        }
        let secret_store = object["auth"]["secretStore"].as_str().unwrap_or_default();
        if let (Some(reference), "") = (secrets.first(), secret_store) {
            let why = "secretKeyRef needs a secret store: name one in auth.secretStore";
            return Err(form(format!("metadata \"{}\": {why}", reference.field)));
        }
        // Bounds and keys that are there twice are known before any secret is.
        let named = secrets
            .iter()
            .map(|s: &SecretRef| (s.field.clone(), String::new()));
        Metadata::new(pairs.iter().cloned().chain(named).collect())?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind,
            version: text("version"),
            scopes: scopes.to_vec(),
            ignore_errors: spec["ignoreErrors"].as_bool().unwrap_or_default(),
            init_timeout,
            metadata: Metadata::new(pairs)?,
            secret_store: secret_store.to_owned(),
            secrets,
        })
    }

    /// The same with the values of its secrets, in their order.
    pub fn with_secrets(&self, values: Vec<String>) -> Result<Self, SpecError> {
        let fields = self.secrets.iter().map(|secret| secret.field.clone());
        let pairs = self.metadata.pairs().iter().cloned();
        Ok(Self {
            metadata: Metadata::new(pairs.chain(fields.zip(values)).collect())?,
            secrets: Vec::new(),
            ..self.clone()
        })
    }

    /// The building block that `spec.type` names.
    pub fn block(&self) -> Option<Block> {
        let (prefix, _) = self.kind.split_once('.')?;
        Block::ALL.into_iter().find(|block| block.prefix() == prefix)
    }

    /// Whether it is for this app.
    pub fn is_for(&self, owner: &Owner) -> bool {
        let scoped = self.scopes.is_empty() || self.scopes.contains(&owner.app_id);
        self.namespace == owner.namespace && scoped
    }

    /// Whether its metadata speak of the namespace: then so do the topics of a broker.
    pub fn is_namespaced(&self) -> bool {
        let pairs = self.metadata.pairs();
        pairs.iter().any(|(_, value)| value.contains("{namespace}"))
    }

    /// Its metadata for one app: `{appID}`, `{namespace}` and `{uuid}` are filled in.
    pub fn metadata_for(&self, owner: &Owner) -> Result<Metadata, SpecError> {
        let filled = |key: &str, value: &str| -> Result<String, SpecError> {
            if value.contains("{podName}") {
                let why = "is one pod's, and this is opened once for all of an app's";
                return Err(form(format!("metadata \"{key}\": {{podName}} {why}")));
            }
            let text = value.replace("{appID}", &owner.app_id);
            let text = text.replace("{namespace}", &owner.namespace);
            Ok(text.replace("{uuid}", &uuid::Uuid::new_v4().to_string()))
        };
        let pairs = self.metadata.pairs().iter();
        let pairs = pairs.map(|(key, value)| Ok((key.clone(), filled(key, value)?)));
        Ok(Metadata::new(pairs.collect::<Result<_, SpecError>>()?)?)
    }
}

/// A reference to a secret, if the item is one.
fn secret(field: &str, item: &Value) -> Result<Option<SecretRef>, SpecError> {
    let Some(reference) = item.get("secretKeyRef").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let text = |part: &str| reference[part].as_str().unwrap_or_default().to_owned();
    let (name, key) = (text("name"), text("key"));
    if name.is_empty() {
        return Err(form(format!(
            "metadata \"{field}\": secretKeyRef.name is missing"
        )));
    }
    Ok(Some(SecretRef {
        field: field.to_owned(),
        key: if key.is_empty() { name.clone() } else { key },
        name,
    }))
}

/// A value as text, however YAML had it.
fn value(key: &str, item: &Value) -> Result<String, SpecError> {
    if item.get("envRef").is_some_and(|v| !v.is_null()) {
        let why =
            "envRef reads the environment of one daprd; this agent serves many apps and gives none its own";
        return Err(form(format!("metadata \"{key}\": {why}")));
    }
    Ok(match item.get("value") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(spec: &str) -> Result<ComponentSpec, SpecError> {
        let json = format!("{{\"spec\": {spec}}}");
        ComponentSpec::read("shop", "store", &["cart".into()], json.as_bytes())
    }

    fn owner(namespace: &str, app_id: &str) -> Owner {
        Owner {
            namespace: namespace.into(),
            app_id: app_id.into(),
        }
    }

    #[test]
    fn a_manifest_is_read() {
        let spec = read(
            r#"{"type": "state.in-memory", "version": "v1", "initTimeout": "10s", "ignoreErrors": true,
                "metadata": [{"name": "a", "value": "x"}, {"name": "b", "value": 5}, {"name": "c", "value": true}, {"name": "d"}]}"#,
        )
        .unwrap();
        assert_eq!(
            (spec.kind.as_str(), spec.version.as_str()),
            ("state.in-memory", "v1")
        );
        assert_eq!(spec.block(), Some(Block::State));
        assert_eq!(spec.init_timeout, Duration::from_secs(10));
        assert!(spec.ignore_errors);
        let get = |key| spec.metadata.get(key).unwrap();
        assert_eq!((get("a"), get("b"), get("c"), get("d")), ("x", "5", "true", ""));
        assert!(spec.is_for(&owner("shop", "cart")));
        assert!(!spec.is_for(&owner("shop", "bill")) && !spec.is_for(&owner("other", "cart")));
    }

    #[test]
    fn what_can_not_be_is_said() {
        for (spec, said) in [
            (r#"{"version": "v1"}"#, "spec.type"),
            (
                r#"{"type": "state.x", "initTimeout": "soon"}"#,
                "spec.initTimeout",
            ),
            (
                r#"{"type": "state.x", "metadata": [{"value": "x"}]}"#,
                "has no name",
            ),
            (
                r#"{"type": "state.x", "metadata": [{"name": "p", "secretKeyRef": {"name": "s"}}]}"#,
                "\"p\": secretKeyRef needs a secret store",
            ),
            (
                r#"{"type": "state.x", "metadata": [{"name": "p", "secretKeyRef": {"key": "s"}}]}"#,
                "\"p\": secretKeyRef.name",
            ),
            (
                r#"{"type": "state.x", "metadata": [{"name": "p", "envRef": "X"}]}"#,
                "\"p\": envRef",
            ),
            (
                r#"{"type": "state.x", "metadata": [{"name": "p"}, {"name": "P"}]}"#,
                "more than once",
            ),
        ] {
            let error = read(spec).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(ComponentSpec::read("n", "c", &[], b"no json").is_err());
    }

    #[test]
    fn placeholders_are_the_apps_own() {
        let spec = read(
            r#"{"type": "pubsub.x", "metadata": [{"name": "consumerID", "value": "{namespace}.{appID}"}, {"name": "u", "value": "{uuid}"}]}"#,
        )
        .unwrap();
        assert!(spec.is_namespaced());
        let filled = spec.metadata_for(&owner("shop", "cart")).unwrap();
        assert_eq!(filled.get("consumerID"), Some("shop.cart"));
        assert_eq!(filled.get("u").unwrap().len(), 36);
        let pod =
            read(r#"{"type": "pubsub.x", "metadata": [{"name": "id", "value": "{podName}"}]}"#).unwrap();
        let error = pod.metadata_for(&owner("shop", "cart")).unwrap_err().to_string();
        assert!(error.contains("\"id\": {podName}"), "{error}");
    }

    #[test]
    fn secrets_take_the_places_of_their_references() {
        let json = r#"{"auth": {"secretStore": "vault"}, "spec": {"type": "state.x", "metadata": [
            {"name": "host", "value": "h"}, {"name": "password", "secretKeyRef": {"name": "redis", "key": "pass"}},
            {"name": "user", "secretKeyRef": {"name": "user"}}]}}"#;
        let spec = ComponentSpec::read("shop", "store", &[], json.as_bytes()).unwrap();
        assert_eq!(spec.secret_store, "vault");
        let wanted: Vec<_> = spec
            .secrets
            .iter()
            .map(|s| (s.name.as_str(), s.key.as_str()))
            .collect();
        assert_eq!(wanted, [("redis", "pass"), ("user", "user")]);
        assert_eq!(spec.metadata.get("password"), None);
        let whole = spec.with_secrets(vec!["p4ss".into(), "me".into()]).unwrap();
        let get = |key| whole.metadata.get(key).unwrap();
        assert_eq!((get("host"), get("password"), get("user")), ("h", "p4ss", "me"));
        assert!(!format!("{whole:?}").contains("p4ss"), "secrets are not shown");
        let twice = json.replace("\"host\"", "\"USER\"");
        assert!(ComponentSpec::read("shop", "store", &[], twice.as_bytes()).is_err());
    }

    #[test]
    fn fuzz_component() {
        let seeds = [
            r#"{"spec": {"type": "state.in-memory", "version": "v1", "initTimeout": "10s", "metadata": [{"name": "keyPrefix", "value": "none"}]}}"#,
            r#"{"spec": {"type": "bindings.cron", "metadata": [{"name": "schedule", "value": "@every 1s"}, {"name": "n", "value": 5}]}}"#,
            r#"{"spec": {"type": "pubsub.in-memory", "metadata": [{"name": "x", "secretKeyRef": {"name": "a", "key": "b"}}]}}"#,
        ];
        let corpus = weft_fuzz::Corpus::of(seeds).words(["{uuid}", "{appID}", "{podName}", "null", "[]"]);
        weft_fuzz::target!(corpus, |bytes: &[u8]| {
            if let Ok(spec) = ComponentSpec::read("shop", "store", &[], bytes) {
                assert!(!spec.kind.is_empty() && spec.init_timeout <= MAX_INIT_TIMEOUT);
                if let Ok(filled) = spec.metadata_for(&owner("shop", "cart")) {
                    assert_eq!(filled.pairs().len(), spec.metadata.pairs().len());
                }
            }
        });
    }
}
