//! Secrets, configuration and locks over gRPC.

use super::{
    Api,
    convert::{pairs, trace},
};
use crate::{
    AppContext,
    blocks::{self, AskedLock, BlockError, Blocks, ConfigurationCall, SecretCall, unlock_status},
};
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::mpsc;
use tonic::Status;
use weft_components_api::{ConfigurationHandler, ConfigurationItems};
use weft_proto::dapr::{common::v1 as common, runtime::v1 as pb};

/// Changes that wait for a client; then the store waits.
const QUEUE: usize = 16;

fn items(items: ConfigurationItems) -> std::collections::HashMap<String, common::ConfigurationItem> {
    let item = |(key, item): (String, weft_components_api::ConfigurationItem)| {
        let item = common::ConfigurationItem {
            value: item.value,
            version: item.version,
            metadata: item.metadata.into_iter().collect(),
        };
        (key, item)
    };
    items.into_iter().map(item).collect()
}

/// What a client is told, until it goes or unsubscribes, or the drain begins.
pub(super) type Told = BoxStream<'static, Result<pb::SubscribeConfigurationResponse, Status>>;

/// What changes.
struct Changes {
    changes: mpsc::Receiver<pb::SubscribeConfigurationResponse>,
    id: String,
    blocks: Blocks,
    app: Arc<AppContext>,
}

impl Stream for Changes {
    type Item = Result<pb::SubscribeConfigurationResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.changes.poll_recv(context).map(|change| change.map(Ok))
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.blocks.unwatch(&self.app, &self.id);
    }
}

struct ToClient {
    id: String,
    changes: mpsc::Sender<pb::SubscribeConfigurationResponse>,
}

impl ConfigurationHandler for ToClient {
    fn changed(&self, changed: ConfigurationItems) -> BoxFuture<'_, ()> {
        let change = pb::SubscribeConfigurationResponse {
            id: self.id.clone(),
            items: items(changed),
        };
        self.changes.send(change).map(drop).boxed()
    }
}

impl Api {
    pub(super) async fn secret(
        &self,
        request: tonic::Request<pb::GetSecretRequest>,
    ) -> Result<pb::GetSecretResponse, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let call = SecretCall::new(self.runtime.blocks(), &self.app, &asked.store_name, trace)?;
        let secret = call.get(&asked.key, pairs(asked.metadata)).await?;
        Ok(pb::GetSecretResponse {
            data: secret.into_iter().collect(),
        })
    }

    pub(super) async fn secrets(
        &self,
        request: tonic::Request<pb::GetBulkSecretRequest>,
    ) -> Result<pb::GetBulkSecretResponse, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let call = SecretCall::new(self.runtime.blocks(), &self.app, &asked.store_name, trace)?;
        let all = call.bulk(pairs(asked.metadata)).await?.into_iter();
        let data = all.map(|(name, secret)| {
            let secrets = secret.into_iter().collect();
            (name, pb::SecretResponse { secrets })
        });
        Ok(pb::GetBulkSecretResponse { data: data.collect() })
    }

    pub(super) async fn configuration(
        &self,
        request: tonic::Request<pb::GetConfigurationRequest>,
    ) -> Result<pb::GetConfigurationResponse, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let call = ConfigurationCall::new(self.runtime.blocks(), &self.app, &asked.store_name, trace)?;
        let got = call.get(asked.keys, pairs(asked.metadata)).await?;
        Ok(pb::GetConfigurationResponse { items: items(got) })
    }

    pub(super) async fn watch(
        &self,
        request: tonic::Request<pb::SubscribeConfigurationRequest>,
    ) -> Result<Told, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let call = ConfigurationCall::new(self.runtime.blocks(), &self.app, &asked.store_name, trace)?;
        let (sender, changes) = mpsc::channel(QUEUE);
        let id = blocks::new_watch_id();
        // The client knows the id before any change.
        let first = pb::SubscribeConfigurationResponse {
            id: id.clone(),
            ..Default::default()
        };
        let _ = sender.try_send(first);
        let handler = ToClient {
            id: id.clone(),
            changes: sender,
        };
        call.watch(id.clone(), asked.keys, pairs(asked.metadata), Arc::new(handler))
            .await?;
        let changes = Changes {
            changes,
            id,
            blocks: self.runtime.blocks().clone(),
            app: self.app.clone(),
        };
        Ok(changes.take_until(self.draining()).boxed())
    }

    pub(super) fn unwatch(
        &self,
        asked: pb::UnsubscribeConfigurationRequest,
    ) -> pb::UnsubscribeConfigurationResponse {
        let ok = self.runtime.blocks().unwatch(&self.app, &asked.id);
        let message = match ok {
            true => String::new(),
            false => format!(
                "failed to unsubscribe to configuration request {}: subscription does not exist",
                asked.id
            ),
        };
        pb::UnsubscribeConfigurationResponse { ok, message }
    }

    pub(super) async fn lock(
        &self,
        request: tonic::Request<pb::TryLockRequest>,
    ) -> Result<pb::TryLockResponse, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let asked = AskedLock {
            store: asked.store_name,
            resource: asked.resource_id,
            owner: asked.lock_owner,
            expiry: asked.expiry_in_seconds.into(),
        };
        let success = blocks::try_lock(self.runtime.blocks(), &self.app, asked, trace).await?;
        Ok(pb::TryLockResponse { success })
    }

    pub(super) async fn unlock(
        &self,
        request: tonic::Request<pb::UnlockRequest>,
    ) -> Result<pb::UnlockResponse, BlockError> {
        let trace = trace(&request).id;
        let asked = request.into_inner();
        let asked = AskedLock {
            store: asked.store_name,
            resource: asked.resource_id,
            owner: asked.lock_owner,
            expiry: 0,
        };
        let outcome = blocks::unlock(self.runtime.blocks(), &self.app, asked, trace).await?;
        Ok(pb::UnlockResponse {
            status: unlock_status(outcome),
        })
    }
}
