//! Who opens a connection to whom, and what policy says of it: when it is opened, and again each
//! time the mesh changes.

use crate::Mesh;
use std::{net::SocketAddr, sync::Arc};
use weft_flows::{Direction, DropReason, Party, Proof, Via};
use weft_runtime::{AppContext, Decision, Endpoint, Place, Question};
use weft_tls::PeerIdentity;

/// One connection's question to policy.
#[derive(Debug)]
pub(crate) enum Case {
    /// Of a workload of this node.
    Opened {
        caller: Arc<AppContext>,
        callee: Callee,
        /// The address of the callee itself.
        address: SocketAddr,
    },
    /// Of one on another node, by tunnel.
    Accepted {
        peer: Arc<PeerIdentity>,
        /// The workload that the other agent names.
        claimed: Option<String>,
        endpoint: Arc<Endpoint>,
        address: SocketAddr,
    },
}

#[derive(Debug)]
pub(crate) enum Callee {
    Workload(Arc<Endpoint>),
    Other(Arc<Party>),
}

impl Callee {
    pub fn party(&self) -> &Arc<Party> {
        match self {
            Self::Workload(endpoint) => endpoint.party(),
            Self::Other(party) => party,
        }
    }
}

/// What policy said.
#[derive(Debug)]
pub(crate) struct Judged {
    pub source: Arc<Party>,
    pub destination: Arc<Party>,
    /// In the order asked; a refusal is the last.
    pub sides: Vec<(Direction, Decision)>,
}

impl Judged {
    pub fn is_refused(&self) -> bool {
        self.sides.iter().any(|(_, decision)| decision.refused.is_some())
    }

    /// Refused as a whole only: rules speak of its single requests.
    pub fn is_by_request(&self) -> bool {
        let last = self.sides.last();
        last.is_some_and(|(_, decision)| decision.refused.is_some() && decision.by_request)
    }
}

impl Case {
    pub fn port(&self) -> u16 {
        match self {
            Self::Opened { address, .. } | Self::Accepted { address, .. } => address.port(),
        }
    }

    pub fn via(&self) -> Option<Via> {
        match self {
            Self::Accepted { .. } => Some(Via::Tunnel),
            Self::Opened { callee, .. } => match callee {
                Callee::Workload(endpoint) if is_local(endpoint) => Some(Via::SameNode),
                Callee::Workload(_) => Some(Via::Tunnel),
                Callee::Other(_) => None,
            },
        }
    }

    pub fn proof(&self) -> Proof {
        match self {
            Self::Opened { caller, .. } => caller.proof(),
            Self::Accepted { .. } => Proof::TunnelSvid,
        }
    }

    /// Asks policy, with both parties as they are now: a workload whose labels changed is another
    /// to policy. One of this node that is gone takes its connections with it; one of another that
    /// is not known any more stays who it was.
    pub fn judge(&self, mesh: &dyn Mesh) -> Judged {
        match self {
            Self::Opened {
                caller,
                callee,
                address,
            } => {
                let now = mesh.caller(caller.workload());
                let caller = now.as_ref().unwrap_or(caller);
                let (destination, authenticated, local) = match callee {
                    Callee::Workload(known) if is_local(known) => {
                        let Some(endpoint) = mesh.local(known.workload()) else {
                            return Judged::gone(caller.party().clone(), known);
                        };
                        // On one node both ends are the kernel's word; each needs its certificate.
                        let proven = is_proven(caller) && has_svid(mesh, &endpoint);
                        (endpoint.party().clone(), proven, Some(endpoint))
                    }
                    Callee::Workload(known) => {
                        let now = mesh.endpoint(known.workload());
                        (now.as_ref().unwrap_or(known).party().clone(), true, None)
                    }
                    Callee::Other(party) => (party.clone(), false, None),
                };
                let mut judged = Judged {
                    source: caller.party().clone(),
                    destination,
                    sides: Vec::with_capacity(2),
                };
                judged.ask(
                    mesh,
                    Direction::Egress,
                    caller.workload(),
                    address.port(),
                    authenticated,
                );
                if let Some(callee) = local
                    && !judged.is_refused()
                {
                    judged.ask(
                        mesh,
                        Direction::Ingress,
                        callee.workload(),
                        address.port(),
                        authenticated,
                    );
                }
                judged
            }
            Self::Accepted {
                peer,
                claimed,
                endpoint,
                address,
            } => {
                let Some(endpoint) = mesh.local(endpoint.workload()) else {
                    return Judged::gone(stranger(peer), endpoint);
                };
                let Some(source) = mesh.tunnel_peer(peer, claimed.as_deref()) else {
                    let refusal = Decision::refuse(DropReason::PeerMismatch, None);
                    return Judged {
                        source: stranger(peer),
                        destination: endpoint.party().clone(),
                        sides: vec![(Direction::Ingress, refusal)],
                    };
                };
                let mut judged = Judged {
                    source,
                    destination: endpoint.party().clone(),
                    sides: Vec::with_capacity(1),
                };
                judged.ask(
                    mesh,
                    Direction::Ingress,
                    endpoint.workload(),
                    address.port(),
                    true,
                );
                judged
            }
        }
    }
}

impl Judged {
    fn gone(source: Arc<Party>, endpoint: &Endpoint) -> Self {
        let refusal = Decision::refuse(DropReason::NoEndpoint, None);
        Self {
            source,
            destination: endpoint.party().clone(),
            sides: vec![(Direction::Ingress, refusal)],
        }
    }

    fn ask(&mut self, mesh: &dyn Mesh, direction: Direction, workload: &str, port: u16, authenticated: bool) {
        let decision = mesh.judge(&Question {
            direction,
            workload,
            source: &self.source,
            destination: &self.destination,
            port,
            authenticated,
        });
        self.sides.push((direction, decision));
    }
}

pub(crate) fn is_local(endpoint: &Endpoint) -> bool {
    matches!(endpoint.place(), Place::Local { .. })
}

fn is_proven(caller: &AppContext) -> bool {
    caller.proof() != Proof::PortToken && caller.svid().is_some_and(|svid| svid.is_set())
}

fn has_svid(mesh: &dyn Mesh, endpoint: &Endpoint) -> bool {
    let context = mesh.caller(endpoint.workload());
    context.is_some_and(|context| is_proven(&context))
}

/// Who a certificate names, where the mesh says that it may not come from there.
fn stranger(peer: &PeerIdentity) -> Arc<Party> {
    let (namespace, app_id) = match peer.id.principal() {
        weft_model::Principal::Workload { namespace, name } => (namespace, name),
        _ => Default::default(),
    };
    Arc::new(Party {
        namespace: namespace.into(),
        workload: Arc::default(),
        app_id: app_id.into(),
        identity: weft_model::NumericIdentity::UNKNOWN,
        spiffe_id: peer.id.as_str().into(),
        address: None,
        node: peer.node.as_deref().unwrap_or_default().into(),
    })
}
