//! Streams from other nodes: who calls is what the tunnel's certificate says.

use crate::{
    Directory, Endpoint, INVOKE_PORT, Place, Runtime,
    call::{Call, told},
    context::CallerHeaders,
    error::ApiError,
    truth::{self, Forwarding},
};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, uri::PathAndQuery};
use parking_lot::Mutex;
use std::sync::Arc;
use weft_drain::Watcher;
use weft_flows::{Direction, DropReason, Flow, Kind, Party, Proof, Verdict, Via};
use weft_l7::{Body, hygiene, serve_connection};
use weft_model::{NumericIdentity, Principal};
use weft_tls::PeerIdentity;
use weft_tunnel::{DESTINATION_HEADER, Handler, Incoming, SOURCE_HEADER};

/// Serves what comes out of tunnels.
#[derive(Debug)]
pub struct TunnelHandler {
    runtime: Arc<Runtime>,
    drain: Watcher,
}

impl TunnelHandler {
    pub(crate) fn new(runtime: Arc<Runtime>, drain: Watcher) -> Arc<Self> {
        Arc::new(Self { runtime, drain })
    }
}

impl Handler for TunnelHandler {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        let runtime = self.runtime.clone();
        let origin = match Origin::of(&runtime, &incoming) {
            Ok(origin) => origin,
            Err((status, why)) => {
                tracing::warn!(
                    peer = %incoming.peer.id, node = incoming.peer.node.as_deref().unwrap_or_default(),
                    authority = %incoming.authority, why, "refused a stream from another node"
                );
                return incoming.refuse(status);
            }
        };
        let drain = self.drain.clone();
        let stream = match incoming.accept() {
            Ok(stream) => stream,
            Err(e) => return tracing::debug!(error = %e, "stream from another node ended at once"),
        };
        let limits = runtime.limits.server.clone();
        let served = serve_connection(stream, &limits, drain, |request| {
            runtime.receive(&origin, request)
        });
        if let Err(e) = served.await {
            tracing::debug!(error = %e, "stream from another node ended");
        }
    }
}

/// Who is at the other end of one stream, and for whom it is.
struct Origin {
    peer: Arc<PeerIdentity>,
    /// The workload that the other agent names.
    claimed: Option<String>,
    destination: String,
    /// The headers made for the caller last seen: the same as long as the directory has not changed.
    headers: Mutex<Option<(Arc<Party>, Arc<CallerHeaders>)>>,
}

type Refusal = (StatusCode, &'static str);

impl Origin {
    fn of(runtime: &Runtime, incoming: &Incoming) -> Result<Self, Refusal> {
        let destination = text(&incoming.headers, DESTINATION_HEADER)
            .ok_or((StatusCode::BAD_REQUEST, "it names no destination"))?;
        let endpoint = endpoint(&*runtime.env.directory, &destination)
            .ok_or((StatusCode::NOT_FOUND, "the destination is not on this node"))?;
        let party = endpoint.party();
        if *party.spiffe_id != *incoming.local.as_str() {
            return Err((
                StatusCode::FORBIDDEN,
                "the destination is not whom the certificate names",
            ));
        }
        let named = incoming.authority.host().split_once('.');
        if named != Some((&*party.app_id, &*party.namespace))
            || incoming.authority.port_u16() != Some(INVOKE_PORT)
        {
            return Err((StatusCode::BAD_REQUEST, "authority and destination differ"));
        }
        let claimed = text(&incoming.headers, SOURCE_HEADER);
        let origin = Self {
            peer: incoming.peer.clone(),
            claimed,
            destination,
            headers: Mutex::default(),
        };
        if origin.party(runtime).is_none() {
            runtime.write_down_mismatch(&incoming.peer, &endpoint);
            return Err((StatusCode::FORBIDDEN, "this identity may not come from that node"));
        }
        Ok(origin)
    }

    fn party(&self, runtime: &Runtime) -> Option<Arc<Party>> {
        runtime
            .env
            .directory
            .tunnel_peer(&self.peer, self.claimed.as_deref())
    }

    fn headers(&self, party: &Arc<Party>) -> Arc<CallerHeaders> {
        let mut cached = self.headers.lock();
        if let Some((known, headers)) = &*cached
            && Arc::ptr_eq(known, party)
        {
            return headers.clone();
        }
        let headers = Arc::new(CallerHeaders::of(party));
        *cached = Some((party.clone(), headers.clone()));
        headers
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A workload whose app is on this node.
fn endpoint(directory: &dyn Directory, workload: &str) -> Option<Arc<Endpoint>> {
    directory
        .local(workload)
        .filter(|e| matches!(e.place(), Place::Local { .. }))
}

impl Runtime {
    /// One request from another node. Who is there is asked anew each time: a stream may outlive
    /// what was known when it was opened.
    async fn receive(&self, origin: &Origin, mut request: Request<Body>) -> Response<Body> {
        let Some(endpoint) = endpoint(&*self.env.directory, &origin.destination) else {
            return ApiError::unavailable("", "the app is no longer on this node").into();
        };
        let app_id = &endpoint.party().app_id;
        let Some(source) = origin.party(self) else {
            self.write_down_mismatch(&origin.peer, &endpoint);
            return ApiError::denied(app_id).into();
        };
        let method = request.method().clone();
        if let Err(e) = hygiene::prepare_request(&method, request.headers_mut()) {
            return ApiError::malformed(e).into();
        }
        // The other agent has taken the token out; should it not have, it still ends here.
        request.headers_mut().remove(truth::API_TOKEN);
        let path = request
            .uri()
            .path_and_query()
            .cloned()
            .unwrap_or(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = Version::HTTP_11;
        let trace_id = weft_l7::trace::trace(request.headers_mut());
        // The other agent has written by which hands it came.
        truth::set_parties(
            request.headers_mut(),
            &origin.headers(&source),
            app_id,
            Forwarding::Complete,
        );
        let call = Call::new(&request, trace_id, Arc::default(), source, Proof::TunnelSvid);
        match self.deliver(&call, &endpoint, Via::Tunnel, request).await {
            Ok(response) => response,
            Err(failed) => told(&failed, app_id).into(),
        }
    }

    fn write_down_mismatch(&self, peer: &PeerIdentity, endpoint: &Endpoint) {
        let (namespace, app_id) = match peer.id.principal() {
            Principal::Workload { namespace, name } => (namespace, name),
            _ => Default::default(),
        };
        let source = Party {
            namespace: namespace.into(),
            workload: Arc::default(),
            app_id: app_id.into(),
            identity: NumericIdentity::UNKNOWN,
            spiffe_id: peer.id.as_str().into(),
            address: None,
            node: peer.node.as_deref().unwrap_or_default().into(),
        };
        let (source, destination) = (Arc::new(source), endpoint.party().clone());
        self.env.flows.record(Flow {
            verdict: Verdict::Dropped,
            drop_reason: Some(DropReason::PeerMismatch),
            status: 403,
            via: Some(Via::Tunnel),
            caller_proof: Some(Proof::TunnelSvid),
            ..Flow::new(Kind::Invoke, Direction::Ingress, source, destination, INVOKE_PORT)
        });
    }
}
