//! From a workload of this node to wherever it wanted to go.

use crate::{
    Asked, Capture, Found,
    case::{Callee, Case, Judged, is_local},
    open::Place as Slot,
    relay::End,
    socket::Socket,
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::{Direction, DropReason, Party};
use weft_model::NumericIdentity;
use weft_proxy::{Answerer, Caller, Listeners, Member, To};
use weft_runtime::{AppContext, Endpoint};
use weft_tunnel::OpenError;

/// Why the other end could not be had.
struct Failure {
    error: io::Error,
    /// What the other node said.
    status: u16,
    /// By which rule of its policy.
    rule: Option<Arc<str>>,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            error,
            status: 0,
            rule: None,
        }
    }
}

/// What becomes of a connection.
enum Opening {
    Carry(Case, Judged),
    /// Its requests are read.
    Read(Caller, To),
    /// It is written down already.
    Refused,
}

impl Capture {
    /// Carries one connection of `caller`, from its judging to its end: by itself, with the
    /// workload (`gone`), or when the time of the drain is over. Its requests are read where routes or
    /// rules speak of them.
    pub async fn captured(
        &self,
        caller: Arc<AppContext>,
        stream: TcpStream,
        asked: Asked,
        gone: CancellationToken,
        mut drain: Watcher,
    ) {
        let (case, judged) = match self.judge(&caller, asked) {
            Opening::Carry(case, judged) => (case, judged),
            Opening::Read(as_whom, to) => {
                let front = (as_whom, to, asked);
                return Box::pin(self.serve_requests(caller, stream, front, gone, drain)).await;
            }
            Opening::Refused => {
                // An end without an answer must not look like one.
                let _ = stream.set_zero_linger();
                return;
            }
        };
        let stop = async {
            tokio::select! {
                () = gone.cancelled() => {}
                () = drain.forced() => {}
            }
        };
        let mut stop = std::pin::pin!(stop);
        let opened = async {
            // Dropping it without an answer resets it.
            let opener = Socket::new(stream).ok()?;
            let (answerer, slot) = self.open_other_end(&caller, &case, &judged).await?;
            Some((opener, answerer, slot))
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = &mut stop => None,
        };
        if let Some((opener, answerer, _slot)) = opened {
            self.carry(case, judged, End::Tcp(opener), answerer, stop).await;
        }
    }

    /// What becomes of a connection.
    fn judge(&self, caller: &Arc<AppContext>, asked: Asked) -> Opening {
        if let Some(service) = self.mesh.service(asked.destination) {
            if let Some(listeners) = self.gateway(&service) {
                return self.enter(caller, asked, listeners);
            }
            if let Some(to) = self.routed(service) {
                return Opening::Read(Caller::Workload(caller.clone()), to);
            }
        }
        let to = asked.target.unwrap_or(asked.destination);
        let found = self.mesh.find(caller.workload(), to);
        let (callee, address, nobody) = match found.clone() {
            Found::Workload { endpoint, address } => (Callee::Workload(endpoint), address, false),
            Found::Other(party) => (Callee::Other(party), to, false),
            Found::Nobody => (Callee::Other(nobody(to)), to, true),
        };
        let destination = callee.party().clone();
        let case = Case::Opened {
            caller: caller.clone(),
            callee,
            address,
        };
        if nobody {
            // Nobody is there to be judged; that it was asked for is written down.
            let decision = weft_runtime::Decision::allow(None);
            let judged = Judged {
                source: caller.party().clone(),
                destination,
                sides: vec![(Direction::Egress, decision)],
            };
            self.fail(&case, &judged, DropReason::NoEndpoint, 0);
            return Opening::Refused;
        }
        let judged = case.judge(&*self.mesh);
        if !judged.is_refused() {
            return match (self.answerer(&case), found) {
                (Answerer::Itself, _) => Opening::Carry(case, judged),
                (Answerer::Agent(_), Found::Workload { endpoint, address }) => {
                    let to = To::Workload(Member { endpoint, address });
                    Opening::Read(Caller::Workload(caller.clone()), to)
                }
                _ => {
                    self.fail(&case, &judged, DropReason::Unreachable, 0);
                    Opening::Refused
                }
            };
        }
        if judged.is_by_request()
            && let Some(to) = self.ruled(asked, found)
        {
            return Opening::Read(Caller::Workload(caller.clone()), to);
        }
        self.deny(&case, &judged);
        Opening::Refused
    }

