//! `weft.policy.v1`: from calls to events and back. Who may call is decided before (see [`crate::ROLES`]);
//! which node calls is read from its certificate, never from a message.

mod resources;

use crate::{
    hosts::{HostError, Hosts},
    metrics::Counts,
    owner::{Event, Refused},
    world::{ExplainError, RegisterError, Session, WINDOW, check_loopback, check_workload, svid_name},
};
use futures::Stream;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_drain::Watcher;
use weft_model::{SvidForm, check_dns_label};
use weft_proto::weft::policy::v1 as pb;

/// A node that connects and says nothing is let go after this long.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Namespaces that a node may ask for beside its own.
const MAX_NAMESPACES: usize = 100;

/// The three services. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    events: mpsc::Sender<Event>,
    hosts: Hosts,
    counts: Counts,
    insecure_loopback: bool,
    svid_form: SvidForm,
    sessions: Arc<AtomicU64>,
    /// Files of orders that are read at once.
    orders: Arc<Semaphore>,
    drain: Watcher,
}

/// A read file takes several times its bytes.
const ORDERS: usize = 4;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn stopping() -> Status {
    Status::unavailable("the policy service is stopping; try again")
}

impl Api {
    pub(crate) fn new(
        events: mpsc::Sender<Event>,
        hosts: Hosts,
        counts: Counts,
        insecure_loopback: bool,
        svid_form: SvidForm,
        drain: Watcher,
    ) -> Self {
        Self {
            events,
            hosts,
            counts,
            insecure_loopback,
            svid_form,
            sessions: Arc::new(AtomicU64::new(1)),
            orders: Arc::new(Semaphore::new(ORDERS)),
            drain,
        }
    }

    /// Whether the calling node may host this workload.
    async fn check_host(&self, node: &str, workload: &pb::Workload) -> Result<(), Status> {
        let name = svid_name(workload, self.svid_form);
        match self.hosts.check(node, &workload.namespace, name).await {
            Ok(()) => Ok(()),
            Err(error @ HostError::NotKnown) => Err(Status::unavailable(error.to_string())),
            Err(error @ HostError::NotPermitted { .. }) => {
                self.counts.not_permitted.inc();
                tracing::warn!(
                    node,
                    namespace = workload.namespace,
                    name,
                    workload = workload.id,
                    "registration refused: no host pattern of the node permits it"
                );
                Err(Status::permission_denied(error.to_string()))
            }
        }
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.events.send(event(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

/// The calling node's name, from its certificate.
fn node<T>(request: &Request<T>) -> Result<String, Status> {
    let caller = weft_rpc::caller(request)?;
    caller
        .node()
        .ok_or_else(|| Status::permission_denied(format!("{caller} is not a node")))
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Register(RegisterError::Invalid { .. }) => Self::invalid_argument(text),
            Refused::Register(RegisterError::NotYours { .. }) => Self::permission_denied(text),
            Refused::Register(RegisterError::AddressInUse { .. }) => Self::already_exists(text),
            Refused::Register(RegisterError::Full(_)) => Self::resource_exhausted(text),
            Refused::Store(_) => Self::unavailable(text),
        }
    }
}

impl From<ExplainError> for Status {
    fn from(error: ExplainError) -> Self {
        let text = error.to_string();
        match error {
            ExplainError::Invalid { .. } => Self::invalid_argument(text),
            ExplainError::NotFound { .. } => Self::not_found(text),
            ExplainError::Ambiguous { .. } => Self::failed_precondition(text),
        }
    }
}

#[tonic::async_trait]
impl pb::explain_server::Explain for Api {
    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        let request = Box::new(request.into_inner());
        let answer = self.ask(|reply| Event::Explain { request, reply }).await?;
        Ok(Response::new(answer?))
    }
}

#[tonic::async_trait]
impl pb::registry_server::Registry for Api {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let node = node(&request)?;
        let request = request.into_inner();
        let workload = request
            .workload
            .ok_or_else(|| Status::invalid_argument("workload is missing"))?;
        // What is no name is refused as such, and never compared with patterns.
        check_workload(&node, &workload).map_err(Refused::from)?;
        check_loopback(&workload, request.rootless, self.insecure_loopback).map_err(Refused::from)?;
        self.check_host(&node, &workload).await?;
        let workload = Box::new(workload);
        let registered = self
            .ask(|reply| Event::Register {
                node,
                workload,
                reply,
            })
            .await??;
        Ok(Response::new(pb::RegisterResponse {
            workload: Some(registered),
        }))
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        let node = node(&request)?;
        let id = request.into_inner().id;
        self.ask(|reply| Event::Deregister { node, id, reply }).await??;
        Ok(Response::new(pb::DeregisterResponse {}))
    }

