//! Publishing and bindings over gRPC.

use super::{
    Answer, Api,
    convert::{pairs, trace},
};
use crate::blocks::{self, BlockError, Entry, Publisher};
use std::collections::HashMap;
use tonic::metadata::{AsciiMetadataKey, MetadataValue};
use weft_components_api::BindingRequest;
use weft_proto::dapr::runtime::v1 as pb;

impl Api {
    pub(super) async fn publish(
        &self,
        request: tonic::Request<pb::PublishEventRequest>,
    ) -> Result<(), BlockError> {
        let trace = trace(&request);
        let asked = request.into_inner();
        let (blocks, metadata) = (self.runtime.blocks(), pairs(asked.metadata));
        let publisher = Publisher::new(
            blocks,
            &self.app,
            &asked.pubsub_name,
            &asked.topic,
            metadata,
            trace,
        )?;
        publisher
            .publish(&asked.data.into(), &asked.data_content_type)
            .await
    }

    pub(super) async fn publish_bulk(
        &self,
        request: tonic::Request<pb::BulkPublishRequest>,
    ) -> Result<pb::BulkPublishResponse, BlockError> {
        let trace = trace(&request);
        let asked = request.into_inner();
        let (blocks, metadata) = (self.runtime.blocks(), pairs(asked.metadata));
        let publisher = Publisher::new(
            blocks,
            &self.app,
            &asked.pubsub_name,
            &asked.topic,
            metadata,
            trace,
        )?;
        let entries = asked.entries.into_iter().map(|entry| Entry {
            id: entry.entry_id,
            data: entry.event.into(),
            content_type: entry.content_type,
            metadata: Some(entry.metadata.into_iter().collect()),
        });
        let failed = publisher.publish_bulk(entries.collect()).await?;
        if !failed.is_empty() {
            return Err(publisher.incomplete(&failed));
        }
        Ok(pb::BulkPublishResponse::default())
    }

    pub(super) async fn binding(
        &self,
        request: tonic::Request<pb::InvokeBindingRequest>,
    ) -> Answer<pb::InvokeBindingResponse> {
        let trace = trace(&request);
        let asked = request.into_inner();
        let mut metadata: HashMap<String, String> = asked.metadata;
        metadata.entry("traceparent".into()).or_insert(trace.parent);
        let request = BindingRequest {
            operation: asked.operation,
            data: asked.data.into(),
            metadata: pairs(metadata),
        };
        let done = blocks::invoke_binding(self.runtime.blocks(), &self.app, &asked.name, request, trace.id);
        let done = done.await?.unwrap_or_default();
        let mut response = tonic::Response::new(pb::InvokeBindingResponse {
            data: done.data.to_vec(),
            metadata: done.metadata.iter().cloned().collect(),
        });
        for (key, value) in done.metadata {
            let key = format!("metadata.{key}").to_ascii_lowercase();
            let key = AsciiMetadataKey::from_bytes(key.as_bytes());
            if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
                response.metadata_mut().insert(key, value);
            }
        }
        Ok(response)
    }
}
