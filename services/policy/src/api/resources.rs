//! `Resources`: what was read, and orders of operators.

use super::Api;
use crate::{
    owner::{Deletion, Event, Order, OrderError},
    world::ObjectKey,
};
use tonic::{Request, Response, Status};
use weft_model::check_dns_label;
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{Home, Kind, MAX_FILE_BYTES, Problem};

/// A file's name is for messages only.
const MAX_NAME: usize = 500;
/// Objects that one order deletes: as many as a file may have.
const MAX_DELETED: usize = weft_resources::MAX_DOCUMENTS;

impl From<OrderError> for Status {
    fn from(error: OrderError) -> Self {
        let text = error.to_string();
        match error {
            OrderError::OfCluster => Self::failed_precondition(text),
            OrderError::Full(_) => Self::resource_exhausted(text),
            OrderError::Store(_) => Self::unavailable(text),
        }
    }
}

/// As a caller named an object.
fn key(name: pb::ObjectName) -> Result<ObjectKey, Status> {
    let pb::ObjectName {
        kind,
        namespace,
        name,
    } = name;
    let Some(known) = Kind::ALL.into_iter().find(|k| k.name() == kind) else {
        return Err(Status::invalid_argument(format!(
            "objects: there is no kind {kind:?}"
        )));
    };
    if known.is_of_cluster() != namespace.is_empty() {
        let text = format!("objects: {known} {name:?} has the namespace {namespace:?}");
        return Err(Status::invalid_argument(text));
    }
    Ok(ObjectKey {
        kind: known,
        namespace,
        name,
    })
}

#[tonic::async_trait]
#[tonic::async_trait]
impl pb::resources_server::Resources for Api {
    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(
            self.ask(|reply| Event::List { request, reply }).await?,
        ))
    }

    async fn rejected(
        &self,
        _: Request<pb::RejectedRequest>,
    ) -> Result<Response<pb::RejectedResponse>, Status> {
        Ok(Response::new(self.ask(|reply| Event::Rejected { reply }).await?))
    }

    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Result<Response<pb::ApplyResponse>, Status> {
        let by = weft_rpc::caller(&request)?.to_string();
        let request = request.into_inner();
        let mode = pb::ApplyMode::try_from(request.mode)
            .map_err(|_| Status::invalid_argument(format!("mode: there is no mode {}", request.mode)))?;
        let pb::ApplyRequest {
            file,
            content,
            mut namespace,
            namespace_only,
            objects,
            ..
        } = request;
        if namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        check_dns_label(&namespace).map_err(|e| Status::invalid_argument(format!("namespace: {e}")))?;
        if content.len() > MAX_FILE_BYTES {
            let text = format!("content: more than {MAX_FILE_BYTES} bytes; split the file");
            return Err(Status::invalid_argument(text));
        }
        // Not given back before the answer: the objects that were read wait with it.
        let _one_of = self.orders.acquire().await.map_err(|_| super::stopping())?;
        let file: String = file.chars().take(MAX_NAME).collect();
        let read = tokio::task::spawn_blocking(move || {
            let home = Home {
                namespace: &namespace,
                only: namespace_only,
            };
            weft_resources::parse_at(&file, &content, home)
        });
        let resources = match read
            .await
            .map_err(|_| Status::internal("the file could not be read"))?
        {
            Ok(resources) => resources,
            Err(problems) => {
                return Ok(Response::new(pb::ApplyResponse {
                    problems: problems.iter().map(Problem::to_string).collect(),
                    ..Default::default()
                }));
            }
        };
        let order = Box::new(Order {
            by,
            resources,
            mode,
            objects,
        });
        Ok(Response::new(
            self.ask(|reply| Event::Apply { order, reply }).await??,
        ))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let by = weft_rpc::caller(&request)?.to_string();
        let pb::DeleteRequest { objects, dry_run } = request.into_inner();
        if objects.len() > MAX_DELETED {
            let text = format!("objects: more than {MAX_DELETED} in one order");
            return Err(Status::invalid_argument(text));
        }
        let deletion = Deletion {
            by,
            keys: objects.into_iter().map(key).collect::<Result<_, _>>()?,
            dry_run,
        };
        Ok(Response::new(
            self.ask(|reply| Event::Delete { deletion, reply }).await??,
        ))
    }
}
