//! The runtime of a node: what the agent makes one of, and where each request enters.

use crate::{
    AppContext, AppDialer, Directory, Judge, TunnelDialer, api,
    blocks::{self, Blocks, Surroundings},
    call::{Call, beyond, told},
    error::ApiError,
    inbound::TunnelHandler,
    path::{self, Callee, Route},
    pools::Pools,
    truth::{self, Arrived, Forwarding},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
};
use weft_components_api::Drivers;
use weft_drain::Watcher;
use weft_flows::{DropReason, FlowLog, Party};
use weft_l7::{Body, PoolLimits, ServeError, ServerLimits, hygiene, serve_connection};
use weft_model::NumericIdentity;

/// How often a request may be sent to another endpoint when nothing of it was sent to the first.
const MAX_ATTEMPTS: usize = 3;
/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// Everything around the runtime.
#[derive(Clone)]
pub struct Environment {
    /// Who is there.
    pub directory: Arc<dyn Directory>,
    /// Who may call whom.
    pub judge: Arc<dyn Judge>,
    /// To apps of this node.
    pub apps: Arc<dyn AppDialer>,
    /// To apps of others.
    pub tunnels: Arc<dyn TunnelDialer>,
    /// Where every decision goes.
    pub flows: FlowLog,
}

/// Bounds of one app's traffic.
#[derive(Debug, Clone)]
pub struct RuntimeLimits {
    /// Of each connection that is served.
    pub server: ServerLimits,
    /// Of the connections to each app.
    pub pool: PoolLimits,
    /// Connections that one app may have open to its listener.
    pub connections_per_app: usize,
}

impl Default for RuntimeLimits {
    fn default() -> Self {
        Self {
            server: ServerLimits::default(),
            pool: PoolLimits::default(),
            connections_per_app: 4096,
        }
    }
}

/// Dapr's APIs for all apps of a node. Keeps nothing of an app but connections.
pub struct Runtime {
    pub(crate) env: Environment,
    pub(crate) limits: RuntimeLimits,
    pub(crate) pools: Arc<Pools>,
    pub(crate) blocks: Blocks,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("pools", &self.pools)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// In `env`.
    pub fn new(env: Environment, limits: RuntimeLimits) -> Arc<Self> {
        Self::with_components(env, limits, Drivers::default(), PathBuf::new())
    }

    /// As [`Runtime::new`], with building blocks: components are opened by `drivers`, and the files of
    /// each app are in `<files>/<namespace>/<app-id>`. In a runtime of tokio.
    pub fn with_components(
        env: Environment,
        limits: RuntimeLimits,
        drivers: Drivers,
        files: PathBuf,
    ) -> Arc<Self> {
        let pools = Arc::new(Pools::new(limits.pool.clone()));
        let surroundings = Surroundings {
            apps: env.apps.clone(),
            pools: pools.clone(),
            flows: env.flows.clone(),
        };
        let blocks = Blocks::new(drivers, files, surroundings);
        Arc::new(Self {
            env,
            limits,
            pools,
            blocks,
        })
    }

    /// The building blocks: which apps are here and what manifests say is told to them.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Closes idle connections until the drain starts. Run it as a task beside the listeners.
    pub async fn maintain(self: Arc<Self>, drain: Watcher) {
        let sweeping = async {
            let mut every = tokio::time::interval(SWEEP);
            loop {
                every.tick().await;
                self.pools.sweep();
            }
        };
        let _: Option<()> = drain.until_draining(sweeping).await;
    }

    /// Takes the streams that come out of tunnels. Holds `drain` until it is dropped.
    pub fn tunnel_handler(self: &Arc<Self>, drain: Watcher) -> Arc<TunnelHandler> {
        TunnelHandler::new(self.clone(), drain)
    }

    /// Connections to apps and tunnel streams made so far.
    pub fn connections_made(&self) -> usize {
        self.pools.connections_made()
    }

