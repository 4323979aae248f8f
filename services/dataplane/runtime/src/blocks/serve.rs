//! The paths of the building blocks' HTTP API.

use super::{
    Blocks, binding,
    configuration::{self, ConfigurationOf},
    lock, publish_http, secrets,
    state_http::{self, Asked},
};
use crate::{AppContext, path::percent_decode};
use http::{Request, Response};
use weft_l7::Body;

/// What a path asks of a building block; names are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// `state/{store}`, and what comes after it.
    State { store: String, of: StateOf },
    /// `publish/{pubsub}/{topic…}`, or in bulk.
    Publish {
        pubsub: String,
        topic: String,
        bulk: bool,
    },
    /// `bindings/{name}`
    Binding(String),
    /// `secrets/{store}/{key}`; without a key all of them.
    Secret { store: String, key: Option<String> },
    /// `configuration/{store}`, and what comes after it.
    Configuration { store: String, of: ConfigurationOf },
    /// `lock/{store}`, or `unlock`.
    Lock { store: String, locks: bool },
}

/// Of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StateOf {
    Store,
    Bulk,
    Transaction,
    Query,
    Key(String),
}

impl Call {
    /// Reads what comes after the version in a path. `None`: it is no call of a building block.
    pub fn read(version: &str, rest: &str) -> Option<Self> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let mut parts = rest.split('/');
        let block = parts.next()?;
        let parts: Vec<&str> = parts.collect();
        let name = |part: &str| percent_decode(part).filter(|name| !name.is_empty());
        match (version, block, parts.as_slice()) {
            ("v1.0-alpha1", "state", [store, "query"]) => Some(Self::State {
                store: name(store)?,
                of: StateOf::Query,
            }),
            ("v1.0", "state", [store]) => Some(Self::State {
                store: name(store)?,
                of: StateOf::Store,
            }),
            ("v1.0", "state", [store, of]) => Some(Self::State {
                store: name(store)?,
                of: match *of {
                    "bulk" => StateOf::Bulk,
                    "transaction" => StateOf::Transaction,
                    key => StateOf::Key(name(key)?),
                },
            }),
            ("v1.0" | "v1.0-alpha1", "publish", ["bulk", pubsub, topic @ ..]) if !topic.is_empty() => {
                Some(Self::Publish {
                    pubsub: name(pubsub)?,
                    topic: percent_decode(&topic.join("/"))?,
                    bulk: true,
                })
            }
            ("v1.0", "publish", [pubsub, topic @ ..]) => Some(Self::Publish {
                pubsub: name(pubsub)?,
                topic: percent_decode(&topic.join("/"))?,
                bulk: false,
            }),
            ("v1.0", "bindings", [binding]) => Some(Self::Binding(name(binding)?)),
            ("v1.0", "secrets", [store, key]) => Some(Self::Secret {
                store: name(store)?,
                key: match *key {
                    "bulk" => None,
                    key => Some(name(key)?),
                },
            }),
            ("v1.0" | "v1.0-alpha1", "configuration", [store, of @ ..]) => Some(Self::Configuration {
                store: name(store)?,
                of: match of {
                    [] => ConfigurationOf::Items,
                    ["subscribe"] => ConfigurationOf::Subscribe,
                    [id, "unsubscribe"] => ConfigurationOf::Unsubscribe(name(id)?),
                    _ => return None,
                },
            }),
            ("v1.0-alpha1", "lock" | "unlock", [store]) => Some(Self::Lock {
                store: name(store)?,
                locks: block == "lock",
            }),
            _ => None,
        }
    }
}

