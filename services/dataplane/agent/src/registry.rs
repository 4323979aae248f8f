//! Telling the policy service which workloads run here.

use crate::{subscription::explain, upstream::Upstream};
use std::time::Duration;
use tonic::{Code, Status, transport::Channel};
use weft_proto::weft::policy::v1::{self as pb, registry_client::RegistryClient};

/// One attempt takes at most this long.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Why a registration failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The service says that this can not be registered; trying again changes nothing.
    #[error("the policy service refuses workload {id}: {reason}")]
    Refused {
        /// The workload.
        id: String,
        /// In the service's words.
        reason: String,
    },
    /// Not reachable, or in trouble of its own; worth another attempt.
    #[error("cannot register workload {id} at the policy service: {reason}")]
    Unavailable {
        /// The workload.
        id: String,
        /// What happened.
        reason: String,
    },
}

/// The policy service's registry. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Registry {
    client: RegistryClient<Channel>,
    upstream: Upstream,
    rootless: bool,
}

impl Registry {
    /// Over a channel to the policy service. Without root all workloads may be on loopback.
    pub fn new(channel: Channel, upstream: Upstream, rootless: bool) -> Self {
        Self {
            rootless,
            client: RegistryClient::new(channel),
            upstream,
        }
    }

    /// Registers once; answers with what was derived.
    pub async fn register(&self, workload: pb::Workload) -> Result<pb::Workload, RegistryError> {
        let id = workload.id.clone();
        let request = pb::RegisterRequest {
            workload: Some(workload),
            rootless: self.rootless,
        };
        let mut client = self.client.clone();
        let answer = bounded(client.register(request)).await;
        let workload = self.judge(&id, answer)?.workload;
        workload.ok_or_else(|| RegistryError::Unavailable {
            id,
            reason: "its answer has no workload".into(),
        })
    }

    /// Deregisters once.
    pub async fn deregister(&self, id: &str) -> Result<(), RegistryError> {
        let mut client = self.client.clone();
        let answer = bounded(client.deregister(pb::DeregisterRequest { id: id.into() })).await;
        self.judge(id, answer).map(|_| ())
    }

    fn judge<T>(&self, id: &str, answer: Result<T, Status>) -> Result<T, RegistryError> {
        let status = match answer {
            Ok(answer) => {
                self.upstream.connected();
                return Ok(answer);
            }
            Err(status) => status,
        };
        let reason = explain(&status);
        let id = id.to_owned();
        match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition => {
                Err(RegistryError::Refused { id, reason })
            }
            // Both end by themselves: an address is free again, a bound is not reached any more.
            Code::AlreadyExists | Code::ResourceExhausted => Err(RegistryError::Unavailable { id, reason }),
            _ => {
                self.upstream.failed(&reason);
                Err(RegistryError::Unavailable { id, reason })
            }
        }
    }
}

async fn bounded<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ATTEMPT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {} s",
            ATTEMPT.as_secs()
        ))),
    }
}
