//! Everything that can reach the owner.

use super::orders::{Deletion, Order};
use crate::{
    files::Reading,
    world::{ExplainError, ObjectKey, RegisterError, Session, Written},
};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use weft_proto::weft::policy::v1 as pb;
use weft_store::StoreError;

/// Why a registration or its removal did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error(
        "this policy service reads its objects from a Kubernetes cluster: write them there, with kubectl"
    )]
    OfCluster,
    #[error("{0}")]
    Full(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    Register {
        node: String,
        workload: Box<pb::Workload>,
        reply: oneshot::Sender<Result<pb::Workload, Refused>>,
    },
    Deregister {
        node: String,
        id: String,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Answered with a number for [`Event::News`] and a signal for when to ask.
    Follow {
        reply: oneshot::Sender<(u64, watch::Receiver<()>)>,
    },
    News {
        number: u64,
        reply: oneshot::Sender<Option<pb::WatchResponse>>,
    },
    Connect {
        node: String,
        session: Session,
        hello: pb::Hello,
    },
    AskFor {
        node: String,
        namespaces: Vec<String>,
    },
    Ack {
        node: String,
        session: u64,
        version: u64,
    },
    Nack {
        node: String,
        session: u64,
        version: u64,
        reasons: Vec<String>,
    },
    Disconnect {
        node: String,
        session: u64,
    },
    List {
        request: pb::ListRequest,
        reply: oneshot::Sender<pb::ListResponse>,
    },
    Rejected {
        reply: oneshot::Sender<pb::RejectedResponse>,
    },
    Apply {
        order: Box<Order>,
        reply: oneshot::Sender<Result<pb::ApplyResponse, OrderError>>,
    },
    Delete {
        deletion: Deletion,
        reply: oneshot::Sender<Result<pb::DeleteResponse, OrderError>>,
    },
    /// Statuses to be written into a cluster, some from after a key on; answered with where to go on.
    Statuses {
        after: Option<ObjectKey>,
        reply: oneshot::Sender<(Vec<Written>, Option<ObjectKey>)>,
    },
    Explain {
        request: Box<pb::ExplainRequest>,
        reply: oneshot::Sender<Result<pb::ExplainResponse, ExplainError>>,
    },
}

/// What there is at the start.
#[derive(Debug)]
pub(crate) enum First {
    /// All that the folder says.
    Folder(Vec<Reading>),
    /// Nothing yet: until the cluster is read, what was in force before is.
    Cluster,
}
