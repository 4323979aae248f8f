//! The ways to apps that are no workloads of this node's runtime: the apps behind shared endpoints, and
//! Services that are invoked by their name. Requests enter the proxy without a connection, as the workload
//! in whose place they are sent.
//!
//! Owns what a URL means: a Service with its routes, a gateway, a workload's address, or the outside.

use crate::{
    agent::Shared,
    locals::{Local, Remote},
    shared_api::{GRPC_PORT, HTTP_PORT, SharedApi},
    view::View,
};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use weft_capture::{Found, Mesh as _};
use weft_flows::{Direction, Flow, FlowLog, Kind, Party, Verdict};
use weft_l7::Body;
use weft_proxy::{Answerer, Caller, Front, Member, Outlet, Proxy, To, Unanswered};
use weft_route::spec::BackendRef;
use weft_runtime::{AppContext, Channel, ChannelError, Endpoint, Judge, Question, Runtime};

/// A request may come by so many apps within one agent: configurations can lead in a circle.
const MAX_HOPS: u8 = 8;
/// Ways that are kept.
const MAX_KEPT: usize = 4_096;
/// What a name outside the mesh means is asked again so often.
const NAME_FOR: Duration = Duration::from_secs(10);

/// By how many apps a request came.
#[derive(Debug, Clone, Copy)]
struct Hops(u8);

/// In whose place, to which host or Service, at which port.
type WayKey = (Arc<str>, Arc<str>, u16);

/// The parts that requests go on to. They hold the view in which this is, so it holds them weakly.
pub struct Channels {
    proxy: Weak<Proxy>,
    runtime: Weak<Runtime>,
    flows: FlowLog,
    /// None once the drain has begun: what is kept holds the parts.
    kept: Mutex<Option<HashMap<WayKey, Kept>>>,
}

struct Kept {
    outlet: Outlet,
    /// The mesh as it was.
    at: u64,
    since: Instant,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels")
            .field("kept", &self.kept.lock().as_ref().map(HashMap::len))
            .finish_non_exhaustive()
    }
}

impl Channels {
    /// Between these parts.
    pub fn new(proxy: &Arc<Proxy>, runtime: &Arc<Runtime>, flows: FlowLog) -> Self {
        Self {
            proxy: Arc::downgrade(proxy),
            runtime: Arc::downgrade(runtime),
            flows,
            kept: Mutex::new(Some(HashMap::new())),
        }
    }
}

const STOPPING: ChannelError = ChannelError::Unreachable("the agent is shutting down");

impl View {
    fn channels(&self) -> Option<(&Channels, Arc<Proxy>)> {
        let channels = self.channels.get()?;
        Some((channels, channels.proxy.upgrade()?))
    }

    /// Who answers at a port of a workload of this node.
    pub(crate) fn answerer_of(&self, local: &Arc<Local>, port: u16) -> Answerer {
        if !local.is_shared() {
            return Answerer::Itself;
        }
        let channels = self.channels.get();
        let api = channels.and_then(|channels| SharedApi::at(port, &channels.runtime, local));
        api.map_or(Answerer::Nobody, |api| Answerer::Agent(Arc::new(api)))
    }

    /// The app behind a shared endpoint.
    pub(crate) fn remote_of(&self, endpoint: &Endpoint, from: &Party) -> Option<Arc<dyn Channel>> {
        let local = self.locals.get(endpoint.workload())?;
        let member = local.member().filter(|_| local.is_shared())?;
        Some(Arc::new(Way {
            view: self.clone(),
            caller: member.context.clone(),
            client: from.address,
            to: Goal::Remote(member.remote.clone()),
        }))
    }

    /// The Service that an app-id names.
    pub(crate) fn service_of(
        &self,
        caller: &Arc<AppContext>,
        namespace: &str,
        app_id: &str,
        other: bool,
    ) -> Option<Arc<dyn Channel>> {
        let (service, address) = self.mesh.service_port(namespace, app_id, None)?;
        if other && !self.mesh.routing.takes(namespace, app_id) {
            return None;
        }
        let authority = format!("{app_id}.{namespace}.svc.cluster.local:{}", service.port);
        Some(Arc::new(Way {
            view: self.clone(),
            caller: caller.clone(),
            client: caller.party().address,
            to: Goal::Service {
                authority: HeaderValue::from_str(&authority).ok()?,
                service,
                address,
            },
        }))
    }

