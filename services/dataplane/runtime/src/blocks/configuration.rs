//! Configuration, by HTTP and gRPC: items, and being told when they change.

use super::{
    BlockError, Blocks, Consumer, Slot,
    app::Configuration,
    record::{Record, failure},
    request::{Query, empty_or_json},
};
use crate::{AppContext, error::empty};
use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc};
use weft_components_api::{
    ConfigurationHandler, ConfigurationItem, ConfigurationItems, ConfigurationStore, Guard,
};
use weft_flows::Kind;
use weft_l7::Body;

/// Of one app at once.
const MAX_WATCHES: usize = 1024;
/// Keys of one request.
const MAX_KEYS: usize = 1024;

/// What an app is told of, by the ids that it knows it by.
#[derive(Default)]
pub(crate) struct Watches(Mutex<BTreeMap<String, Watch>>);

struct Watch {
    store: String,
    of: Arc<dyn ConfigurationStore>,
    keys: Vec<String>,
    metadata: Vec<(String, String)>,
    handler: Arc<dyn ConfigurationHandler>,
    /// `None`: the store that it was of is not there now.
    _guard: Option<Guard>,
}

impl Watches {
    /// Ends one; whether there was one.
    pub fn end(&self, id: &str) -> bool {
        let ended = self.0.lock().remove(id);
        ended.is_some()
    }

    /// Ends all.
    pub fn clear(&self) {
        let ended = std::mem::take(&mut *self.0.lock());
        drop(ended);
    }

    /// Stores were opened anew: what watched the old ones watches the new.
    pub async fn follow(&self, stores: &BTreeMap<String, Arc<Configuration>>) {
        let stale: Vec<_> = {
            let watches = self.0.lock();
            let changed = watches.iter().filter_map(|(id, watch)| {
                let now = stores.get(&watch.store)?;
                let same = std::ptr::addr_eq(Arc::as_ptr(&now.store), Arc::as_ptr(&watch.of));
                let again = (
                    now.store.clone(),
                    watch.keys.clone(),
                    watch.metadata.clone(),
                    watch.handler.clone(),
                );
                (!same).then(|| (id.clone(), again))
            });
            changed.collect()
        };
        for (id, (store, keys, metadata, handler)) in stale {
            let guard = match store.watch(keys, metadata, handler).await {
                Ok(guard) => Some(guard),
                Err(error) => {
                    tracing::error!(%error, "configuration is not watched any more");
                    None
                }
            };
            if let Some(watch) = self.0.lock().get_mut(&id) {
                watch.of = store;
                watch._guard = guard;
            }
        }
    }
}

/// One app at one of its configuration stores, in one call.
pub(crate) struct ConfigurationCall<'a> {
    blocks: &'a Blocks,
    app: &'a AppContext,
    configuration: Arc<Configuration>,
    trace_id: [u8; 16],
}

impl<'a> ConfigurationCall<'a> {
    /// At the store of this name.
    pub fn new(
        blocks: &'a Blocks,
        app: &'a AppContext,
        store: &str,
        trace_id: [u8; 16],
    ) -> Result<Self, BlockError> {
        let view = blocks.of(app);
        if view.configurations.is_empty() {
            return Err(BlockError::configuration_not_configured());
        }
        let found = view.configurations.get(store).cloned();
        Ok(Self {
            blocks,
            app,
            configuration: found.ok_or_else(|| BlockError::configuration_not_found(store))?,
            trace_id,
        })
    }

    async fn recorded<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let Configuration { party, name, .. } = &*self.configuration;
        let record = Record::call(
            Kind::Configuration,
            self.app.party(),
            self.app.proof(),
            party,
            what,
            name,
        );
        let done = work.await;
        let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
        let record = record.traced(self.trace_id);
        record.end(&self.blocks.flows(), status, failure(status));
        done
    }

    /// Items that are there; no keys: all.
    pub async fn get(
        &self,
        keys: Vec<String>,
        metadata: Vec<(String, String)>,
    ) -> Result<ConfigurationItems, BlockError> {
        bounded(&keys)?;
        let Configuration { store, name, .. } = &*self.configuration;
        let get = async {
            let got = store.get(keys.clone(), metadata).await;
            got.map_err(|e| BlockError::configuration_get(name, &keys, &e.to_string()))
        };
        self.recorded("get", get).await
    }

    /// From now on `handler` is told of changes; answers the id by which that ends.
    pub async fn watch(
        &self,
        id: String,
        keys: Vec<String>,
        metadata: Vec<(String, String)>,
        handler: Arc<dyn ConfigurationHandler>,
    ) -> Result<(), BlockError> {
        bounded(&keys)?;
        let Configuration { store, name, .. } = &*self.configuration;
        let failed = |error: &str| BlockError::configuration_subscribe(name, &keys, error);
        let watch = async {
            let slot = self
                .blocks
                .slot(self.app)
                .ok_or_else(|| failed("the app is gone"))?;
            let guard = store.watch(keys.clone(), metadata.clone(), handler.clone()).await;
            let watch = Watch {
                store: name.clone(),
                of: store.clone(),
                keys: keys.clone(),
                metadata,
                handler,
                _guard: Some(guard.map_err(|e| failed(&e.to_string()))?),
            };
            let mut watches = slot.watches.0.lock();
            if watches.len() >= MAX_WATCHES {
                return Err(failed(&format!(
                    "the app has {MAX_WATCHES} subscriptions already"
                )));
            }
            // Its handler holds the app; who comes after its end must not be held for ever.
            if slot.gone.is_cancelled() {
                return Err(failed("the app is gone"));
            }
            watches.insert(id, watch);
            Ok(())
        };
        self.recorded("subscribe", watch).await
    }
}

