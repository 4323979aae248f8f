//! The ports of this node that gateways want: opened and closed as gateways come and go, and what
//! comes in there.
//!
//! Owns which ports are open, and as whom the gateways of this node call: `reserved:ingress`, with a
//! certificate of the node's own for workloads of other nodes.

use crate::{agent::Shared, listen};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::{Party, Proof};
use weft_model::{NumericIdentity, SpiffeId};
use weft_proxy::{Caller, Front, To};
use weft_runtime::{AppChannel, AppContext, AppSpec};
use weft_tls::SvidCell;

/// Ports that could not be opened are tried again so often, and whether weft-node is a new one.
const AGAIN: Duration = Duration::from_secs(5);
/// So long a gateway waits for its tunnel certificate. Without one, requests for workloads of other nodes fail.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(5);
/// Connections of clients at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 16_384;

/// Why ports are not open, for the status.
#[derive(Debug, Clone, Default)]
pub struct Failures(Arc<Mutex<BTreeMap<u16, String>>>);

impl Failures {
    /// One line for the operator; `None` when all is well.
    pub fn text(&self) -> Option<String> {
        let failures = self.0.lock();
        let lines: Vec<&str> = failures.values().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// Who a node's gateways are.
pub fn party(node: &str, id: &SpiffeId, address: Option<IpAddr>) -> Arc<Party> {
    Arc::new(Party {
        namespace: Arc::default(),
        workload: Arc::default(),
        app_id: Arc::default(),
        identity: NumericIdentity::INGRESS,
        spiffe_id: id.as_str().into(),
        address,
        node: node.into(),
    })
}

/// Keeps open what gateways want, until the drain. `address`: the node's, for flows.
pub async fn run(shared: Arc<Shared>, address: Option<IpAddr>, failures: Failures, mut drain: Watcher) {
    let routing = shared.view.mesh.routing.clone();
    let mut changed = shared.view.mesh.touched();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    // Whatever an agent before this one left open is asked about once.
    let mut asked: Option<BTreeSet<u16>> = None;
    let mut again = tokio::time::interval(AGAIN);
    loop {
        let wanted = routing.node_ports();
        let failed = failures.text().is_some();
        if asked.as_ref() != Some(&wanted) || failed {
            if !wanted.is_empty() {
                become_ingress(&shared, address);
            }
            match shared.view.host.gateway_ports(&wanted).await {
                Ok((listeners, refused)) => {
                    open.retain(|port, ended| {
                        let stays = wanted.contains(port);
                        if !stays {
                            ended.cancel();
                        }
                        stays
                    });
                    let known: BTreeSet<u16> = open.keys().copied().collect();
                    for (port, listener) in listeners.into_iter().filter(|(port, _)| !known.contains(port)) {
                        let ended = open.entry(port).or_default().clone();
                        match listen::to_tokio(&listener) {
                            Ok(listener) => {
                                let accepting = accept(shared.clone(), listener, port, ended, places.clone());
                                tokio::spawn(accepting);
                            }
                            Err(error) => tracing::error!(port, %error, "a gateway's port is not served"),
                        }
                    }
                    if !refused.is_empty() && !failed {
                        tracing::error!(?refused, "ports of gateways are not open");
                    }
                    *failures.0.lock() = refused.into_iter().collect();
                    asked = Some(wanted);
                }
                Err(error) => tracing::warn!(%error, "ports of gateways are not open yet"),
            }
        }
        tokio::select! {
            Ok(()) = changed.changed() => {}
            _ = again.tick() => {}
            () = drain.draining() => return,
        }
    }
}

/// From now on requests can go on as the gateways of this node.
fn become_ingress(shared: &Arc<Shared>, address: Option<IpAddr>) {
    let ingress = &shared.view.mesh.ingress;
    if ingress.get().is_some() {
        return;
    }
    let id = match shared.trust_domain.ingress(&shared.node) {
        Ok(id) => id,
        Err(error) => return tracing::error!(%error, "this node can not have gateways"),
    };
    let svid = SvidCell::new();
    let context = AppContext::new(AppSpec {
        workload: format!("{}/ingress", shared.node).into(),
        party: party(&shared.node, &id, address),
        proof: Proof::Gateway,
        token: None,
        svid: Some(svid.clone()),
        channel: AppChannel::default(),
        health: Arc::default(),
    });
    if ingress.set(context).is_ok() {
        let (certificates, drain) = (shared.certificates.clone(), shared.drain.clone());
        tokio::spawn(async move {
            let keeping = certificates.keep_ingress(id.as_str(), &svid);
            let _: Option<()> = drain.until_draining(keeping).await;
        });
    }
}

/// Until whom requests are for is here: connections wait in the backlog rather than be told that nobody is,
/// and meanwhile an agent before this one may take them.
async fn ready(shared: &Shared) {
    shared.settled.cancelled().await;
    let ingress = shared.view.mesh.ingress.get();
    let Some(svid) = ingress.and_then(|context| context.svid()) else {
        return;
    };
    let mut changed = svid.subscribe();
    let certified = changed.wait_for(|_| svid.is_set());
    if tokio::time::timeout(CERTIFICATE_WITHIN, certified).await.is_err() {
        tracing::warn!(
            "gateways are open without a tunnel certificate: workloads of other nodes are not reached until it comes"
        );
    }
}

async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    port: u16,
    ended: CancellationToken,
    places: Arc<Semaphore>,
) {
    let mut drain = shared.drain.clone();
    tokio::select! {
        () = ready(&shared) => {}
        () = ended.cancelled() => return,
        () = drain.draining() => return,
    }
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = ended.cancelled() => return,
            () = drain.draining() => return,
        };
        match accepted {
            Some((Ok((stream, client)), place)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _place = place;
                    serve(&shared, stream, client, port).await;
                });
            }
            Some((Err(error), _)) => listen::pause(&error).await,
            None => return,
        }
    }
}

async fn serve(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr, port: u16) {
    let Some(context) = shared.view.mesh.ingress.get().cloned() else {
        return;
    };
    // A response's head and body are written together; waiting for more would only delay.
    let _ = stream.set_nodelay(true);
    let Ok(address) = stream.local_addr() else { return };
    let front = Front {
        caller: Caller::Gateway {
            context,
            client: client.ip(),
        },
        to: To::Gateway(shared.view.mesh.routing.node_port(port)),
        address,
        source_port: client.port(),
    };
    // A gateway that goes leaves its connections without a route.
    let gone = CancellationToken::new();
    if let Err(error) = shared
        .proxy
        .serve(stream, front, gone, shared.drain.clone())
        .await
    {
        tracing::debug!(%error, %client, "connection to a gateway ended");
    }
}
