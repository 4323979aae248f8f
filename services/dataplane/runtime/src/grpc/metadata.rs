//! Metadata over gRPC.

use super::Api;
use tonic::Status;
use weft_proto::dapr::runtime::v1 as pb;

impl Api {
    pub(super) fn metadata(&self) -> pb::GetMetadataResponse {
        let (app, blocks) = (&self.app, self.runtime.blocks());
        let components = blocks.of(app);
        let components = components
            .listed
            .iter()
            .map(|component| pb::RegisteredComponents {
                name: component.name.clone(),
                r#type: component.kind.clone(),
                version: component.version.clone(),
                capabilities: component.capabilities.iter().map(ToString::to_string).collect(),
            });
        let subscriptions = blocks.subscriptions(app);
        let subscriptions = subscriptions.iter().map(|s| pb::PubsubSubscription {
            pubsub_name: s.pubsub.clone(),
            topic: s.topic.clone(),
            metadata: s.metadata.iter().cloned().collect(),
            rules: Some(pb::PubsubSubscriptionRules {
                rules: s.rules.0.iter().map(rule).collect(),
            }),
            dead_letter_topic: s.dead_letter.clone().unwrap_or_default(),
            r#type: pb::PubsubSubscriptionType::from_str_name(s.origin.as_str())
                .unwrap_or_default()
                .into(),
        });
        let channel = app.channel();
        let takes_calls = channel.port != 0;
        let protocol = match channel.protocol.as_str() {
            "" => "http",
            given => given,
        };
        pb::GetMetadataResponse {
            id: app.party().app_id.to_string(),
            registered_components: components.collect(),
            extended_metadata: app.extended().into_iter().collect(),
            subscriptions: subscriptions.collect(),
            app_connection_properties: takes_calls.then(|| pb::AppConnectionProperties {
                port: channel.port.into(),
                protocol: protocol.to_owned(),
                channel_address: "127.0.0.1".into(),
                max_concurrency: 0,
            }),
            runtime_version: weft_model::VERSION.into(),
            enabled_features: Vec::new(),
            actor_runtime: Some(pb::ActorRuntime {
                runtime_status: pb::actor_runtime::ActorRuntimeStatus::Disabled.into(),
                ..Default::default()
            }),
        }
    }

    pub(super) fn set_extended(&self, asked: pb::SetMetadataRequest) -> Result<(), Status> {
        if asked.key.is_empty() || self.app.set_extended(&asked.key, &asked.value) {
            return Ok(());
        }
        Err(Status::resource_exhausted(
            "no more metadata can be kept for this app",
        ))
    }
}

fn rule(rule: &crate::blocks::Rule) -> pb::PubsubSubscriptionRule {
    pb::PubsubSubscriptionRule {
        r#match: rule.condition().to_owned(),
        path: rule.path().to_owned(),
    }
}
