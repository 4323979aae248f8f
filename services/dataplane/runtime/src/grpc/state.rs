//! State over gRPC.

use super::{
    Api,
    convert::{pairs, trace},
};
use crate::blocks::{BlockError, StateCall, Write, WriteOperation, item_metadata};
use std::collections::HashMap;
use weft_components_api::Item;
use weft_proto::dapr::{common::v1 as common, runtime::v1 as pb};

fn concurrency(options: &common::StateOptions) -> &'static str {
    use common::state_options::StateConcurrency as C;
    match options.concurrency() {
        C::ConcurrencyFirstWrite => "first-write",
        C::ConcurrencyLastWrite => "last-write",
        C::ConcurrencyUnspecified => "",
    }
}

fn consistency(options: &common::StateOptions) -> &'static str {
    use common::state_options::StateConsistency as C;
    match options.consistency() {
        C::ConsistencyEventual => "eventual",
        C::ConsistencyStrong => "strong",
        C::ConsistencyUnspecified => "",
    }
}

fn write(item: common::StateItem) -> Write {
    let options = item.options.unwrap_or_default();
    Write {
        key: item.key,
        value: item.value.into(),
        etag: item.etag.map(|etag| etag.value),
        concurrency: concurrency(&options).to_owned(),
        consistency: consistency(&options).to_owned(),
        metadata: pairs(item.metadata),
    }
}

/// A value that says of itself that it is JSON is kept as JSON.
fn saved(item: common::StateItem) -> Result<Write, BlockError> {
    let is_json = item
        .metadata
        .get("contentType")
        .is_some_and(|kind| kind == "application/json");
    let mut write = write(item);
    if is_json {
        let value: serde_json::Value =
            serde_json::from_slice(&write.value).map_err(|e| BlockError::malformed(e.to_string()))?;
        write.value = value.to_string().into();
    }
    Ok(write)
}

fn metadata(item: &Item) -> HashMap<String, String> {
    item_metadata(item)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl Api {
    fn store<T>(&self, request: &tonic::Request<T>, name: &str) -> Result<StateCall<'_>, BlockError> {
        StateCall::new(self.runtime.blocks(), &self.app, name, trace(request).id, false)
    }

    pub(super) async fn state_get(
        &self,
        request: tonic::Request<pb::GetStateRequest>,
    ) -> Result<pb::GetStateResponse, BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        let asked = request.into_inner();
        let item = call.get(&asked.key, pairs(asked.metadata)).await?;
        Ok(
            item.map_or_else(pb::GetStateResponse::default, |item| pb::GetStateResponse {
                metadata: metadata(&item),
                etag: item.etag.unwrap_or_default(),
                data: item.value.to_vec(),
            }),
        )
    }

    pub(super) async fn state_bulk_get(
        &self,
        request: tonic::Request<pb::GetBulkStateRequest>,
    ) -> Result<pb::GetBulkStateResponse, BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        let asked = request.into_inner();
        if asked.keys.is_empty() {
            return Ok(pb::GetBulkStateResponse::default());
        }
        let parallelism = usize::try_from(asked.parallelism).unwrap_or(0);
        let items = call
            .bulk_get(&asked.keys, parallelism, &pairs(asked.metadata))
            .await?;
        let items = asked.keys.into_iter().zip(items).map(|(key, item)| match item {
            Ok(None) => pb::BulkStateItem {
                key,
                ..Default::default()
            },
            Ok(Some(item)) => pb::BulkStateItem {
                key,
                metadata: metadata(&item),
                etag: item.etag.unwrap_or_default(),
                data: item.value.to_vec(),
                ..Default::default()
            },
            Err(error) => pb::BulkStateItem {
                key,
                error: error.to_string(),
                ..Default::default()
            },
        });
        Ok(pb::GetBulkStateResponse {
            items: items.collect(),
        })
    }

    pub(super) async fn state_save(
        &self,
        request: tonic::Request<pb::SaveStateRequest>,
    ) -> Result<(), BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        let states = request.into_inner().states;
        if states.iter().any(|item| item.key.is_empty()) {
            return Err(BlockError::empty_key());
        }
        let writes = states.into_iter().map(saved).collect::<Result<Vec<_>, _>>()?;
        match writes.is_empty() {
            true => Ok(()),
            false => call.save(writes).await,
        }
    }

    pub(super) fn state_query(
        &self,
        request: tonic::Request<pb::QueryStateRequest>,
    ) -> Result<pb::QueryStateResponse, BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        Err(call.query())
    }

    pub(super) async fn state_delete(
        &self,
        request: tonic::Request<pb::DeleteStateRequest>,
    ) -> Result<(), BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        let asked = request.into_inner();
        let item = common::StateItem {
            key: asked.key,
            etag: asked.etag,
            options: asked.options,
            metadata: asked.metadata,
            ..Default::default()
        };
        call.delete(write(item)).await
    }

    pub(super) async fn state_delete_bulk(
        &self,
        request: tonic::Request<pb::DeleteBulkStateRequest>,
    ) -> Result<(), BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        call.delete_bulk(request.into_inner().states.into_iter().map(write).collect())
            .await
    }

    pub(super) async fn state_transact(
        &self,
        request: tonic::Request<pb::ExecuteStateTransactionRequest>,
    ) -> Result<(), BlockError> {
        let call = self.store(&request, &request.get_ref().store_name)?;
        call.needs_transactions()?;
        let operations = request.into_inner().operations.into_iter().map(|operation| {
            let write = write(operation.request.unwrap_or_default());
            match operation.operation_type.as_str() {
                "upsert" => Ok(WriteOperation::Upsert(write)),
                "delete" => Ok(WriteOperation::Delete(write)),
                other => Err(BlockError::operation_not_supported(other)),
            }
        });
        let operations = operations.collect::<Result<Vec<_>, BlockError>>()?;
        call.transact(operations).await
    }
}
