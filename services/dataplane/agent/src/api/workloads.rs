//! `weft.dataplane.v1.Workloads`.

use crate::{
    agent::Shared,
    table::{Table, TableError},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_proto::weft::dataplane::v1::{
    AddRequest, AddResponse, AttachRequest, AttachResponse, ListRequest, ListResponse, RemoveRequest,
    RemoveResponse, WorkloadSpec, workloads_server::Workloads,
};

/// An attached launcher hears from the agent so often.
const HEARTBEAT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Service {
    pub shared: Arc<Shared>,
    pub table: Table,
}

#[tonic::async_trait]
impl Workloads for Service {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddResponse>, Status> {
        let placed = self.table.add(spec(request.into_inner().spec)?, false).await?;
        Ok(Response::new(AddResponse { placed: Some(placed) }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        self.table.remove(&request.into_inner().id).await?;
        Ok(Response::new(RemoveResponse {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let workloads = self.shared.workloads();
        Ok(Response::new(ListResponse { workloads }))
    }

    type AttachStream = ReceiverStream<Result<AttachResponse, Status>>;

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<Self::AttachStream>, Status> {
        let request = request.into_inner();
        let placed = if request.resume_id.is_empty() {
            self.table.add(spec(request.spec)?, true).await?
        } else {
            self.table.resume(&request.resume_id).await?
        };
        let id = placed.id.clone();
        let (answers, stream) = mpsc::channel(1);
        let first = AttachResponse { placed: Some(placed) };
        let (table, mut drain) = (self.table.clone(), self.shared.drain.clone());
        tokio::spawn(async move {
            let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
            let mut next = Some(first);
            loop {
                if let Some(answer) = next.take()
                    && answers.send(Ok(answer)).await.is_err()
                {
                    return table.remove_later(id);
                }
                tokio::select! {
                    _ = beat.tick() => next = Some(AttachResponse { placed: None }),
                    () = answers.closed() => return table.remove_later(id),
                    // Its launcher may attach to the next agent; the workload stays at weft-node.
                    () = drain.draining() => return,
                }
            }
        });
        Ok(Response::new(stream.into()))
    }
}

fn spec(spec: Option<WorkloadSpec>) -> Result<WorkloadSpec, Status> {
    spec.ok_or_else(|| Status::invalid_argument("spec: is missing"))
}

impl From<TableError> for Status {
    fn from(error: TableError) -> Self {
        let text = error.to_string();
        match error {
            TableError::Invalid(_) => Self::invalid_argument(text),
            TableError::Place(_) | TableError::Refused(_) => Self::failed_precondition(text),
            TableError::NotReady { .. } | TableError::Stopping => Self::unavailable(text),
            TableError::Full => Self::resource_exhausted(text),
            TableError::NotFound(_) => Self::not_found(text),
        }
    }
}
