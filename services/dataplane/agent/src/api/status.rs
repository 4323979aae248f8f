//! `weft.dataplane.v1.Status`.

use crate::{
    agent::{Shared, active, inactive},
    gateways::Failures,
    upstream::Upstream,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::transport::Channel;
use tonic::{Request, Response, Status as Failure};
use weft_proto::weft::{
    dataplane::v1::{Capability, Datapath, GetRequest, GetResponse, status_server::Status},
    policy::v1::{RejectedRequest, RejectedResponse, resources_client::ResourcesClient},
};
use weft_tls::SvidCell;

/// What does not change while the agent runs, and where the rest is read.
#[derive(Debug)]
pub struct Facts {
    /// When the agent started.
    pub started: SystemTime,
    /// What is enforced here, and what not and why.
    pub capabilities: Vec<Capability>,
    /// Ports of gateways that are not open.
    pub gateways: Failures,
    /// The control services.
    pub upstreams: Vec<Upstream>,
    /// The node's own certificate.
    pub svid: SvidCell,
    /// To the policy service.
    pub policy: Channel,
}

/// Of components, in one answer.
const MAX_PROBLEMS: usize = 5;
/// How long an answer may wait for the policy service.
const PATIENCE: Duration = Duration::from_secs(1);

impl Facts {
    /// What was written and is not in force; nothing if that cannot be learned now.
    async fn rejected(&self) -> Option<RejectedResponse> {
        let mut client = ResourcesClient::new(self.policy.clone());
        let asked = tokio::time::timeout(PATIENCE, client.rejected(RejectedRequest {})).await;
        Some(asked.ok()?.ok()?.into_inner())
    }
}

#[derive(Debug)]
pub struct Service {
    pub shared: Arc<Shared>,
    pub facts: Facts,
}

impl Service {
    /// With that of gateways, once there are any.
    fn capabilities(&self) -> Vec<Capability> {
        let mut all = self.facts.capabilities.clone();
        match self.facts.gateways.text() {
            Some(reason) => all.push(inactive("gateway", &reason)),
            None if self.shared.view.mesh.ingress.get().is_some() => all.push(active("gateway")),
            None => {}
        }
        let blocks = self.shared.blocks();
        match components(&blocks.problems()) {
            Some(reason) => all.push(inactive("components", &reason)),
            None if blocks.has_components() => all.push(active("components")),
            None => {}
        }
        all
    }
}

/// Components and what they hang on that can not be used, in words; `None` when all can.
fn components(problems: &[String]) -> Option<String> {
    if problems.is_empty() {
        return None;
    }
    let mut shown: Vec<&str> = problems.iter().take(MAX_PROBLEMS).map(String::as_str).collect();
    let more = match problems.len().saturating_sub(MAX_PROBLEMS) {
        0 => String::new(),
        more => format!("and {more} more: the agent's log has them"),
    };
    shown.extend(Some(more.as_str()).filter(|more| !more.is_empty()));
    Some(shown.join("; "))
}

#[tonic::async_trait]
impl Status for Service {
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Failure> {
        let svid = self.facts.svid.get();
        let not_after = svid
            .as_ref()
            .map(|s| (UNIX_EPOCH + Duration::from_secs(s.identity().not_after)).into());
        Ok(Response::new(GetResponse {
            node: self.shared.node.clone(),
            version: weft_model::VERSION.into(),
            started_at: Some(self.facts.started.into()),
            capabilities: self.capabilities(),
            upstreams: self.facts.upstreams.iter().map(Upstream::status).collect(),
            workloads: self.shared.workloads(),
            policy_version: self.shared.view.mesh.position().version,
            spiffe_id: svid.map_or_else(String::new, |s| s.id().to_string()),
            certificate_not_after: not_after,
            rejected: self.facts.rejected().await,
            datapath: self.shared.kernel.as_ref().map(|kernel| {
                let shown = kernel.shown();
                Datapath {
                    endpoints: shown.counts.endpoints as u64,
                    addresses: shown.counts.addresses as u64,
                    policy_sets: shown.counts.sets as u64,
                    policy_entries: shown.counts.entries as u64,
                    problems: shown.problems,
                    events_lost: self.shared.flows.lost(),
                }
            }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_components_are_told_up_to_a_bound() {
        assert_eq!(components(&[]), None);
        let few: Vec<String> = (0..2).map(|i| format!("app a: component b/{i}: wrong")).collect();
        let text = components(&few).unwrap_or_default();
        assert_eq!(text, "app a: component b/0: wrong; app a: component b/1: wrong");
        let many = vec!["wrong".to_owned(); 8];
        let text = components(&many).unwrap_or_default();
        assert!(text.ends_with("; and 3 more: the agent's log has them"), "{text}");
    }
}
