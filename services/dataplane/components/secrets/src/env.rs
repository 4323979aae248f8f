//! `secretstores.local.env`: the environment that the app's runtime was given.

use futures::{FutureExt, future::BoxFuture};
use std::{collections::BTreeMap, sync::Arc};
use weft_components_api::{
    Block, Component, Driver, Field, InitError, Instance, Schema, Secret, SecretError, SecretFeature,
    SecretStore,
};

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalEnv;

impl Driver for LocalEnv {
    fn block(&self) -> Block {
        Block::Secrets
    }

    fn kind(&self) -> &'static str {
        "secretstores.local.env"
    }

    fn schema(&self) -> &'static Schema {
        &Schema {
            fields: &[Field {
                name: "prefix",
                required: false,
            }],
        }
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        let store = Store {
            prefix: instance.metadata.get("prefix").unwrap_or_default().to_owned(),
            environment: instance.home.environment,
        };
        async move { Ok(Component::Secrets(Arc::new(store))) }.boxed()
    }
}

struct Store {
    prefix: String,
    environment: Arc<BTreeMap<String, String>>,
}

/// What is between the app and its runtime is no secret of the app's, as in Dapr.
fn is_hidden(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name == "APP_API_TOKEN" || name.starts_with("DAPR_")
}

impl Store {
    fn all(&self) -> BTreeMap<String, Secret> {
        let named = self.environment.iter().filter(|(name, _)| !is_hidden(name));
        let named = named.filter_map(|(name, value)| Some((name.strip_prefix(self.prefix.as_str())?, value)));
        let named = named.filter(|(name, _)| !name.is_empty());
        named
            .map(|(name, value)| (name.to_owned(), Secret::from([(name.to_owned(), value.clone())])))
            .collect()
    }
}

impl SecretStore for Store {
    fn features(&self) -> &'static [SecretFeature] {
        &[]
    }

    /// One that is not there is empty, as Dapr has it.
    fn get(&self, name: String, _: Vec<(String, String)>) -> BoxFuture<'_, Result<Secret, SecretError>> {
        let variable = format!("{}{name}", self.prefix);
        let value = self.environment.get(&variable).filter(|_| !is_hidden(&variable));
        let value = value.cloned().unwrap_or_default();
        async move { Ok(Secret::from([(name, value)])) }.boxed()
    }

    fn bulk(&self, _: Vec<(String, String)>) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, SecretError>> {
        async move { Ok(self.all()) }.boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{instance, secrets};

    async fn open(metadata: &[(&str, &str)], environment: &[(&str, &str)]) -> Arc<dyn SecretStore> {
        let mut instance = instance("env", metadata);
        let pairs = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        instance.home.environment = Arc::new(pairs.collect());
        match LocalEnv.open(instance).await {
            Ok(Component::Secrets(store)) => store,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn conforms() {
        let store = open(&[], &[("ONE", "1"), ("TWO", "2")]).await;
        let shown = secrets::conforms(&*store, &[("ONE", "1"), ("TWO", "2")]).await;
        weft_components_conformance::table::told("secretstores.local.env", &shown);
    }

    #[tokio::test]
    async fn what_is_the_runtimes_is_hidden_and_prefixes_are_taken_off() {
        let given = [
            ("APP_ONE", "1"),
            ("APP_", "x"),
            ("OTHER", "2"),
            ("APP_API_TOKEN", "t"),
            ("DAPR_API_TOKEN", "t"),
        ];
        let all = open(&[], &given).await;
        let names = |secrets: BTreeMap<String, Secret>| secrets.into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(all.bulk(Vec::new()).await.unwrap()),
            ["APP_", "APP_ONE", "OTHER"]
        );
        let value = async |name: &str| all.get(name.to_owned(), Vec::new()).await.unwrap()[name].clone();
        assert_eq!(value("APP_ONE").await, "1");
        for hidden in ["DAPR_API_TOKEN", "APP_API_TOKEN", "app_api_token", "PATH"] {
            assert_eq!(value(hidden).await, "", "{hidden}");
        }
        let prefixed = open(&[("prefix", "APP_")], &given).await;
        assert_eq!(names(prefixed.bulk(Vec::new()).await.unwrap()), ["ONE"]);
        assert_eq!(prefixed.get("ONE".into(), Vec::new()).await.unwrap()["ONE"], "1");
        assert_eq!(
            prefixed.get("API_TOKEN".into(), Vec::new()).await.unwrap()["API_TOKEN"],
            ""
        );
    }
}
