//! Accepting connections of apps and finding out whose they are.
//!
//! Owns the two kinds of proof: a listener that is one workload's own, and the node's listeners
//! where the kernel says which cgroup connected. A connection whose caller is not known is closed
//! and counted; nobody is ever guessed. Each workload has a bound on its connections.

use crate::{
    agent::Shared,
    locals::{Local, Member},
    metrics::{Listener, Reason},
};
use prometheus_client::metrics::gauge::Gauge;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
};
use tokio_util::sync::CancellationToken;
use weft_bpf::Origins;
use weft_flows::{Direction, DropReason, Flow, Kind, Party, Verdict};
use weft_model::NumericIdentity;

/// After a failure of accept itself (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which API a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Dapr's HTTP API.
    Http,
    /// Dapr's gRPC API.
    Grpc,
}

impl Api {
    fn label(self) -> Listener {
        Listener {
            listener: match self {
                Self::Http => "http",
                Self::Grpc => "grpc",
            },
        }
    }
}

/// As tokio's; the hand-over left it non-blocking, which is made sure of.
pub fn to_tokio(listener: &std::net::TcpListener) -> io::Result<TcpListener> {
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Accepts on a listener that is one workload's own, until the drain or until it is gone.
pub async fn own(shared: Arc<Shared>, local: Arc<Local>, listener: TcpListener, api: Api) {
    let mut drain = shared.drain.clone();
    loop {
        // Beyond the workload's bound, its connections wait in the listener's backlog.
        let accepted = async {
            let slot = local.connections.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = local.gone.cancelled() => return,
            () = drain.draining() => return,
        };
        match accepted {
            Some((Ok((stream, _)), slot)) => match local.member() {
                Some(member) => serve(&shared, &member, stream, api, slot, local.gone.clone()),
                None => refuse(&shared, "not_ready"),
            },
            Some((Err(error), _)) => pause(&error).await,
            None => return,
        }
    }
}

/// Accepts on one of the node's listeners, until the drain or until `replaced`.
pub async fn attributed(
    shared: Arc<Shared>,
    origins: Arc<Origins>,
    listener: TcpListener,
    api: Api,
    replaced: CancellationToken,
) {
    let mut drain = shared.drain.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = replaced.cancelled() => return,
            () = drain.draining() => return,
        };
        match accepted {
            // Reading the record is one system call that does not wait.
            Ok((stream, _)) => attribute(&shared, &origins, stream, api),
            Err(error) => pause(&error).await,
        }
    }
}

fn attribute(shared: &Arc<Shared>, origins: &Origins, stream: TcpStream, api: Api) {
    let origin = match origins.read(&stream) {
        Ok(Some(origin)) => origin,
        Ok(None) => {
            nobody(shared, &stream, "the kernel has no record of who connected");
            return refuse(shared, "no_record");
        }
        Err(error) => {
            tracing::warn!(%error, "connection refused");
            return refuse(shared, "read_failed");
        }
    };
    let Some(local) = shared.view.locals.of_cgroup(origin.cgroup_id) else {
        nobody(shared, &stream, "its cgroup is no workload's of this node");
        return refuse(shared, "unknown_cgroup");
    };
    let Some(member) = local.member() else {
        return refuse(shared, "not_ready");
    };
    let Ok(slot) = local.connections.clone().try_acquire_owned() else {
        return refuse(shared, "too_many");
    };
    serve(shared, &member, stream, api, slot, local.gone.clone());
}

fn serve(
    shared: &Arc<Shared>,
    member: &Arc<Member>,
    stream: TcpStream,
    api: Api,
    slot: OwnedSemaphorePermit,
    gone: CancellationToken,
) {
    let open = count(shared, &api.label());
    let (shared, member) = (shared.clone(), member.clone());
    tokio::spawn(async move {
        let _slot = slot;
        let served = async {
            // Small answers must not wait for more.
            let _ = stream.set_nodelay(true);
            match api {
                Api::Http => shared.serve_http(member.context.clone(), stream).await,
                Api::Grpc => shared.serve_grpc(member.context.clone(), stream).await,
            }
        };
        tokio::select! {
            () = served => {}
            () = gone.cancelled() => {}
        }
        open.dec();
    });
}

/// Counts a connection that is served; the gauge is to be taken down at its end.
pub fn count(shared: &Shared, listener: &Listener) -> Gauge {
    let counters = &shared.counters;
    counters.accepted.get_or_create(listener).inc();
    let open = counters.open.get_or_create_owned(listener);
    open.inc();
    open
}

/// Counts a connection that is not.
pub fn refuse(shared: &Shared, reason: &'static str) {
    shared.counters.refused.get_or_create(&Reason { reason }).inc();
}

/// A flow for a connection of nobody.
pub fn nobody(shared: &Shared, stream: &TcpStream, rule: &str) {
    let party = |address: Option<std::net::SocketAddr>| {
        Arc::new(Party {
            namespace: "".into(),
            workload: "".into(),
            app_id: "".into(),
            identity: NumericIdentity::UNKNOWN,
            spiffe_id: "".into(),
            address: address.map(|a| a.ip()),
            node: shared.node.as_str().into(),
        })
    };
    let to = stream.local_addr().ok();
    let from = stream.peer_addr().ok();
    tracing::warn!(?from, ?to, "connection refused: {rule}");
    let port = to.map_or(0, |a| a.port());
    shared.flows.record(Flow {
        verdict: Verdict::Dropped,
        drop_reason: Some(DropReason::UnknownCaller),
        rule: Some(rule.into()),
        source_port: from.map_or(0, |a| a.port()),
        ..Flow::new(Kind::Connection, Direction::Ingress, party(from), party(to), port)
    });
}

/// After a failure of accept itself, so that it is not tried at full speed.
pub async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
