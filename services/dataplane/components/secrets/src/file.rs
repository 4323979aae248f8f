//! `secretstores.local.file`: a JSON file beneath the app's folder, read once when the store is opened.

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use weft_components_api::{
    Block, Component, Driver, Field, InitError, Instance, Schema, Secret, SecretError, SecretFeature,
    SecretStore,
    beneath::{Folder, parts},
};

/// Secrets of one file, nested ones counted.
const MAX_SECRETS: usize = 10_000;

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalFile;

impl Driver for LocalFile {
    fn block(&self) -> Block {
        Block::Secrets
    }

    fn kind(&self) -> &'static str {
        "secretstores.local.file"
    }

    fn schema(&self) -> &'static Schema {
        const SCHEMA: &Schema = &Schema {
            fields: &[
                Field::required("secretsFile"),
                Field::optional("nestedSeparator"),
                Field::optional("multiValued"),
            ],
        };
        SCHEMA
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let metadata = &instance.metadata;
            let multi = metadata
                .truth("multiValued")
                .map_err(|e| InitError::Failed(e.to_string()))?;
            let separator = metadata
                .get("nestedSeparator")
                .filter(|s| !s.is_empty())
                .unwrap_or(":");
            let separator = separator.to_owned();
            let name = metadata.get("secretsFile").unwrap_or_default().to_owned();
            let read = tokio::task::spawn_blocking(move || {
                let content = read(instance.home.files, &name)?;
                secrets(&content, &separator, multi).map_err(|e| format!("secretsFile {name:?}: {e}"))
            });
            let secrets = read.await.unwrap_or_else(|e| Err(e.to_string()));
            let secrets = secrets.map_err(InitError::Failed)?;
            Ok(Component::Secrets(Arc::new(Store { secrets, multi })))
        }
        .boxed()
    }
}

fn read(folder: PathBuf, name: &str) -> Result<Vec<u8>, String> {
    let path = parts(name).map_err(|e| format!("secretsFile {name:?}: {e}"))?;
    let Some((file, above)) = path.split_last() else {
        return Err(format!("secretsFile {name:?} names no file"));
    };
    let content = Folder::make(&folder).and_then(|folder| folder.enter(above)?.read(file));
    content.map_err(|e| {
        format!(
            "secretsFile {name:?}: {e} (looked for beneath the app's folder, {})",
            folder.display()
        )
    })
}

/// What a file says: nested values under the names of all they are in, or with several values per secret
/// each object of the outermost level by itself.
fn secrets(content: &[u8], separator: &str, multi: bool) -> Result<BTreeMap<String, Secret>, String> {
    let object: Map<String, Value> = serde_json::from_slice(content).map_err(|e| e.to_string())?;
    let mut secrets = BTreeMap::new();
    if !multi {
        let mut flat = Secret::new();
        flatten(&object, "", separator, &mut flat)?;
        for (name, value) in flat {
            secrets.insert(name.clone(), Secret::from([(name, value)]));
        }
        return Ok(secrets);
    }
    for (name, value) in object {
        match value {
            Value::String(value) => drop(secrets.insert(name.clone(), Secret::from([(name, value)]))),
            Value::Object(inner) => {
                let mut values = Secret::new();
                flatten(&inner, "", separator, &mut values)?;
                secrets.insert(name, values);
            }
            // As in Dapr, only texts and objects are secrets here.
            _ => {}
        }
        if secrets.values().map(BTreeMap::len).sum::<usize>() > MAX_SECRETS {
            return Err(format!("more than {MAX_SECRETS} secrets"));
        }
    }
    Ok(secrets)
}

fn flatten(
    object: &Map<String, Value>,
    path: &str,
    separator: &str,
    into: &mut Secret,
) -> Result<(), String> {
    let entries = object.iter().map(|(key, value)| (key.clone(), value));
    flatten_all(entries, path, separator, into)
}