    type WatchStream = Answers<pb::WatchResponse>;

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (number, mut signal) = self.ask(|reply| Event::Follow { reply }).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (api, drain) = (self.clone(), self.drain.clone());
        tokio::spawn(async move {
            let work = async {
                loop {
                    // Room first, news second: what changes while the caller is slow is told once.
                    let Ok(room) = sender.reserve().await else { return };
                    let news = match api.ask(|reply| Event::News { number, reply }).await {
                        Ok(Some(news)) => news,
                        Ok(None) => {
                            drop(room);
                            tokio::select! {
                                changed = signal.changed() => if changed.is_err() { return },
                                () = sender.closed() => return,
                            }
                            continue;
                        }
                        Err(_) => return,
                    };
                    room.send(Ok(news));
                }
            };
            drain.until_draining(work).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl pb::distribution_server::Distribution for Api {
    type SubscribeStream = Answers<pb::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<pb::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let node = node(&request)?;
        let requests = request.into_inner();
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        // Room for the window, for what comes after it, and for one error.
        let (updates, receiver) = mpsc::channel(WINDOW + 1);
        let (errors, error) = oneshot::channel();
        let (api, drain) = (self.clone(), self.drain.clone());
        tokio::spawn(async move {
            let ended = drain
                .until_draining(api.talk(&node, number, updates, requests))
                .await;
            let _ = errors.send(ended.unwrap_or(Err(stopping())).err());
            let _ = api
                .events
                .send(Event::Disconnect {
                    node,
                    session: number,
                })
                .await;
        });
        let last =
            futures::stream::once(async move { error.await.ok().flatten() }).filter_map(|e| e.map(Err));
        // The owner holds the other end; when it lets go, the error is the last thing that is said.
        let answers = ReceiverStream::new(receiver).map(Ok).chain(last);
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Api {
    /// Reads what a node says until it ends.
    async fn talk(
        &self,
        node: &str,
        session: u64,
        updates: mpsc::Sender<pb::SubscribeResponse>,
        mut requests: Streaming<pb::SubscribeRequest>,
    ) -> Result<(), Status> {
        use pb::subscribe_request::Message;
        let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 seconds"))??;
        let Some(Message::Hello(mut hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let software: String = std::mem::take(&mut hello.software).chars().take(100).collect();
        let connected_at = SystemTime::now();
        let (held, mut over) = oneshot::channel::<()>();
        let session_state = Session {
            number: session,
            updates,
            software,
            connected_at,
            _held: held,
        };
        let connect = Event::Connect {
            node: node.to_owned(),
            session: session_state,
            hello,
        };
        self.events.send(connect).await.map_err(|_| stopping())?;
        loop {
            let message = tokio::select! {
                message = requests.message() => message?,
                _ = &mut over => return Err(Status::aborted("another stream of this node took over")),
            };
            let Some(message) = message else { return Ok(()) };
            let node = node.to_owned();
            let event = match message.message {
                Some(Message::Ack(ack)) => Event::Ack {
                    node,
                    session,
                    version: ack.version,
                },
                Some(Message::Nack(nack)) => Event::Nack {
                    node,
                    session,
                    version: nack.version,
                    reasons: nack.reasons,
                },
                Some(Message::Interest(interest)) => {
                    let mut namespaces = interest.namespaces;
                    namespaces.truncate(MAX_NAMESPACES);
                    namespaces.retain(|n| check_dns_label(n).is_ok());
                    Event::AskFor { node, namespaces }
                }
                Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                // Something that a newer node knows and this service does not.
                None => continue,
            };
            self.events.send(event).await.map_err(|_| stopping())?;
        }
    }
}
