//! One gRPC server: the services of a process, with health, reflection and the role check.

use crate::{
    ConnectionRefused, Limiter, MethodRoles, RpcError, TurnedAway, incoming,
    refused::ConnectionObserver,
    roles::{Observer, RoleLayer},
    until::Until,
};
use futures::future::Either;
use prost::Message;
use prost_types::FileDescriptorSet;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use weft_drain::Watcher;
use weft_tls::Trust;

/// Connections are asked to end after this long; calls on them may finish.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);
/// A call whose handler has not begun to answer after this long ends: its caller may be feeding it
/// byte by byte. Streams that have begun are not limited.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Calls that run at once on one connection.
const MAX_STREAMS: u32 = 256;
/// Largest header block, bytes.
const MAX_HEADERS: u32 = 16 * 1024;

/// A server under construction, then served on any number of listeners.
pub struct GrpcServer {
    roles: MethodRoles,
    limiter: Option<Limiter>,
    observer: Option<Observer>,
    refused: ConnectionObserver,
    answer_within: Duration,
    routes: RoutesBuilder,
    health: HealthReporter,
    end: CancellationToken,
    names: Vec<&'static str>,
}

impl std::fmt::Debug for GrpcServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcServer")
            .field("roles", &self.roles.0.len())
            .finish_non_exhaustive()
    }
}

impl GrpcServer {
    /// With health and reflection of `package` (`weft.policy.v1`) in place. `descriptors` is an
    /// encoded `FileDescriptorSet` that holds it.
    pub fn new(package: &str, descriptors: &'static [u8], roles: MethodRoles) -> Result<Self, RpcError> {
        Self::of(&[(package, descriptors)], roles)
    }

    /// The same for several packages.
    pub fn of(packages: &[(&str, &'static [u8])], roles: MethodRoles) -> Result<Self, RpcError> {
        let mut routes = Routes::builder();
        let (health, health_service) = tonic_health::server::health_reporter();
        routes.add_service(health_service);
        let names = packages
            .iter()
            .map(|(package, in_set)| service_names(package, in_set));
        let names: Vec<String> = names.collect::<Result<Vec<_>, _>>()?.concat();
        let sets = packages.iter().map(|(package, in_set)| files_of(package, in_set));
        let sets: Vec<FileDescriptorSet> = sets.collect::<Result<_, _>>()?;
        let configure = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health");
            let builder = sets
                .iter()
                .fold(builder, |b, set| b.register_file_descriptor_set(set.clone()));
            names.iter().fold(builder, |b, name| b.with_service_name(name))
        };
        let failed = |e: tonic_reflection::server::Error| RpcError::Reflection(e.to_string());
        let end = CancellationToken::new();
        routes.add_service(Until {
            service: configure().build_v1().map_err(failed)?,
            end: end.clone(),
        });
        routes.add_service(Until {
            service: configure().build_v1alpha().map_err(failed)?,
            end: end.clone(),
        });
        Ok(Self {
            roles,
            limiter: None,
            observer: None,
            refused: ConnectionObserver::default(),
            answer_within: ANSWER_TIMEOUT,
            routes,
            health,
            end,
            names: Vec::new(),
        })
    }

    /// Tells also by this name that it serves, besides by the empty one.
    pub fn serving(mut self, name: &'static str) -> Self {
        self.names.push(name);
        self
    }

    /// Limits how much one caller may ask.
    pub fn limit(self, limiter: Limiter) -> Self {
        Self {
            limiter: Some(limiter),
            ..self
        }
    }

    /// Another limit than a minute on the time until a handler begins to answer.
    pub fn answer_within(self, answer_within: Duration) -> Self {
        Self {
            answer_within,
            ..self
        }
    }

    /// Tells of each connection by TLS that is refused before any method can be asked. `told` is called on
    /// the server's threads and must not wait.
    pub fn on_connection_refused(self, told: impl Fn(ConnectionRefused) + Send + Sync + 'static) -> Self {
        Self {
            refused: ConnectionObserver::new(told),
            ..self
        }
    }

    /// Tells of each call that no handler decides on: the caller has not the role, the request can not be
    /// read, or the answer has not begun in time. `told` is called on the server's threads and must not wait. Of calls that are over a
    /// limit, [`Limiter::on_refused`] tells.
    pub fn on_turned_away(self, told: impl Fn(TurnedAway) + Send + Sync + 'static) -> Self {
        Self {
            observer: Some(Observer(Arc::new(told))),
            ..self
        }
    }

    /// Adds one generated service.
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self
    }

    /// To report services as serving or not; the whole server (the empty name) serves from the start.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// The finished set of routes, to be served on several listeners.
    pub fn build(self) -> BuiltServer {
        BuiltServer {
            checks: RoleLayer {
                roles: self.roles,
                limiter: self.limiter,
                observer: self.observer,
                answer_within: self.answer_within,
            },
            refused: self.refused,
            routes: self.routes.routes().prepare(),
            health: self.health,
            end: self.end,
            names: self.names,
        }
    }
}

