//! `weft.placement.v1.Placement`: checks what comes in and passes it to the core.

use crate::core::{Command, Core, CoreError, Hello, StreamId};
use rand::Rng;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_drain::Watcher;
use weft_placement_client::wire;
use weft_placement_protocol::TypeKey;
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message, placement_server::Placement as PlacementApi,
};
use weft_rpc::{Admit, MAX_CONNECTION_AGE, MethodRoles};

/// Who may call what.
pub const ROLES: MethodRoles = MethodRoles(&[
    ("/weft.placement.v1.Placement/Join", &[Admit::Node]),
    (
        "/weft.placement.v1.Placement/Lookup",
        &[Admit::Node, Admit::Admin],
    ),
    ("/weft.placement.v1.Placement/ListHosts", &[Admit::Admin]),
]);

/// The first message comes within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait in a stream for a node to read them. The rest waits as names of tables.
const OUTBOX: usize = 2;
/// Tables that a node may say it holds.
const MAX_HELD: usize = 100_000;
/// Longest actor id that is looked up, in bytes.
const MAX_ACTOR_ID: usize = 4096;
/// Streams end with their connection, spread over so much time: nodes come back with what they
/// hold, and show their present certificate.
const AGE_SPREAD: Duration = Duration::from_secs(120);

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub core: Core,
    pub drain: Watcher,
}

fn status(error: CoreError) -> Status {
    let text = error.to_string();
    match error {
        CoreError::NoHost(_) => Status::not_found(text),
        CoreError::Unwritten(_) | CoreError::Stopped => Status::unavailable(text),
    }
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("{what} is missing"))
}

#[tonic::async_trait]
impl PlacementApi for Api {
    type JoinStream = ReceiverStream<Result<pb::JoinResponse, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<pb::JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        // The role table let nodes in only; the name is the certificate's, whatever messages say.
        let node = weft_rpc::caller(&request)?
            .node()
            .ok_or_else(|| Status::permission_denied("not a node"))?;
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(pb::JoinRequest {
            message: Some(Message::Hello(hello)),
        }) = first
        else {
            return Err(Status::invalid_argument("the first message of a stream is hello"));
        };
        if hello.held.len() > MAX_HELD {
            return Err(Status::invalid_argument(format!(
                "more than {MAX_HELD} tables held"
            )));
        }
        tracing::info!(
            node,
            software = hello.software.chars().take(100).collect::<String>(),
            hosts = hello.hosts.len(),
            held = hello.held.len(),
            "node joins"
        );
        let hello = Hello {
            node: node.as_str().into(),
            held_epoch: hello.held_epoch,
            held: hello
                .held
                .into_iter()
                .map(|h| (TypeKey::new(&h.namespace, &h.actor_type), h.version))
                .collect(),
            hosts: hello.hosts.into_iter().map(wire::registration).collect(),
        };
        let (stream, wake) = self
            .core
            .ask(|reply| Command::Open { hello, reply })
            .await
            .map_err(status)?;
        let (out, messages) = mpsc::channel(OUTBOX);
        tokio::spawn(drive(
            self.core.clone(),
            stream,
            inbound,
            out,
            wake,
            self.drain.clone(),
        ));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn lookup(
        &self,
        request: Request<pb::LookupRequest>,
    ) -> Result<Response<pb::LookupResponse>, Status> {
        let pb::LookupRequest {
            namespace,
            actor_type,
            actor_id,
        } = request.into_inner();
        if namespace.is_empty() {
            return Err(missing("namespace"));
        }
        if actor_type.is_empty() {
            return Err(missing("actor_type"));
        }
        if actor_id.len() > MAX_ACTOR_ID {
            return Err(Status::invalid_argument(format!(
                "actor_id is longer than {MAX_ACTOR_ID} bytes"
            )));
        }
        let key = TypeKey::new(&namespace, &actor_type);
        let found = self
            .core
            .ask(|reply| Command::Lookup { key, actor_id, reply })
            .await
            .map_err(status)?;
        Ok(Response::new(found.map_err(status)?))
    }

    async fn list_hosts(
        &self,
        request: Request<pb::ListHostsRequest>,
    ) -> Result<Response<pb::ListHostsResponse>, Status> {
        let namespace = Some(request.into_inner().namespace).filter(|n| !n.is_empty());
        let hosts = self
            .core
            .ask(|reply| Command::List { namespace, reply })
            .await
            .map_err(status)?;
        Ok(Response::new(pb::ListHostsResponse {
            hosts: hosts.map_err(status)?,
        }))
    }
}

type Outbox = mpsc::Sender<Result<pb::JoinResponse, Status>>;

/// One node's stream, until either side, its age or the drain ends it.
async fn drive(
    core: Core,
    stream: StreamId,
    inbound: Streaming<pb::JoinRequest>,
    out: Outbox,
    wake: Arc<Notify>,
    mut drain: Watcher,
) {
    let age = MAX_CONNECTION_AGE + AGE_SPREAD.mul_f64(rand::rng().random_range(0.0..1.0));
    let end = tokio::select! {
        end = read(&core, &stream, inbound) => end,
        end = write(&core, &stream, &out, &wake) => end,
        () = drain.draining() => Err(Status::unavailable("placement is shutting down")),
        () = tokio::time::sleep(age) => Ok(()),
    };
    tracing::info!(node = %stream.node, reason = end.as_ref().err().map(Status::message), "node's stream ended");
    if let Err(status) = end {
        // Without room, or without a reader, the stream just ends.
        let _ = out.try_send(Err(status));
    }
    let _ = core.send(Command::Close { stream }).await;
}

async fn read(core: &Core, stream: &StreamId, mut inbound: Streaming<pb::JoinRequest>) -> Result<(), Status> {
    while let Some(request) = inbound.message().await? {
        let stream = stream.clone();
        let command = match request.message {
            Some(Message::HostUp(host)) => Command::Up {
                stream,
                host: wire::registration(host),
            },
            Some(Message::HostDown(pb::HostDown { id })) => Command::Down { stream, id },
            Some(Message::Renew(pb::Renew { sequence })) => Command::Renew { stream, sequence },
            Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
            // A message of a later version.
            None => continue,
        };
        // Waits while the core is busy, and with it the node.
        core.send(command).await.map_err(status)?;
    }
    Ok(())
}

async fn write(core: &Core, stream: &StreamId, out: &Outbox, wake: &Notify) -> Result<(), Status> {
    loop {
        tokio::select! {
            () = wake.notified() => {}
            () = out.closed() => return Ok(()),
        }
        loop {
            // Pulled only when there is room: what is not pulled stays as the name of a table.
            let Ok(room) = out.reserve().await else {
                return Ok(());
            };
            drop(room);
            let pull = |reply| Command::Pull {
                stream: stream.clone(),
                reply,
            };
            let messages = core.ask(pull).await.map_err(status)?;
            let messages = messages
                .ok_or_else(|| Status::aborted("the lease is over, or the node has another stream"))?;
            if messages.is_empty() {
                break;
            }
            for message in messages {
                if out.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