fn bounded(keys: &[String]) -> Result<(), BlockError> {
    match keys.len() > MAX_KEYS {
        true => Err(BlockError::malformed(format!(
            "more than {MAX_KEYS} keys in one request"
        ))),
        false => Ok(()),
    }
}

/// A new id of a subscription.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn item(item: &ConfigurationItem) -> Value {
    let mut object = Map::new();
    for (name, value) in [("value", &item.value), ("version", &item.version)] {
        if !value.is_empty() {
            object.insert(name.into(), value.as_str().into());
        }
    }
    if !item.metadata.is_empty() {
        let metadata = item.metadata.iter().map(|(k, v)| (k.clone(), v.as_str().into()));
        object.insert("metadata".into(), Value::Object(metadata.collect()));
    }
    Value::Object(object)
}

fn items(items: &ConfigurationItems) -> Value {
    Value::Object(
        items
            .iter()
            .map(|(key, value)| (key.clone(), item(value)))
            .collect(),
    )
}

/// Tells the app by HTTP: `POST /configuration/{store}/{key}` for each key.
struct ToApp {
    id: String,
    store: String,
    consumer: Consumer,
}

impl ConfigurationHandler for ToApp {
    fn changed(&self, changed: ConfigurationItems) -> BoxFuture<'_, ()> {
        async move {
            let body = json!({ "id": self.id, "items": items(&changed) }).to_string();
            for key in changed.keys() {
                let path = format!("/configuration/{}/{}", encoded(&self.store), encoded(key));
                let headers = vec![(header::CONTENT_TYPE.to_string(), "application/json".to_owned())];
                let _turn = self.consumer.turn(body.len()).await;
                let asked = self
                    .consumer
                    .ask(Method::POST, &path, headers, body.clone().into())
                    .await;
                let problem = match asked {
                    Ok(answer) if answer.status == StatusCode::OK => continue,
                    Ok(answer) => format!("status {}", answer.status.as_u16()),
                    Err(error) => error,
                };
                let app = &self.consumer.slot.owner.app_id;
                tracing::error!(
                    app,
                    store = self.store,
                    problem,
                    "error sending configuration item to the app"
                );
            }
        }
        .boxed()
    }
}

/// What a path can not hold is encoded.
fn encoded(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What a path asks of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConfigurationOf {
    Items,
    Subscribe,
    Unsubscribe(String),
}

/// `GET /v1.0/configuration/{store}`, `…/subscribe` or `…/{id}/unsubscribe`.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    store: &str,
    of: &ConfigurationOf,
    mut request: Request<Body>,
) -> Response<Body> {
    if request.method() != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let trace_id = weft_l7::trace::trace(request.headers_mut());
    let query = Query::of(request.uri());
    let (keys, metadata) = (query.all("key"), query.metadata());
    let answer = async {
        let call = ConfigurationCall::new(blocks, app, store, trace_id)?;
        Ok::<_, BlockError>(match of {
            ConfigurationOf::Items => {
                let got = call.get(keys, metadata).await?;
                empty_or_json((!got.is_empty()).then(|| items(&got)))
            }
            ConfigurationOf::Subscribe => {
                let slot = blocks.slot(app).filter(|_| app.channel().port != 0);
                let slot = slot.ok_or_else(BlockError::no_app_channel)?;
                let id = new_id();
                let handler = ToApp {
                    id: id.clone(),
                    store: store.to_owned(),
                    consumer: Consumer {
                        slot,
                        surroundings: blocks.0.surroundings.clone(),
                    },
                };
                call.watch(id.clone(), keys, metadata, Arc::new(handler)).await?;
                empty_or_json(Some(json!({ "id": id })))
            }
            ConfigurationOf::Unsubscribe(id) => match end(blocks.slot(app).as_deref(), id) {
                Ok(()) => empty_or_json(Some(json!({ "ok": true }))),
                Err(message) => {
                    crate::error::json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "message": message }))
                }
            },
        })
    };
    answer.await.unwrap_or_else(Into::into)
}

/// Ends a subscription of an app.
fn end(slot: Option<&Slot>, id: &str) -> Result<(), String> {
    match slot.is_some_and(|slot| slot.watches.end(id)) {
        true => Ok(()),
        false => Err(format!(
            "failed to unsubscribe to configuration request {id}: subscription with id {id} does not exist"
        )),
    }
}

impl Blocks {
    /// Ends a subscription to configuration; whether there was one.
    pub(crate) fn unwatch(&self, app: &AppContext, id: &str) -> bool {
        self.slot(app).is_some_and(|slot| slot.watches.end(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_told_with_what_it_has() {
        let full = ConfigurationItem {
            value: "1".into(),
            version: "2".into(),
            metadata: [("a".to_owned(), "b".to_owned())].into(),
        };
        assert_eq!(
            item(&full),
            json!({"value": "1", "version": "2", "metadata": {"a": "b"}})
        );
        assert_eq!(item(&ConfigurationItem::default()), json!({}));
        assert_eq!(encoded("a/b c%"), "a%2Fb%20c%25");
    }
}
