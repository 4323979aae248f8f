//! Hubble's API on the node: what flows there were, which nodes there are.
//!
//! Owns who may ask (the socket's root, operators, services and nodes; with `--hubble-plaintext` any
//! process of this machine) and where it is served. What a flow means to Hubble's clients is owned by
//! `weft_flows::hubble`.

mod directory;
mod export;
mod observer;
mod peers;

use crate::{agent::Shared, config::AgentConfig, error::AgentError};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use weft_drain::Watcher;
use weft_enroll::Member;
use weft_flows::hubble::Observer;
use weft_proto::{
    HUBBLE_DESCRIPTORS,
    hubble::{observer::observer_server::ObserverServer, peer::peer_server::PeerServer},
};
use weft_rpc::{Admit, BuiltServer, GrpcServer, MethodRoles, RpcError};
use weft_tls::ClientAuth;

pub use export::{check as check_export, run as export};

/// Of observers, where nothing else is said.
pub const PORT: u16 = 4244;
/// By which `hubble status` asks for health.
const HEALTH: &str = "hubble.server.Observer";
const PACKAGES: &[(&str, &[u8])] = &[("observer", HUBBLE_DESCRIPTORS), ("peer", HUBBLE_DESCRIPTORS)];
/// Nodes and services may ask so that one of them can ask all others.
const READERS: &[Admit] = &[
    Admit::Local,
    Admit::Loopback,
    Admit::Admin,
    Admit::AnyService,
    Admit::Node,
];

/// Who may call what.
pub const ROLES: MethodRoles = MethodRoles(&[
    ("/observer.Observer/GetFlows", READERS),
    ("/observer.Observer/GetAgentEvents", READERS),
    ("/observer.Observer/GetDebugEvents", READERS),
    ("/observer.Observer/GetNodes", READERS),
    ("/observer.Observer/GetNamespaces", READERS),
    ("/observer.Observer/ServerStatus", READERS),
    ("/peer.Peer/Notify", READERS),
]);

/// Whoever makes Hubble's flows of this agent's.
pub fn observer(shared: &Shared) -> Observer {
    let directory = directory::Known::new(shared.view.clone());
    let flows = &shared.flows;
    Observer::new(shared.node.as_str().into(), flows.run(), Arc::new(directory))
}

/// Where and since when this node's observer is.
#[derive(Debug, Clone)]
pub struct Place {
    /// When the agent started.
    pub started: SystemTime,
    /// By which other nodes reach this one.
    pub addresses: Vec<IpAddr>,
    /// Of all nodes' observers.
    pub port: u16,
    /// They are reached by TLS.
    pub tls: bool,
}

/// The server with all services.
pub fn server(shared: &Arc<Shared>, place: Place) -> Result<BuiltServer, RpcError> {
    let peers = peers::Peers::new(shared, place.clone());
    let service = observer::Service::new(shared, place, peers.clone());
    Ok(GrpcServer::of(PACKAGES, ROLES)?
        .serving(HEALTH)
        .add_service(ObserverServer::new(service).max_decoding_message_size(observer::MAX_REQUEST))
        .add_service(PeerServer::new(peers))
        .build())
}

/// Listens where the configuration says; the address that it became, none when it says none.
pub async fn listen(config: &AgentConfig) -> Result<Option<(TcpListener, SocketAddr)>, AgentError> {
    if config.hubble_listen.is_empty() {
        return Ok(None);
    }
    let failed = |source| AgentError::Bind {
        address: config.hubble_listen.clone(),
        source,
    };
    let mut found = tokio::net::lookup_host(&config.hubble_listen)
        .await
        .map_err(failed)?;
    let address = found
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
    if config.hubble_plaintext && !address.ip().is_loopback() {
        return Err(AgentError::Plaintext(address));
    }
    // Shared with the agent that this one replaces, or that will replace it.
    let listener = weft_telemetry::http::listen(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, address)))
}

/// Serves until the drain.
pub fn serve(
    tasks: &mut JoinSet<Result<(), AgentError>>,
    server: BuiltServer,
    local: Option<UnixListener>,
    listener: Option<TcpListener>,
    member: &Member,
    plaintext: bool,
    drain: Watcher,
) -> Result<(), AgentError> {
    if let Some(local) = local {
        let (server, drain) = (server.clone(), drain.clone());
        tasks.spawn(async move { Ok(server.serve_local(local, drain).await?) });
    }
    let Some(listener) = listener else { return Ok(()) };
    if plaintext {
        tasks.spawn(async move { Ok(server.serve_loopback(listener, drain).await?) });
        return Ok(());
    }
    let certificates = Arc::new(member.svid.clone());
    let tls = weft_tls::server_config(certificates, &member.trust, ClientAuth::Required, &[b"h2"])?;
    let trust = member.trust.clone();
    tasks.spawn(async move { Ok(server.serve_tls(listener, Arc::new(tls), trust, drain).await?) });
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_rpc::Caller;
    use weft_tls::PeerIdentity;

    #[test]
    fn every_method_has_its_roles_and_admits_no_workload() {
        let mut methods = Vec::new();
        for (package, descriptors) in PACKAGES {
            methods.extend(weft_rpc::methods(package, descriptors).unwrap());
        }
        assert_eq!(
            methods.len(),
            ROLES.0.len(),
            "a method without roles, or roles without a method"
        );
        let tls = |path: &str| {
            Caller::Tls(PeerIdentity {
                id: format!("spiffe://cluster.local{path}").parse().unwrap(),
                serial: "1".into(),
                node: None,
                not_before: 0,
                not_after: 1,
            })
        };
        let readers = [
            Caller::Local { uid: 0 },
            Caller::Loopback,
            tls("/weft/admin/ops"),
            tls("/weft/node/n2"),
            tls("/weft/service/policy"),
        ];
        for method in &methods {
            for reader in &readers {
                assert!(ROLES.check(method, reader).is_ok(), "{method} refuses {reader}");
            }
            for other in [tls("/ns/default/cart"), Caller::Anonymous] {
                assert!(ROLES.check(method, &other).is_err(), "{method} admits {other}");
            }
        }
    }
}
