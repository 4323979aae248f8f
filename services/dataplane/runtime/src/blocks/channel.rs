//! The way to an app: asks one of its workloads on this node, within the app's bounds.

use super::{Slot, budget::Share};
use crate::{AppDialer, Endpoint, Place, pools::Pools};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use std::{sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;
use weft_flows::FlowLog;
use weft_l7::Body;

/// An app's answer to a callback: a status and little more.
const MAX_ANSWER: usize = 1024 * 1024;
/// An app may take so long to answer one (its own broker's or client's patience ends no later).
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What is needed to reach apps.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub apps: Arc<dyn AppDialer>,
    pub pools: Arc<Pools>,
    pub flows: FlowLog,
}

/// An app, as its components' events reach it.
pub(crate) struct Consumer {
    pub(super) slot: Arc<Slot>,
    pub(super) surroundings: Surroundings,
}

/// What an app said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// One delivery of an app under way, and its share of what the app may hold.
pub(crate) struct Turn {
    _slot: Option<OwnedSemaphorePermit>,
    _share: Share,
}

impl Consumer {
    /// Waits for the app's turn: so many deliveries of it may be under way, and so many bytes.
    pub async fn turn(&self, bytes: usize) -> Turn {
        Turn {
            _slot: self.slot.deliveries.clone().acquire_owned().await.ok(),
            _share: self.slot.budget.hold(bytes).await,
        }
    }

    /// Of the app's ready workloads here the one with the fewest requests under way.
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        let replicas = self.slot.replicas.lock();
        let ready = replicas.values().filter_map(|replica| replica.ready.clone());
        ready.min_by_key(|endpoint| endpoint.in_flight())
    }

    /// Where the app listens.
    pub fn port(&self, endpoint: &Endpoint) -> u16 {
        match *endpoint.place() {
            Place::Local { app_port } => app_port,
            Place::Remote { .. } => 0,
        }
    }

    /// Where decisions are written down.
    pub fn flows(&self) -> FlowLog {
        self.surroundings.flows.clone()
    }

    /// Asks any of its ready workloads.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Answer, String> {
        let endpoint = self.endpoint().ok_or("no workload of the app is ready")?;
        self.ask_at(&endpoint, method, path, headers, body).await
    }

    /// Asks this one.
    pub async fn ask_at(
        &self,
        endpoint: &Arc<Endpoint>,
        method: Method,
        path: &str,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Answer, String> {
        let request = request(method, path, headers, body, endpoint)?;
        let pool = self.surroundings.pools.local(&self.surroundings.apps, endpoint);
        let asked = async {
            let sent = pool.send(request, Some(endpoint.begin())).await;
            let (head, body) = sent.map_err(|e| e.to_string())?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|e| format!("its answer can not be read: {e}"))?;
            Ok(Answer {
                status: head.status,
                body: body.to_bytes(),
            })
        };
        let answered = tokio::time::timeout(ANSWER_WITHIN, asked).await;
        answered.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")))
    }
}

/// Headers that a component's metadata may not set: they are the connection's own.
fn is_own(name: &HeaderName) -> bool {
    const OWN: [HeaderName; 6] = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
    ];
    OWN.contains(name)
}

fn request(
    method: Method,
    path: &str,
    headers: Vec<(String, String)>,
    body: Bytes,
    endpoint: &Endpoint,
) -> Result<Request<Body>, String> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let uri: Uri = format!("{slash}{path}")
        .parse()
        .map_err(|_| format!("{path:?} is no path"))?;
    let length = body.len();
    let mut request = Request::new(Body::full(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let map = request.headers_mut();
    for (name, value) in headers {
        // What is no header is left out: metadata are the publisher's or the component's.
        let name = HeaderName::try_from(name.to_ascii_lowercase());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value))
            && !is_own(&name)
        {
            map.insert(name, value);
        }
    }
    map.insert(header::HOST, endpoint.host());
    map.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(request)
}

impl Consumer {
    /// The app in flows where no workload of it is meant.
    pub fn party(&self) -> Arc<weft_flows::Party> {
        let replicas = self.slot.replicas.lock();
        let first = replicas
            .values()
            .next()
            .map(|replica| replica.context.party().clone());
        first.unwrap_or_else(|| {
            Arc::new(weft_flows::Party {
                namespace: self.slot.owner.namespace.as_str().into(),
                workload: Arc::default(),
                app_id: self.slot.owner.app_id.as_str().into(),
                identity: weft_model::NumericIdentity::UNKNOWN,
                spiffe_id: Arc::default(),
                address: None,
                node: Arc::default(),
            })
        })
    }
}
