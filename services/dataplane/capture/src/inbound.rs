//! From another node, by tunnel, to a workload of this one.

use crate::{Capture, case::Case, relay::End};
use http::{HeaderMap, StatusCode};
use std::{net::SocketAddr, sync::Arc};
use weft_drain::Watcher;
use weft_flows::{Direction, DropReason};
use weft_proxy::Answerer;
use weft_runtime::{Endpoint, Place};
use weft_tunnel::{DESTINATION_HEADER, Handler, Incoming, SOURCE_HEADER};

/// Takes the streams that come out of tunnels: those for an address are carried, all others are for
/// the handler of apps' calls.
#[derive(Debug)]
pub struct Streams<H> {
    capture: Arc<Capture>,
    calls: Arc<H>,
    drain: Watcher,
}

impl<H: Handler> Streams<H> {
    /// Holds `drain` until it is dropped.
    pub fn new(capture: Arc<Capture>, calls: Arc<H>, drain: Watcher) -> Arc<Self> {
        Arc::new(Self {
            capture,
            calls,
            drain,
        })
    }
}

impl<H: Handler> Handler for Streams<H> {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        // Names of apps are no addresses: `<app-id>.<namespace>:<port>`.
        match incoming.authority.as_str().parse::<SocketAddr>() {
            Ok(address) => self.capture.stream(incoming, address, self.drain.clone()).await,
            Err(_) => self.calls.clone().handle(incoming).await,
        }
    }
}

impl Capture {
    /// Carries one stream for `address`, from its judging to its end. Dropped with its tunnel.
    async fn stream(&self, incoming: Incoming, address: SocketAddr, mut drain: Watcher) {
        let endpoint = match self.meant(&incoming, address) {
            Ok(endpoint) => endpoint,
            Err((status, why)) => {
                tracing::warn!(
                    peer = %incoming.peer.id, node = incoming.peer.node.as_deref().unwrap_or_default(),
                    authority = %incoming.authority, why, "refused a stream from another node"
                );
                return incoming.refuse(status);
            }
        };
        let case = Case::Accepted {
            peer: incoming.peer.clone(),
            claimed: text(&incoming.headers, SOURCE_HEADER),
            endpoint: endpoint.clone(),
            address,
        };
        let judged = case.judge(&*self.mesh);
        if judged.is_refused() && !judged.is_by_request() {
            self.deny(&case, &judged);
            let by = judged
                .sides
                .last()
                .and_then(|(_, decision)| decision.rule.as_deref());
            return incoming.deny(by);
        }
        let Some(_slot) = self.place(endpoint.workload(), Direction::Ingress) else {
            tracing::warn!(workload = %endpoint.workload(), "too many connections from other nodes");
            self.fail(&case, &judged, DropReason::Overloaded, 0);
            return incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        let answerer = self.answerer(&case);
        if let (Answerer::Nobody, false) = (&answerer, judged.is_by_request()) {
            self.fail(&case, &judged, DropReason::Unreachable, 0);
            return incoming.refuse(StatusCode::BAD_GATEWAY);
        }
        if judged.is_by_request() || matches!(answerer, Answerer::Agent(_)) {
            // Rare among streams, and large.
            return Box::pin(self.serve_stream(incoming, case, address, drain)).await;
        }
        let app = match self.dial_app(&endpoint, address).await {
            Ok(app) => app,
            Err(error) => {
                tracing::debug!(workload = %endpoint.workload(), %address, %error, "a workload is not reached");
                self.fail(&case, &judged, DropReason::Unreachable, 0);
                return incoming.refuse(StatusCode::BAD_GATEWAY);
            }
        };
        match incoming.accept() {
            Ok(stream) => {
                let opener = End::Tunnel(Box::new(stream));
                let stop = drain.forced();
                self.carry(case, judged, opener, End::Tcp(app), stop).await;
            }
            Err(error) => tracing::debug!(%error, "stream from another node ended at once"),
        }
    }

    /// The workload that a stream is for: here, the one that the certificate names, and nobody
    /// else's address.
    fn meant(&self, incoming: &Incoming, address: SocketAddr) -> Result<Arc<Endpoint>, Refusal> {
        let named = text(&incoming.headers, DESTINATION_HEADER)
            .ok_or((StatusCode::BAD_REQUEST, "it names no destination"))?;
        let endpoint = self
            .mesh
            .local(&named)
            .filter(|e| matches!(e.place(), Place::Local { .. }))
            .ok_or((StatusCode::NOT_FOUND, "the destination is not on this node"))?;
        if *endpoint.party().spiffe_id != *incoming.local.as_str() {
            let why = "the destination is not whom the certificate names";
            return Err((StatusCode::FORBIDDEN, why));
        }
        if !self.mesh.answers_at(endpoint.workload(), address) {
            return Err((
                StatusCode::FORBIDDEN,
                "the address is not known to be the destination's own",
            ));
        }
        Ok(endpoint)
    }
}

type Refusal = (StatusCode, &'static str);

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