    /// Whether a caller is the app behind a shared endpoint of this node: then it may speak as it.
    pub(crate) fn is_remote_of(&self, workload: &str, port: u16, caller: &Party) -> bool {
        if port != HTTP_PORT && port != GRPC_PORT {
            return false;
        }
        let member = self.locals.get(workload).filter(|local| local.is_shared());
        let member = member.and_then(|local| local.member());
        let Some((namespace, remote)) = member.as_ref().and_then(|member| {
            let remote = member.remote.as_deref()?;
            Some((member.workload.namespace.as_str(), remote))
        }) else {
            return false;
        };
        let Some((namespace, name)) = remote.service(namespace) else {
            return false;
        };
        let gateway = self.mesh.routing.gateway(namespace, name, remote.port);
        match gateway {
            Some(_) => caller.identity == weft_model::NumericIdentity::INGRESS,
            None => self.mesh.serves(namespace, name, caller),
        }
    }
}

enum Goal {
    /// Where the URL of a shared endpoint says; `None`: it can not be read.
    Remote(Option<Arc<Remote>>),
    Service {
        service: BackendRef,
        address: IpAddr,
        authority: HeaderValue,
    },
}

/// One way to an app.
struct Way {
    view: View,
    /// In whose place requests are sent.
    caller: Arc<AppContext>,
    /// Who calls, for a gateway that asks.
    client: Option<IpAddr>,
    to: Goal,
}

impl Channel for Way {
    fn send(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, ChannelError>> {
        let hops = request.extensions().get::<Hops>().map_or(0, |hops| hops.0);
        let authority = match &self.to {
            Goal::Remote(Some(remote)) => remote.authority.clone(),
            Goal::Remote(None) => {
                let error = ChannelError::Unreachable("the remote of the shared endpoint can not be read");
                return Box::pin(std::future::ready(Err(error)));
            }
            Goal::Service { authority, .. } => authority.clone(),
        };
        request.headers_mut().insert(header::HOST, authority);
        request.extensions_mut().insert(Hops(hops + 1));
        let (view, caller, client) = (self.view.clone(), self.caller.clone(), self.client);
        let goal = match &self.to {
            Goal::Service { service, address, .. } => Ok((service.clone(), *address)),
            Goal::Remote(remote) => Err(remote.clone()),
        };
        Box::pin(async move {
            if hops >= MAX_HOPS {
                return Err(ChannelError::Unreachable("the request goes round in a circle"));
            }
            let outlet = match goal {
                Ok((service, address)) => view.to_service(&caller, client, service, address)?,
                Err(Some(remote)) => view.to_remote(&caller, client, &remote).await?,
                Err(None) => return Err(STOPPING),
            };
            outlet.send(request).await.map_err(|unanswered| match unanswered {
                Unanswered::Denied => ChannelError::Denied,
                Unanswered::Malformed(why) | Unanswered::Unreachable(why) => ChannelError::Unreachable(why),
            })
        })
    }
}

impl View {
    fn to_service(
        &self,
        caller: &Arc<AppContext>,
        client: Option<IpAddr>,
        service: BackendRef,
        address: IpAddr,
    ) -> Result<Outlet, ChannelError> {
        let (channels, proxy) = self.channels().ok_or(STOPPING)?;
        let at = SocketAddr::new(address, service.port);
        let routing = proxy.routing();
        if let Some(listeners) = routing.gateway(&service.namespace, &service.name, service.port) {
            let ingress = self
                .mesh
                .ingress
                .get()
                .ok_or(ChannelError::Unreachable("this node has no gateway yet"))?;
            self.may_enter(channels, caller, ingress.party(), at)?;
            let as_whom = Caller::Gateway {
                context: ingress.clone(),
                client: client.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            };
            return Ok(outlet(&proxy, (as_whom, To::Gateway(listeners), at)));
        }
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        if let Some(kept) = self.kept(channels, caller, &name, service.port) {
            return Ok(kept);
        }
        let routes = routing.routes().service(&service.namespace, &service.name);
        let port = service.port;
        let front = (
            Caller::Runtime(caller.clone()),
            To::Service { service, routes },
            at,
        );
        let outlet = outlet(&proxy, front);
        self.keep(channels, caller, name, port, &outlet);
        Ok(outlet)
    }