/// A [`GrpcServer`] whose services are fixed. Clones share the services.
#[derive(Debug, Clone)]
pub struct BuiltServer {
    checks: RoleLayer,
    refused: ConnectionObserver,
    routes: Routes,
    health: HealthReporter,
    end: CancellationToken,
    names: Vec<&'static str>,
}

impl BuiltServer {
    fn server(&self) -> Server<tower::layer::util::Stack<RoleLayer, tower::layer::util::Identity>> {
        Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .concurrency_limit_per_connection(MAX_STREAMS as usize)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_connection_age(MAX_CONNECTION_AGE)
            .layer(self.checks.clone())
    }

    /// Serves with mTLS until the drain, then finishes the calls that run. Handlers of long streams
    /// must end them when the drain starts, else they are cut at its deadline. A connection whose
    /// caller's certificate `trust` has as revoked ends at once.
    pub async fn serve_tls(
        self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        trust: Trust,
        drain: Watcher,
    ) -> Result<(), RpcError> {
        let incoming = incoming::tls(listener, tls, trust, self.refused.clone(), drain.clone());
        self.run(incoming, drain).await
    }

    /// Serves the local socket to root and this process's own user.
    pub async fn serve_local(self, listener: UnixListener, drain: Watcher) -> Result<(), RpcError> {
        let incoming = incoming::local(listener, drain.clone());
        self.run(incoming, drain).await
    }

    /// Serves without TLS to processes of this machine, known as [`crate::Caller::Loopback`].
    pub async fn serve_loopback(self, listener: TcpListener, drain: Watcher) -> Result<(), RpcError> {
        let incoming = incoming::loopback(listener, drain.clone());
        self.run(incoming, drain).await
    }

    async fn run<T>(self, incoming: incoming::Incoming<T>, drain: Watcher) -> Result<(), RpcError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        for name in &self.names {
            self.health.set_service_status(name, ServingStatus::Serving).await;
        }
        let telling = stopping(
            drain.clone(),
            self.health.clone(),
            self.end.clone(),
            self.names.clone(),
        );
        let mut stop = drain.clone();
        let done = self
            .server()
            .add_routes(self.routes)
            .serve_with_incoming_shutdown(incoming, async move { stop.draining().await });
        finish(drain.until_forced(beside(done, telling)).await)
    }
}

/// Waits for the drain and ends the streams of those who watch the server's health or go on asking
/// for descriptors. They would have no end of their own and hold up the drain.
async fn stopping(
    mut drain: Watcher,
    mut health: HealthReporter,
    end: CancellationToken,
    names: Vec<&'static str>,
) {
    drain.draining().await;
    end.cancel();
    for name in names.into_iter().chain([""]) {
        health.set_service_status(name, ServingStatus::NotServing).await;
        health.clear_service_status(name).await;
    }
}

/// Runs `other` as long as `work` runs, and ends with that.
async fn beside<T>(work: impl Future<Output = T>, other: impl Future<Output = ()>) -> T {
    let (work, other) = (std::pin::pin!(work), std::pin::pin!(other));
    match futures::future::select(work, other).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}

fn finish(ended: Option<Result<(), tonic::transport::Error>>) -> Result<(), RpcError> {
    match ended {
        Some(Err(e)) => Err(RpcError::Transport(e.to_string())),
        Some(Ok(())) | None => Ok(()),
    }
}

/// The files of a package with all that they import. The rest of the set is other services', and would
/// only take memory.
fn files_of(package: &str, descriptors: &[u8]) -> Result<FileDescriptorSet, RpcError> {
    let mut set = decode(descriptors)?;
    let own = set.file.iter().filter(|f| f.package() == package);
    let mut wanted: HashSet<String> = own.map(|f| f.name().to_owned()).collect();
    loop {
        let known = wanted.len();
        for file in &set.file {
            if wanted.contains(file.name()) {
                wanted.extend(file.dependency.iter().cloned());
            }
        }
        if wanted.len() == known {
            break;
        }
    }
    set.file.retain(|file| wanted.contains(file.name()));
    Ok(set)
}

fn decode(descriptors: &[u8]) -> Result<FileDescriptorSet, RpcError> {
    FileDescriptorSet::decode(descriptors).map_err(|e| RpcError::Reflection(e.to_string()))
}

fn service_names(package: &str, descriptors: &[u8]) -> Result<Vec<String>, RpcError> {
    let set = decode(descriptors)?;
    let names: Vec<String> = set
        .file
        .iter()
        .filter(|f| f.package() == package)
        .flat_map(|f| f.service.iter().map(|s| format!("{package}.{}", s.name())))
        .collect();
    if names.is_empty() {
        return Err(RpcError::Reflection(format!(
            "no service of package {package} in the descriptors"
        )));
    }
    Ok(names)
}

/// Every method of a package as `/package.Service/Method`: for tests that a role table is complete.
pub fn methods(package: &str, descriptors: &[u8]) -> Result<Vec<String>, RpcError> {
    let set = decode(descriptors)?;
    Ok(set
        .file
        .iter()
        .filter(|f| f.package() == package)
        .flat_map(|f| &f.service)
        .flat_map(|s| {
            s.method
                .iter()
                .map(move |m| format!("/{package}.{}/{}", s.name(), m.name()))
        })
        .collect())
}