fn flatten_all<'a>(
    entries: impl Iterator<Item = (String, &'a Value)>,
    path: &str,
    separator: &str,
    into: &mut Secret,
) -> Result<(), String> {
    for (key, value) in entries {
        let name = match path {
            "" => key,
            path => format!("{path}{separator}{key}"),
        };
        let text = match value {
            Value::Object(inner) => {
                flatten(inner, &name, separator, into)?;
                continue;
            }
            Value::Array(items) => {
                let items: Vec<(String, &Value)> = items
                    .iter()
                    .enumerate()
                    .map(|(i, item)| (i.to_string(), item))
                    .collect();
                let items: Box<dyn Iterator<Item = (String, &Value)>> = Box::new(items.into_iter());
                flatten_all(items, &name, separator, into)?;
                continue;
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if into.len() >= MAX_SECRETS {
            return Err(format!("more than {MAX_SECRETS} secrets"));
        }
        if into.insert(name.clone(), text).is_some() {
            return Err(format!("duplicate key {name:?}"));
        }
    }
    Ok(())
}

struct Store {
    secrets: BTreeMap<String, Secret>,
    multi: bool,
}

impl SecretStore for Store {
    fn features(&self) -> &'static [SecretFeature] {
        match self.multi {
            true => &[SecretFeature::MultipleValues],
            false => &[],
        }
    }

    fn get(&self, name: String, _: Vec<(String, String)>) -> BoxFuture<'_, Result<Secret, SecretError>> {
        let found = self.secrets.get(&name).cloned();
        async move { found.ok_or(SecretError::NotFound(name)) }.boxed()
    }

    fn bulk(&self, _: Vec<(String, String)>) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, SecretError>> {
        async move { Ok(self.secrets.clone()) }.boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, secrets as conformance};

    async fn open(content: &str, metadata: &[(&str, &str)]) -> Result<Arc<dyn SecretStore>, InitError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secrets.json"), content).unwrap();
        let mut instance = instance("file", metadata);
        instance.home.files = folder.path().to_owned();
        match LocalFile.open(instance).await? {
            Component::Secrets(store) => Ok(store),
            other => panic!("{other:?}"),
        }
    }

    const FILE: (&str, &str) = ("secretsFile", "/secrets.json");

    #[tokio::test]
    async fn conforms() {
        let store = open(r#"{"one": "1", "two": "2"}"#, &[FILE]).await.unwrap();
        let shown = conformance::conforms(&*store, &[("one", "1"), ("two", "2")]).await;
        weft_components_conformance::table::told("secretstores.local.file", &shown);
        let missing = store.get("three".into(), Vec::new()).await.unwrap_err();
        assert_eq!(missing.to_string(), "secret three not found");
    }

    #[tokio::test]
    async fn nested_values_are_named_by_all_they_are_in() {
        let content = r#"{"redis": {"password": "p", "ports": [1, 2]}, "on": true}"#;
        let store = open(content, &[FILE]).await.unwrap();
        let all = store.bulk(Vec::new()).await.unwrap();
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["on", "redis:password", "redis:ports:0", "redis:ports:1"]);
        assert_eq!(all["on"]["on"], "true");
        let dotted = open(content, &[FILE, ("nestedSeparator", ".")]).await.unwrap();
        assert_eq!(
            dotted.get("redis.password".into(), Vec::new()).await.unwrap()["redis.password"],
            "p"
        );
        assert!(store.features().is_empty());

        let multi = open(content, &[FILE, ("multiValued", "true")]).await.unwrap();
        assert_eq!(multi.features(), [SecretFeature::MultipleValues]);
        let redis = multi.get("redis".into(), Vec::new()).await.unwrap();
        assert_eq!(
            (redis["password"].as_str(), redis["ports:1"].as_str()),
            ("p", "2")
        );
        assert!(multi.get("on".into(), Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn what_can_not_be_read_says_where_it_was_looked_for() {
        for (content, metadata, said) in [
            (
                "{}",
                ("secretsFile", "/other.json"),
                "looked for beneath the app's folder",
            ),
            ("{}", ("secretsFile", "/"), "names no file"),
            ("[]", FILE, "expected a map"),
            ("no", FILE, "secretsFile \"/secrets.json\""),
            (r#"{"a": {"b": 1}, "a:b": 2}"#, FILE, "duplicate key \"a:b\""),
        ] {
            let error = open(content, &[metadata]).await.err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn fuzz_secrets_file() {
        let seeds = [
            r#"{"a": {"b": ["c", {"d": null}]}, "e": 1.5}"#,
            r#"{"a": "x", "b": {"c": "y"}}"#,
        ];
        let corpus = weft_fuzz::Corpus::of(seeds).words(["{", "}", "[", "]", ":", "null", "\"a\""]);
        weft_fuzz::target!(corpus, |bytes: &[u8]| {
            for multi in [true, false] {
                let read = secrets(bytes, ":", multi).unwrap_or_default();
                assert!(
                    read.iter()
                        .all(|(name, secret)| multi || secret.contains_key(name))
                );
            }
        });
    }
}
