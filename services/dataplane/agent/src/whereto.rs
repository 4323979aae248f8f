//! What captured connections ask: whom an address means, and sockets where workloads are.

use crate::{
    locals::Local,
    places::{self, Meaning},
    view::View,
};
use futures::future::BoxFuture;
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpStream, sync::watch};
use weft_capture::{Found, Mesh};
use weft_flows::Party;
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1::WorkloadKind;
use weft_proxy::{Answerer, Backends};
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Endpoint};

impl weft_proxy::Mesh for View {
    fn changes(&self) -> watch::Receiver<u64> {
        self.mesh.touched()
    }

    fn caller(&self, workload: &str) -> Option<Arc<AppContext>> {
        Some(self.locals.get(workload)?.member()?.context.clone())
    }

    fn endpoint(&self, workload: &str) -> Option<Arc<Endpoint>> {
        self.mesh.read(|e| e.endpoint(workload))
    }

    fn backends(&self, service: &BackendRef, v4: bool) -> Option<Arc<Backends>> {
        self.mesh.backends(service, v4)
    }

    fn answerer(&self, workload: &str, port: u16) -> Answerer {
        match self.locals.get(workload) {
            Some(local) => self.answerer_of(&local, port),
            None => Answerer::Itself,
        }
    }

    fn connect(&self, workload: &str, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        let (view, workload) = (self.clone(), workload.to_owned());
        Box::pin(async move {
            // It is nowhere but here.
            if view.locals.get(&workload).is_some_and(|local| local.is_shared()) {
                return TcpStream::connect(to).await;
            }
            let kind = view.kind(&workload)?;
            view.host.connect_from(&workload, kind, to).await
        })
    }
}

impl Mesh for View {
    fn service(&self, at: SocketAddr) -> Option<BackendRef> {
        self.mesh.service_at(at)
    }

    fn ingress(&self) -> Option<Arc<AppContext>> {
        self.mesh.ingress.get().cloned()
    }

    fn find(&self, _caller: &str, to: SocketAddr) -> Found {
        match self.mesh.meaning(to) {
            // Only agents speak there.
            (Meaning::Workload(..), _) if to.port() == self.mesh.tunnel_port() => Found::Nobody,
            (Meaning::Workload(_, address), Some(endpoint)) => Found::Workload { endpoint, address },
            // Known, and without a way to it.
            (Meaning::Workload(..), None) => Found::Other(reserved(NumericIdentity::CLUSTER_UNKNOWN, to)),
            (Meaning::Unserved, _) => Found::Nobody,
            (Meaning::Reserved(identity), _) => Found::Other(reserved(identity, to)),
        }
    }

    fn answers_at(&self, workload: &str, address: SocketAddr) -> bool {
        let local = self.locals.get(workload);
        local.is_some_and(|local| answers_at(&local, address, self.mesh.tunnel_port()))
    }
}

/// A pod has all ports of its addresses, but for the agent's. A process has its app's and those that it
/// declares: on any other of the node's ports somebody else may listen, whose policy would not be asked.
fn answers_at(local: &Local, address: SocketAddr, tunnel_port: u16) -> bool {
    let Some(member) = local.member() else {
        return false;
    };
    let workload = &member.workload;
    let addresses = workload.addresses.iter().filter_map(|a| a.parse().ok());
    let own = |a: std::net::IpAddr| a.to_canonical() == address.ip().to_canonical();
    let port = match local.kind {
        WorkloadKind::Pod => address.port() != tunnel_port,
        _ => places::ports(workload).contains(&address.port()),
    };
    port && addresses.into_iter().any(own)
}

/// Nobody in particular.
fn reserved(identity: NumericIdentity, to: SocketAddr) -> Arc<Party> {
    Arc::new(Party {
        namespace: Arc::default(),
        workload: Arc::default(),
        app_id: Arc::default(),
        identity,
        spiffe_id: Arc::default(),
        address: Some(to.ip()),
        node: Arc::default(),
    })
}
