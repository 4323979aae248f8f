//! Connections whose requests are read one by one: which they are, and where they go.

use crate::{Asked, Capture, Found, case::Case};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use weft_drain::Watcher;
use weft_flows::Direction;
use weft_proxy::{Caller, Front, Listeners, Member, To};
use weft_route::spec::BackendRef;
use weft_runtime::AppContext;
use weft_tunnel::Incoming;

impl Capture {
    /// The listeners at a port of the Service that was made for a gateway.
    pub(crate) fn gateway(&self, service: &BackendRef) -> Option<Arc<Listeners>> {
        let routing = self.proxy.routing();
        routing.gateway(&service.namespace, &service.name, service.port)
    }

    /// Where the requests of a connection to a Service go, if it has routes at that port.
    pub(crate) fn routed(&self, service: BackendRef) -> Option<To> {
        let routes = self.proxy.routing().routes();
        if !routes.has_service(&service.namespace, &service.name) {
            return None;
        }
        let to = self.to_service(service);
        let has_table =
            matches!(&to, To::Service { service, routes } if routes.table(service.port).is_some());
        has_table.then_some(to)
    }

    fn to_service(&self, service: BackendRef) -> To {
        let routes = self.proxy.routing().routes();
        To::Service {
            routes: routes.service(&service.namespace, &service.name),
            service,
        }
    }

    /// The same of a connection that rules at L7 speak of. One to a Service goes on to be one to the
    /// Service: its requests are spread over all that serve it.
    pub(crate) fn ruled(&self, asked: Asked, found: Found) -> Option<To> {
        if let Some(service) = self.mesh.service(asked.destination) {
            return Some(self.to_service(service));
        }
        match found {
            Found::Workload { endpoint, address } => Some(To::Workload(Member { endpoint, address })),
            Found::Other(party) => Some(To::Outside(party, asked.destination)),
            Found::Nobody => None,
        }
    }

    /// Serves the requests of a workload of this node.
    pub(crate) async fn serve_requests(
        &self,
        caller: Arc<AppContext>,
        stream: TcpStream,
        (as_whom, to, asked): (Caller, To, Asked),
        gone: CancellationToken,
        drain: Watcher,
    ) {
        let Some(_slot) = self.place(caller.workload(), Direction::Egress) else {
            tracing::warn!(workload = %caller.workload(), "too many captured connections");
            let _ = stream.set_zero_linger();
            return;
        };
        // A response's head and body are written together; waiting for more would only delay.
        let _ = stream.set_nodelay(true);
        let front = Front {
            caller: as_whom,
            to,
            address: asked.destination,
            source_port: stream.peer_addr().map_or(0, |peer| peer.port()),
        };
        if let Err(error) = self.proxy.serve(stream, front, gone, drain).await {
            tracing::debug!(%error, "captured connection ended");
        }
    }

    /// Serves requests that come from another node: each is judged by the callee's policy.
    pub(crate) async fn serve_stream(
        &self,
        incoming: Incoming,
        case: Case,
        address: SocketAddr,
        drain: Watcher,
    ) {
        let Case::Accepted {
            peer,
            claimed,
            endpoint,
            ..
        } = case
        else {
            return;
        };
        let stream = match incoming.accept() {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "stream from another node ended at once"),
        };
        let front = Front {
            caller: Caller::Tunnel { peer, claimed },
            to: To::Workload(Member { endpoint, address }),
            address,
            source_port: 0,
        };
        // It is dropped with its tunnel; without its workload there is no endpoint any more.
        let gone = CancellationToken::new();
        if let Err(error) = self.proxy.serve(stream, front, gone, drain).await {
            tracing::debug!(%error, "stream from another node ended");
        }
    }
}