    async fn to_remote(
        &self,
        caller: &Arc<AppContext>,
        client: Option<IpAddr>,
        remote: &Remote,
    ) -> Result<Outlet, ChannelError> {
        let own = &caller.party().namespace;
        if let Some((namespace, name)) = remote.service(own) {
            if let Some((service, address)) = self.mesh.service_port(namespace, name, Some(remote.port)) {
                return self.to_service(caller, client, service, address);
            }
            if remote.is_of_cluster() {
                return Err(ChannelError::Unreachable(
                    "there is no such Service, or it has no such port",
                ));
            }
        }
        let (channels, proxy) = self.channels().ok_or(STOPPING)?;
        let host: Arc<str> = remote.host.as_str().into();
        if let Some(kept) = self.kept(channels, caller, &host, remote.port) {
            return Ok(kept);
        }
        let at = match remote.host.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, remote.port),
            Err(_) => {
                let found = tokio::net::lookup_host((remote.host.as_str(), remote.port)).await;
                let found = found.ok().and_then(|mut all| all.next());
                found.ok_or(ChannelError::Unreachable("its name means no address"))?
            }
        };
        let to = match self.find(caller.workload(), at) {
            Found::Workload { endpoint, address } => To::Workload(Member { endpoint, address }),
            Found::Other(party) => To::Outside(party, at),
            Found::Nobody => return Err(ChannelError::Unreachable("nobody is there")),
        };
        let outlet = outlet(&proxy, (Caller::Runtime(caller.clone()), to, at));
        self.keep(channels, caller, host, remote.port, &outlet);
        Ok(outlet)
    }

    fn kept(&self, channels: &Channels, caller: &AppContext, name: &Arc<str>, port: u16) -> Option<Outlet> {
        let kept = channels.kept.lock();
        let kept = kept
            .as_ref()?
            .get(&(caller.workload().clone(), name.clone(), port))?;
        let fresh = kept.at == *self.mesh.touched().borrow() && kept.since.elapsed() < NAME_FOR;
        fresh.then(|| kept.outlet.clone())
    }

    fn keep(&self, channels: &Channels, caller: &AppContext, name: Arc<str>, port: u16, outlet: &Outlet) {
        let mut all = channels.kept.lock();
        let Some(all) = all.as_mut() else { return };
        if all.len() >= MAX_KEPT {
            all.clear();
        }
        let kept = Kept {
            outlet: outlet.clone(),
            at: *self.mesh.touched().borrow(),
            since: Instant::now(),
        };
        all.insert((caller.workload().clone(), name, port), kept);
    }

    /// A shared app calls a gateway: from there on it is the gateway that calls.
    fn may_enter(
        &self,
        channels: &Channels,
        caller: &AppContext,
        ingress: &Arc<Party>,
        at: SocketAddr,
    ) -> Result<(), ChannelError> {
        let decision = self.judge(&Question {
            direction: Direction::Egress,
            workload: caller.workload(),
            source: caller.party(),
            destination: ingress,
            port: at.port(),
            authenticated: false,
        });
        let Some(reason) = decision.refused else {
            return Ok(());
        };
        let (source, destination) = (caller.party().clone(), ingress.clone());
        channels.flows.record(Flow {
            verdict: Verdict::Dropped,
            drop_reason: Some(reason),
            rule: decision.rule,
            caller_proof: Some(caller.proof()),
            ..Flow::new(
                Kind::Connection,
                Direction::Egress,
                source,
                destination,
                at.port(),
            )
        });
        Err(ChannelError::Denied)
    }
}

fn outlet(proxy: &Arc<Proxy>, (caller, to, address): (Caller, To, SocketAddr)) -> Outlet {
    proxy.outlet(Front {
        caller,
        to,
        address,
        source_port: 0,
    })
}

/// Lets requests of shared apps go on.
pub fn connect(shared: &Shared, runtime: &Arc<Runtime>) {
    let channels = Channels::new(&shared.proxy, runtime, shared.flows.clone());
    // Set once: this is called at the start only.
    let _ = shared.view.channels.set(channels);
    let (kept, mut drain) = (Arc::downgrade(&shared.view.channels), shared.drain.clone());
    tokio::spawn(async move {
        drain.draining().await;
        if let Some(channels) = kept.upgrade()
            && let Some(channels) = channels.get()
        {
            *channels.kept.lock() = None;
        }
    });
}