    /// Who answers at the other end, where that is of this node.
    pub(crate) fn answerer(&self, case: &Case) -> Answerer {
        match case {
            Case::Opened {
                callee: Callee::Workload(endpoint),
                address,
                ..
            }
            | Case::Accepted {
                endpoint, address, ..
            } if is_local(endpoint) => self.mesh.answerer(endpoint.workload(), address.port()),
            _ => Answerer::Itself,
        }
    }

    /// To a gateway of this node: from there on it is the gateway that calls.
    fn enter(&self, caller: &Arc<AppContext>, asked: Asked, listeners: Arc<Listeners>) -> Opening {
        let to = asked.destination;
        let ingress = self.mesh.ingress();
        let party = ingress.as_ref().map_or_else(|| nobody(to), |i| i.party().clone());
        let case = Case::Opened {
            caller: caller.clone(),
            callee: Callee::Other(party),
            address: to,
        };
        let judged = case.judge(&*self.mesh);
        if judged.is_refused() {
            self.deny(&case, &judged);
            return Opening::Refused;
        }
        let Some(context) = ingress else {
            self.fail(&case, &judged, DropReason::NoEndpoint, 0);
            return Opening::Refused;
        };
        let client = caller.party().address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Opening::Read(Caller::Gateway { context, client }, To::Gateway(listeners))
    }

    async fn open_other_end(
        &self,
        caller: &Arc<AppContext>,
        case: &Case,
        judged: &Judged,
    ) -> Option<(End, Slot<'_>)> {
        let Case::Opened { callee, address, .. } = case else {
            return None;
        };
        let address = *address;
        let Some(slot) = self.place(caller.workload(), Direction::Egress) else {
            tracing::warn!(workload = %caller.workload(), "too many captured connections");
            self.fail(case, judged, DropReason::Overloaded, 0);
            return None;
        };
        let made = match callee {
            Callee::Workload(endpoint) if is_local(endpoint) => {
                let limit = self.limits.connect_timeout;
                self.dial(endpoint.workload(), address, limit).await
            }
            Callee::Workload(endpoint) => self.tunnel(caller, endpoint, address).await,
            Callee::Other(_) => {
                let limit = self.limits.outside_timeout;
                self.dial(caller.workload(), address, limit).await
            }
        };
        match made {
            Ok(answerer) => Some((answerer, slot)),
            Err(Failure { error, status, rule }) => {
                tracing::debug!(workload = %caller.workload(), %address, %error, "captured connection fails");
                match rule {
                    Some(rule) => self.denied_there(case, judged, rule, status),
                    None => self.fail(case, judged, DropReason::Unreachable, status),
                }
                None
            }
        }
    }

    pub(crate) async fn dial_app(&self, endpoint: &Endpoint, address: SocketAddr) -> io::Result<Socket> {
        let connecting = self.mesh.connect(endpoint.workload(), address);
        let stream = timeout(self.limits.connect_timeout, connecting).await??;
        Socket::new(stream)
    }

    async fn dial(&self, from: &str, to: SocketAddr, limit: Duration) -> Result<End, Failure> {
        let connecting = self.mesh.connect(from, to);
        let stream = timeout(limit, connecting).await.map_err(io::Error::from)??;
        Ok(End::Tcp(Socket::new(stream)?))
    }

    async fn tunnel(
        &self,
        caller: &AppContext,
        endpoint: &Endpoint,
        address: SocketAddr,
    ) -> Result<End, Failure> {
        match self.tunnels.open(caller, endpoint, &address.to_string()).await {
            Ok(stream) => Ok(End::Tunnel(Box::new(stream))),
            Err(error) => {
                let (status, rule) = match &error {
                    OpenError::Refused(_, status, rule) => (status.as_u16(), rule.clone()),
                    _ => (0, None),
                };
                let error = error.into();
                Err(Failure { error, status, rule })
            }
        }
    }
}

/// A service without backends has no identity.
fn nobody(address: SocketAddr) -> Arc<Party> {
    Arc::new(Party {
        namespace: Arc::default(),
        workload: Arc::default(),
        app_id: Arc::default(),
        identity: NumericIdentity::UNKNOWN,
        spiffe_id: Arc::default(),
        address: Some(address.ip()),
        node: Arc::default(),
    })
}
