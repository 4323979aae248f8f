//! Secrets, by HTTP and gRPC: what an app's Configuration lets it see of its stores.

use super::{
    BlockError, Blocks,
    app::Secrets,
    record::{Record, failure},
    request::{Query, empty_or_json},
};
use crate::{AppContext, error::empty};
use http::{Method, Request, Response, StatusCode};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use weft_components_api::Secret;
use weft_flows::Kind;
use weft_l7::Body;

/// One app at one of its secret stores, in one call.
pub(crate) struct SecretCall<'a> {
    blocks: &'a Blocks,
    app: &'a AppContext,
    secrets: Arc<Secrets>,
    trace_id: [u8; 16],
}

impl<'a> SecretCall<'a> {
    /// At the store of this name.
    pub fn new(
        blocks: &'a Blocks,
        app: &'a AppContext,
        store: &str,
        trace_id: [u8; 16],
    ) -> Result<Self, BlockError> {
        let view = blocks.of(app);
        if view.secrets.is_empty() {
            return Err(BlockError::secret_stores_not_configured());
        }
        let found = view.secrets.get(store).cloned();
        Ok(Self {
            blocks,
            app,
            secrets: found.ok_or_else(|| BlockError::secret_store_not_found(store))?,
            trace_id,
        })
    }

    async fn recorded<T>(
        &self,
        what: &str,
        object: &str,
        work: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let (party, name) = (&self.secrets.party, &self.secrets.name);
        let object = format!("{name}/{object}");
        let record = Record::call(
            Kind::Secret,
            self.app.party(),
            self.app.proof(),
            party,
            what,
            &object,
        );
        let done = work.await;
        let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
        let record = record.traced(self.trace_id);
        record.end(&self.blocks.flows(), status, failure(status));
        done
    }

    /// One secret.
    pub async fn get(&self, key: &str, metadata: Vec<(String, String)>) -> Result<Secret, BlockError> {
        let name = &self.secrets.name;
        let get = async {
            if !self.blocks.may_see(self.app, name, key) {
                return Err(BlockError::secret_denied(name, key));
            }
            let got = self.secrets.store.get(key.to_owned(), metadata).await;
            got.map_err(|e| BlockError::secret_get(name, key, &e.to_string()))
        };
        self.recorded("get", key, get).await
    }

    /// All that the app may see.
    pub async fn bulk(
        &self,
        metadata: Vec<(String, String)>,
    ) -> Result<BTreeMap<String, Secret>, BlockError> {
        let name = &self.secrets.name;
        let bulk = async {
            let all = self.secrets.store.bulk(metadata).await;
            let mut all = all.map_err(|e| BlockError::secrets_get(name, &e.to_string()))?;
            all.retain(|key, _| self.blocks.may_see(self.app, name, key));
            Ok(all)
        };
        self.recorded("bulk-get", "", bulk).await
    }
}

/// `GET /v1.0/secrets/{store}/{key}`; without a key `/bulk`.
pub(crate) async fn serve(
    blocks: &Blocks,
    app: &AppContext,
    store: &str,
    key: Option<&str>,
    mut request: Request<Body>,
) -> Response<Body> {
    if request.method() != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let trace_id = weft_l7::trace::trace(request.headers_mut());
    let metadata = Query::of(request.uri()).metadata();
    let answer = async {
        let call = SecretCall::new(blocks, app, store, trace_id)?;
        let object = |secret: Secret| Value::Object(secret.into_iter().map(|(k, v)| (k, v.into())).collect());
        Ok::<_, BlockError>(match key {
            Some(key) => object(call.get(key, metadata).await?),
            None => {
                let all = call.bulk(metadata).await?.into_iter();
                Value::Object(all.map(|(name, secret)| (name, object(secret))).collect())
            }
        })
    };
    match answer.await {
        Ok(value) => empty_or_json(Some(value)),
        Err(e) => e.into(),
    }
}