/// Answers one request.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    call: &Call,
    request: Request<Body>,
) -> Response<Body> {
    match call {
        Call::State { store, of } => {
            let asked = match of {
                // `bulk` and `transaction` are keys as well, when they are read or removed.
                StateOf::Bulk | StateOf::Transaction if is_of_key(&request) => Asked::Key(match of {
                    StateOf::Bulk => "bulk",
                    _ => "transaction",
                }),
                StateOf::Store => Asked::Store,
                StateOf::Bulk => Asked::Bulk,
                StateOf::Transaction => Asked::Transaction,
                StateOf::Query => Asked::Query,
                StateOf::Key(key) => Asked::Key(key),
            };
            state_http::serve(blocks, app, store, asked, request).await
        }
        Call::Publish { pubsub, topic, bulk } => {
            publish_http::serve(blocks, app, pubsub, topic, *bulk, request).await
        }
        Call::Binding(name) => binding::serve(blocks, app, name, request).await,
        Call::Secret { store, key } => secrets::serve(blocks, app, store, key.as_deref(), request).await,
        Call::Configuration { store, of } => configuration::serve(blocks, app, store, of, request).await,
        Call::Lock { store, locks } => lock::serve(blocks, app, store, *locks, request).await,
    }
}

fn is_of_key(request: &Request<Body>) -> bool {
    matches!(*request.method(), http::Method::GET | http::Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        let state = |store: &str, of| {
            Some(Call::State {
                store: store.into(),
                of,
            })
        };
        let publish = |pubsub: &str, topic: &str, bulk| {
            Some(Call::Publish {
                pubsub: pubsub.into(),
                topic: topic.into(),
                bulk,
            })
        };
        let secret = |key: Option<&str>| {
            Some(Call::Secret {
                store: "vault".into(),
                key: key.map(str::to_owned),
            })
        };
        let configuration = |of| {
            Some(Call::Configuration {
                store: "conf".into(),
                of,
            })
        };
        let lock = |locks| {
            Some(Call::Lock {
                store: "locks".into(),
                locks,
            })
        };
        for (version, rest, wanted) in [
            ("v1.0", "state/store", state("store", StateOf::Store)),
            ("v1.0", "state/store/", state("store", StateOf::Store)),
            (
                "v1.0",
                "state/st%20ore/k%2Fey",
                state("st ore", StateOf::Key("k/ey".into())),
            ),
            ("v1.0", "state/store/bulk", state("store", StateOf::Bulk)),
            (
                "v1.0",
                "state/store/transaction",
                state("store", StateOf::Transaction),
            ),
            ("v1.0-alpha1", "state/store/query", state("store", StateOf::Query)),
            (
                "v1.0",
                "state/store/query",
                state("store", StateOf::Key("query".into())),
            ),
            ("v1.0", "state/store/a/b", None),
            ("v1.0", "state", None),
            ("v1.0-alpha1", "state/store", None),
            ("v1.0", "publish/bus/orders", publish("bus", "orders", false)),
            (
                "v1.0",
                "publish/bus/orders/eu%20west",
                publish("bus", "orders/eu west", false),
            ),
            ("v1.0", "publish/bus", publish("bus", "", false)),
            ("v1.0", "publish/bulk/bus/orders", publish("bus", "orders", true)),
            (
                "v1.0-alpha1",
                "publish/bulk/bus/orders",
                publish("bus", "orders", true),
            ),
            // A topic of a broker that is called so.
            ("v1.0", "publish/bulk/orders", publish("bulk", "orders", false)),
            ("v1.0-alpha1", "publish/bus/orders", None),
            ("v1.0", "bindings/files", Some(Call::Binding("files".into()))),
            ("v1.0", "bindings/files/x", None),
            ("v1.0", "bindings/%ff", None),
            ("v1.0", "secrets/vault/a%20b", secret(Some("a b"))),
            ("v1.0", "secrets/vault/bulk", secret(None)),
            ("v1.0", "secrets/vault", None),
            ("v1.0-alpha1", "secrets/vault/a", None),
            (
                "v1.0",
                "configuration/conf",
                configuration(ConfigurationOf::Items),
            ),
            (
                "v1.0-alpha1",
                "configuration/conf/subscribe",
                configuration(ConfigurationOf::Subscribe),
            ),
            (
                "v1.0",
                "configuration/conf/x-1/unsubscribe",
                configuration(ConfigurationOf::Unsubscribe("x-1".into())),
            ),
            ("v1.0", "configuration/conf/x-1", None),
            ("v1.0-alpha1", "lock/locks", lock(true)),
            ("v1.0-alpha1", "unlock/locks", lock(false)),
            ("v1.0", "lock/locks", None),
        ] {
            assert_eq!(Call::read(version, rest), wanted, "{version}/{rest}");
        }
    }
}