    /// Serves the HTTP API to `app` on every connection that `listener` accepts, until the drain
    /// starts; then what is under way is finished.
    pub async fn serve_listener(
        self: Arc<Self>,
        app: Arc<AppContext>,
        listener: TcpListener,
        drain: Watcher,
    ) {
        let places = Arc::new(Semaphore::new(self.limits.connections_per_app));
        let mut connections = JoinSet::new();
        let mut draining = drain.clone();
        loop {
            // Beyond the bound, new connections wait in the listener's backlog.
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            };
            tokio::select! {
                () = draining.draining() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                (accepted, place) = accepted => match accepted {
                    Ok((socket, _)) => {
                        let (runtime, app, drain) = (self.clone(), app.clone(), drain.clone());
                        connections.spawn(async move {
                            let _place = place;
                            // A response's head and body are written together; waiting for more
                            // would only delay.
                            let _ = socket.set_nodelay(true);
                            if let Err(e) = runtime.serve_connection(&app, socket, drain).await {
                                tracing::debug!(app = %app.workload(), error = %e, "connection of an app ended");
                            }
                        });
                    }
                    Err(e) => {
                        // Out of descriptors, or a connection that is gone again: go on, slowly.
                        tracing::warn!(app = %app.workload(), error = %e, "can not accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Serves the HTTP API to `app` on one connection that is known to be its own.
    pub async fn serve_connection<T>(
        &self,
        app: &Arc<AppContext>,
        io: T,
        drain: Watcher,
    ) -> Result<(), ServeError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        serve_connection(io, &self.limits.server, drain, |request| {
            self.handle(app, request)
        })
        .await
    }

    /// Answers one request to the HTTP API of a shared endpoint of this node, whose app is `app`. `from` has
    /// sent it, and policy has let it pass.
    pub async fn answer(
        &self,
        app: &Arc<AppContext>,
        from: &Party,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let arrived = truth::arrive(request.headers_mut(), from);
        request.extensions_mut().insert(arrived);
        self.handle(app, request).await
    }

    async fn handle(&self, app: &Arc<AppContext>, mut request: Request<Body>) -> Response<Body> {
        let uri = request.uri().clone();
        let route = path::route(uri.path());
        // Whoever starts the app must be able to ask before it has the token.
        match route {
            Route::Healthz => return api::healthz(app, request.method(), uri.query()),
            Route::HealthzOutbound => return api::healthz_outbound(app, request.method()),
            _ => {}
        }
        // The token is between the app and its runtime: no callee gets to see it.
        let shown = request.headers_mut().remove(truth::API_TOKEN);
        if let Some(token) = app.token()
            && !shown.is_some_and(|shown| token.matches(shown.as_bytes()))
        {
            let mut refused = Response::new(Body::from("invalid api token"));
            *refused.status_mut() = StatusCode::UNAUTHORIZED;
            return refused;
        }
        match route {
            Route::Metadata => api::metadata(&self.blocks, app, request.method()),
            Route::MetadataKey(key) => api::set_metadata(app, key, request).await,
            Route::Block(call) => {
                if let Err(e) = hygiene::prepare_request(&request.method().clone(), request.headers_mut()) {
                    return ApiError::malformed(e).into();
                }
                blocks::serve(&self.blocks, app, &call, request).await
            }
            Route::Unserved(api, code) => ApiError::unserved(api, code).into(),
            Route::Invoke { .. } | Route::Unknown | Route::Healthz | Route::HealthzOutbound => {
                match addressee(&uri, &route, request.headers_mut()) {
                    Ok((part, forwarded)) => {
                        *request.uri_mut() = forwarded;
                        self.invoke(app, &part, request).await
                    }
                    Err(e) => e.into(),
                }
            }
        }
    }

    /// Calls `part` (`<app-id>[.<namespace>]`) with a request whose path is the app's own.
    pub(crate) async fn invoke(
        &self,
        app: &Arc<AppContext>,
        part: &str,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let Some(Callee { app_id, namespace }) = path::callee(part) else {
            return ApiError::bad_app_id(part).into();
        };
        let method = request.method().clone();
        if let Err(e) = hygiene::prepare_request(&method, request.headers_mut()) {
            return ApiError::malformed(e).into();
        }
        *request.version_mut() = Version::HTTP_11;
        let trace_id = weft_l7::trace::trace(request.headers_mut());
        let arrived = request.extensions_mut().remove::<Arrived>();
        let forwarding = match arrived {
            Some(_) => Forwarding::Ours,
            None => Forwarding::Claimed,
        };
        let mut call = Call::new(
            &request,
            trace_id,
            app.workload().clone(),
            app.party().clone(),
            app.proof(),
        );
        let namespace = namespace.as_deref().unwrap_or(&app.party().namespace);
        call.forged = truth::set_parties(request.headers_mut(), app.headers(), &app_id, forwarding);
        call.forged
            .extend(arrived.into_iter().flat_map(|arrived| arrived.forged));
        let target = self.env.directory.resolve(app.workload(), namespace, &app_id);
        if !target.as_ref().is_some_and(|target| target.is_shared())
            && let Some(service) = self
                .env
                .directory
                .app_service(app, namespace, &app_id, target.is_some())
        {
            let answer = service.send(request).await;
            return answer.unwrap_or_else(|error| beyond(&error, &app_id).into());
        }
        let mut last = None;
        for attempt in 1.. {
            let endpoint = target.as_ref().and_then(|target| target.pick());
            let Some((endpoint, target)) = endpoint.zip(target.as_ref()) else {
                break;
            };
            match self.send(app, &call, endpoint, request).await {
                Ok(response) => return response,
                Err(mut failed) => {
                    // Nothing was sent and there are others: one of them may take it.
                    let more = attempt < MAX_ATTEMPTS.min(target.endpoints().len());
                    match failed.take_unsent().filter(|_| more) {
                        Some(unsent) => request = unsent,
                        None => {
                            last = Some(failed);
                            break;
                        }
                    }
                }
            }
        }
        match last {
            Some(failed) => told(&failed, &app_id).into(),
            None => {
                let asked_for = unknown_party(namespace, &app_id);
                self.write_down_unknown(&call, asked_for, DropReason::NoEndpoint, 500);
                ApiError::no_endpoint(&app_id).into()
            }
        }
    }
}

/// A party of which only the name is known.
fn unknown_party(namespace: &str, app_id: &str) -> Party {
    Party {
        namespace: namespace.into(),
        workload: Arc::default(),
        app_id: app_id.into(),
        identity: NumericIdentity::UNKNOWN,
        spiffe_id: Arc::default(),
        address: None::<IpAddr>,
        node: Arc::default(),
    }
}

/// Whom a request is for and what it asks there. Header `dapr-app-id` comes before the path, and
/// a user name of `dapr-app-id` in basic authentication after it, as in Dapr.
fn addressee(uri: &Uri, route: &Route<'_>, headers: &mut HeaderMap) -> Result<(String, Uri), ApiError> {
    if headers.get_all(truth::APP_ID).iter().nth(1).is_some() {
        return Err(ApiError::malformed("more than one header dapr-app-id"));
    }
    let own_path = || match uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => Ok(Uri::from(path.clone())),
        _ => Err(ApiError::malformed("the request target must be a path")),
    };
    if let Some(named) = headers.get(truth::APP_ID).filter(|value| !value.is_empty()) {
        let named = named
            .to_str()
            .map_err(|_| ApiError::malformed("header dapr-app-id can not be read"))?;
        return Ok((named.to_owned(), own_path()?));
    }
    if let Some(named) = basic_app_id(headers) {
        // It was an address, not a credential, so it ends here.
        headers.remove(header::AUTHORIZATION);
        return Ok((named, own_path()?));
    }
    let Route::Invoke { app, rest } = route else {
        return Err(ApiError::no_app_id());
    };
    let mut forwarded = String::with_capacity(uri.path().len() + uri.query().map_or(0, str::len) + 2);
    forwarded.push('/');
    forwarded.push_str(rest);
    if let Some(query) = uri.query() {
        forwarded.push('?');
        forwarded.push_str(query);
    }
    let forwarded = PathAndQuery::try_from(forwarded).map_err(ApiError::malformed)?;
    Ok(((*app).to_owned(), forwarded.into()))
}

fn basic_app_id(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let decoded = STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    Some(decoded.strip_prefix("dapr-app-id:")?.to_owned())
}
