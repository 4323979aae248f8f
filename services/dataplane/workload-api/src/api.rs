//! The five methods.

use crate::{Jwks, JwtError, Peer, PeerError, Source, Workload, X509};
use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use prost_types::{ListValue, Struct, Value, value::Kind};
use std::{collections::HashMap, path::PathBuf, sync::Arc};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status};
use weft_drain::Watcher;
use weft_proto::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
};
use weft_tls::{Bundle, Trust};

/// Shows that a call was made by a client of this API, not by a browser that was tricked into it.
const HEADER: &str = "workload.spiffe.io";
/// Audiences of one token.
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 1024;

/// The API over a source.
pub(crate) struct Api<S> {
    source: Arc<S>,
    trust: Trust,
    cgroup2: PathBuf,
    drain: Watcher,
}

impl<S: Source> Api<S> {
    pub(crate) fn new(source: Arc<S>, trust: Trust, cgroup2: PathBuf, drain: Watcher) -> Self {
        Self {
            source,
            trust,
            cgroup2,
            drain,
        }
    }

    /// Who asks.
    async fn caller<T>(&self, request: &Request<T>) -> Result<Workload, Status> {
        if request.metadata().get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(format!(
                "the metadata {HEADER}: true is missing; use a SPIFFE client"
            )));
        }
        let peer: Arc<Peer> = request
            .extensions()
            .get()
            .cloned()
            .ok_or_else(|| Status::internal("the connection's process is not known"))?;
        let cgroup2 = self.cgroup2.clone();
        // Files of /proc and of the hierarchy: they do not wait for a disk, but may for a lock.
        let cgroups = tokio::task::spawn_blocking(move || peer.cgroups(&cgroup2))
            .await
            .map_err(|_| Status::internal("the caller could not be looked up"))?;
        let cgroups = cgroups.map_err(|error| {
            if !matches!(error, PeerError::Ended) {
                tracing::warn!(%error, "caller of the SPIFFE Workload API refused");
            }
            Status::permission_denied(error.to_string())
        })?;
        self.source.find(&cgroups).ok_or_else(|| {
            Status::permission_denied(
                "no identity issued: the calling process is in no workload of this node; start it with `weft run` or in a pod of the mesh",
            )
        })
    }
}

#[tonic::async_trait]
impl<S: Source> SpiffeWorkloadApi for Api<S> {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let workload = self.caller(&request).await?;
        let held = self.source.x509(&workload);
        let changes = stream::select(changes(held.clone()), changes(self.trust.subscribe()));
        let (trust, spiffe_id) = (self.trust.clone(), workload.spiffe_id.to_string());
        let told = move || {
            let held = held.borrow().clone()?;
            Some(svid(&spiffe_id, &held, &trust.bundle()))
        };
        Ok(Response::new(self.follow(workload, told, changes)))
    }

    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let workload = self.caller(&request).await?;
        let changes = changes(self.trust.subscribe());
        let trust = self.trust.clone();
        let told = move || {
            let bundle = trust.bundle();
            Some(X509BundlesResponse {
                crl: Vec::new(),
                bundles: HashMap::from([(domain_id(&bundle), roots(&bundle))]),
            })
        };
        Ok(Response::new(self.follow(workload, told, changes)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let workload = self.caller(&request).await?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err(Status::invalid_argument(
                "audience must name at least one audience, none empty",
            ));
        }
        if audience.len() > MAX_AUDIENCES || audience.iter().any(|one| one.len() > MAX_AUDIENCE) {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCE} bytes each"
            )));
        }
        if !spiffe_id.is_empty() && spiffe_id != workload.spiffe_id.as_str() {
            return Err(Status::permission_denied(format!(
                "the caller is {}, not {spiffe_id:.300}",
                workload.spiffe_id
            )));
        }
        let svid = self.source.jwt(&workload, audience).await?;
        let svids = vec![Jwtsvid {
            spiffe_id: workload.spiffe_id.to_string(),
            svid,
            hint: String::new(),
        }];
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let workload = self.caller(&request).await?;
        let (trust, keys) = (self.trust.clone(), self.source.jwks());
        let changes = changes(keys.clone());
        let told = move || {
            let jwks: Arc<Jwks> = keys.borrow().clone();
            Some(JwtBundlesResponse {
                bundles: HashMap::from([(domain_id(&trust.bundle()), jwks.json().to_vec())]),
            })
        };
        Ok(Response::new(self.follow(workload, told, changes)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.caller(&request).await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid must be given"));
        }
        let jwks = self.source.jwks().borrow().clone();
        let now = self.trust.clock().unix_seconds();
        let claims = jwks
            .verify(&svid, &audience, &self.trust.trust_domain(), now)
            .map_err(|error: JwtError| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: claims.subject.to_string(),
            claims: Some(to_struct(&claims.all)),
        }))
    }
}

impl<S> Api<S> {
    /// Tells a workload what there is to say now and after each change, until it is taken away or
    /// the drain starts.
    fn follow<T: Send + 'static>(
        &self,
        workload: Workload,
        mut told: impl FnMut() -> Option<T> + Send + 'static,
        changes: impl Stream<Item = ()> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>> {
        let (tx, rx) = mpsc::channel(1);
        let mut drain = self.drain.clone();
        tokio::spawn(async move {
            let mut changes = std::pin::pin!(changes);
            let telling = async {
                loop {
                    if let Some(message) = told()
                        && tx.send(Ok(message)).await.is_err()
                    {
                        return None;
                    }
                    // Its last word was said: whoever writes it is gone.
                    changes.next().await?;
                }
            };
            let end: Option<Status> = tokio::select! {
                end = telling => end,
                () = tx.closed() => None,
                () = workload.gone.cancelled() => {
                    Some(Status::permission_denied("no identity issued: the workload was taken away"))
                }
                () = drain.draining() => Some(Status::unavailable("the agent ends; call again")),
            };
            if let Some(status) = end {
                let _ = tx.send(Err(status)).await;
            }
        });
        ReceiverStream::new(rx).boxed()
    }
}

/// Ticks with each change.
fn changes<T: Clone + Send + Sync + 'static>(of: watch::Receiver<T>) -> impl Stream<Item = ()> + Send {
    WatchStream::from_changes(of).map(|_| ())
}

fn domain_id(bundle: &Bundle) -> String {
    format!("spiffe://{}", bundle.trust_domain)
}

fn roots(bundle: &Bundle) -> Vec<u8> {
    bundle
        .roots
        .iter()
        .flat_map(|root| root.iter().copied())
        .collect()
}

fn svid(spiffe_id: &str, held: &X509, bundle: &Bundle) -> X509svidResponse {
    X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: spiffe_id.to_owned(),
            x509_svid: held.chain.iter().flat_map(|one| one.iter().copied()).collect(),
            x509_svid_key: held.key.to_vec(),
            bundle: roots(bundle),
            hint: String::new(),
        }],
        ..Default::default()
    }
}

pub(crate) fn to_struct(map: &serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: map
            .iter()
            .map(|(name, value)| (name.clone(), to_value(value)))
            .collect(),
    }
}

/// Nesting is bounded by the JSON reader (128 levels).
fn to_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        // Protobuf's numbers are doubles: exact up to 2^53, which times in seconds stay below.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(to_value).collect(),
        }),
        Json::Object(map) => Kind::StructValue(to_struct(map)),
    };
    Value { kind: Some(kind) }
}
