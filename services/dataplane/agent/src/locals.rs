//! The workloads of this node as the data path finds them: by id, and by the cgroup that the
//! kernel names.
//!
//! Owns the index. One task writes ([`crate::table`]); connections read.

use crate::shared_api::Asked;
use arc_swap::ArcSwapOption;
use http::HeaderValue;
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weft_flows::{Party, Proof};
use weft_model::SpiffeId;
use weft_proto::weft::policy::v1::{Workload, WorkloadKind};
use weft_runtime::{AppChannel, AppContext, AppHealth, AppSettings, AppSpec, Endpoint, Place, Token};
use weft_tls::SvidCell;

/// Connections of one workload to its runtime APIs: one app's flood takes its own share.
const MAX_CONNECTIONS: usize = 4096;
/// Its questions to resolvers under way: the same.
const MAX_QUESTIONS: usize = 256;

/// One workload of this node.
#[derive(Debug)]
pub struct Local {
    /// `<node>/<namespace>/<name>/<start>`.
    pub id: Arc<str>,
    /// With addresses of its own, or sharing the node's.
    pub kind: WorkloadKind,
    /// How its connections are known to be its own.
    pub proof: Proof,
    /// 0 when it has no cgroup of its own.
    pub cgroup_id: u64,
    /// Where it is, as the kernel's tables need to know it.
    pub seat: Seat,
    /// What its calls must show, where nothing else proves them.
    pub token: Option<Token>,
    /// Its tunnel certificate; empty until there is one.
    pub svid: SvidCell,
    /// Its readiness.
    pub health: Arc<AppHealth>,
    /// Bounds its connections to the runtime APIs.
    pub connections: Arc<Semaphore>,
    /// What was asked of a shared endpoint.
    pub asked: Asked,
    /// Bounds its questions to resolvers that are under way.
    pub questions: Arc<Semaphore>,
    /// Cancelled when it is taken away.
    pub gone: CancellationToken,
    captures: AtomicBool,
    member: ArcSwapOption<Member>,
}

/// Where a workload is, as the kernel's tables need to know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seat {
    /// Its endpoint number; 0 for none.
    pub number: u32,
    /// A pod's own addresses; the node's for processes.
    pub addresses: Vec<IpAddr>,
    /// Where it listens.
    pub app_port: u16,
}

/// What is known of a workload once the mesh has a name for it.
#[derive(Debug)]
pub struct Member {
    /// As registered.
    pub workload: Workload,
    /// As its certificate names it.
    pub spiffe_id: SpiffeId,
    /// For its calls.
    pub context: Arc<AppContext>,
    /// For calls to it.
    pub endpoint: Arc<Endpoint>,
    /// The app behind it, of a shared endpoint.
    pub remote: Option<Arc<Remote>>,
}

/// The app behind a shared endpoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Remote {
    /// A Service's name, any other name, or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What the app sees as the host it is called by.
    pub authority: HeaderValue,
}

impl Remote {
    /// `http://<host>:<port>`, as the policy service has read and written it.
    pub(crate) fn read(url: &str) -> Option<Self> {
        let authority = url.strip_prefix("http://")?;
        let (host, port) = authority.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
            authority: HeaderValue::from_str(authority).ok()?,
        })
    }

    /// The Service that is meant, if it is one: its namespace and name. `own` is the namespace of who asks.
    pub fn service<'a>(&'a self, own: &'a str) -> Option<(&'a str, &'a str)> {
        let mut parts = self.host.trim_end_matches('.').splitn(3, '.');
        let name = parts.next()?;
        let namespace = parts.next().unwrap_or(own);
        match parts.next() {
            None | Some("svc" | "svc.cluster.local") => Some((namespace, name)),
            Some(_) => None,
        }
    }

    /// Whether it can be nothing but a Service.
    pub fn is_of_cluster(&self) -> bool {
        let host = self.host.trim_end_matches('.');
        !host.contains('.') || host.ends_with(".svc") || host.ends_with(".svc.cluster.local")
    }
}

impl Local {
    /// Not yet a member.
    pub fn new(
        id: &str,
        kind: WorkloadKind,
        proof: Proof,
        cgroup_id: u64,
        seat: Seat,
        token: Option<&str>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            kind,
            proof,
            cgroup_id,
            seat,
            token: token.map(Token::new),
            svid: SvidCell::new(),
            health: Arc::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            asked: Asked::default(),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            gone: CancellationToken::new(),
            captures: AtomicBool::new(false),
            member: ArcSwapOption::empty(),
        })
    }

    /// What is known; `None` until the mesh has a name for it.
    pub fn member(&self) -> Option<Arc<Member>> {
        self.member.load_full()
    }

    /// Whether it holds a certificate that is valid at `now` (seconds since the Unix epoch).
    pub fn is_proven(&self, now: u64) -> bool {
        self.svid
            .get()
            .is_some_and(|svid| svid.identity().not_after > now)
    }

    /// Whether it is no process, and the agent answers in its place.
    pub fn is_shared(&self) -> bool {
        self.proof == Proof::Agent
    }

    /// From now on its own capture listener is served.
    pub fn set_captures(&self) {
        self.captures.store(true, Ordering::Release);
    }

    /// Takes what was derived. Connections that are open keep the context they began with.
    pub fn set_member(&self, workload: Workload, spiffe_id: SpiffeId, party: Arc<Party>) -> Arc<Member> {
        let port = u16::try_from(workload.app_port).unwrap_or(0);
        let settings = AppSettings::of(&workload.annotations);
        let spec = AppSpec {
            workload: self.id.clone(),
            party: party.clone(),
            proof: self.proof,
            token: self.token.clone(),
            svid: Some(self.svid.clone()),
            channel: AppChannel {
                port,
                protocol: workload.app_protocol.clone(),
            },
            health: self.health.clone(),
        };
        let context = AppContext::with_settings(spec, settings);
        let endpoint = Endpoint::new(self.id.clone(), party, Place::Local { app_port: port });
        let remote = workload.shared.as_ref();
        let member = Arc::new(Member {
            remote: remote
                .and_then(|shared| Remote::read(&shared.remote))
                .map(Arc::new),
            workload,
            spiffe_id,
            context,
            endpoint,
        });
        self.member.store(Some(member.clone()));
        member
    }
}

/// The index. Clones share.
#[derive(Debug, Clone, Default)]
pub struct Locals(Arc<RwLock<Index>>);

#[derive(Debug, Default)]
struct Index {
    /// The node's own capture listener is served.
    node_captures: bool,
    by_id: HashMap<Arc<str>, Arc<Local>>,
    by_cgroup: HashMap<u64, Arc<Local>>,
    by_number: HashMap<u32, Arc<Local>>,
}

impl Locals {
    /// Adds a workload.
    pub fn insert(&self, local: Arc<Local>) {
        let mut index = self.0.write();
        if local.cgroup_id != 0 {
            index.by_cgroup.insert(local.cgroup_id, local.clone());
        }
        if local.seat.number != 0 {
            index.by_number.insert(local.seat.number, local.clone());
        }
        index.by_id.insert(local.id.clone(), local);
    }

    /// Forgets a workload.
    pub fn remove(&self, id: &str) {
        let mut index = self.0.write();
        let Some(old) = index.by_id.remove(id) else { return };
        // The kernel may have given its cgroup's number to a new one already.
        if index
            .by_cgroup
            .get(&old.cgroup_id)
            .is_some_and(|l| Arc::ptr_eq(l, &old))
        {
            index.by_cgroup.remove(&old.cgroup_id);
        }
        let number = old.seat.number;
        if index.by_number.get(&number).is_some_and(|l| Arc::ptr_eq(l, &old)) {
            index.by_number.remove(&number);
        }
    }

    /// Whether the node's own capture listener is served.
    pub fn set_node_captures(&self, served: bool) {
        self.0.write().node_captures = served;
    }

    /// Whether what the kernel redirects is served where this workload is.
    pub fn captures(&self, local: &Local) -> bool {
        match local.kind {
            WorkloadKind::Pod => local.captures.load(Ordering::Acquire),
            _ => self.0.read().node_captures,
        }
    }

    /// By id.
    pub fn get(&self, id: &str) -> Option<Arc<Local>> {
        self.0.read().by_id.get(id).cloned()
    }

    /// By the cgroup that the kernel recorded.
    pub fn of_cgroup(&self, cgroup_id: u64) -> Option<Arc<Local>> {
        self.0.read().by_cgroup.get(&cgroup_id).cloned()
    }

    /// By its endpoint number.
    pub fn of_number(&self, number: u32) -> Option<Arc<Local>> {
        self.0.read().by_number.get(&number).cloned()
    }

    /// All.
    pub fn all(&self) -> Vec<Arc<Local>> {
        self.0.read().by_id.values().cloned().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_is_a_service_by_any_of_its_names() {
        let service = |host: &str| {
            let remote = Remote::read(&format!("http://{host}:80")).unwrap();
            let found = remote.service("own").map(|(n, s)| format!("{n}/{s}"));
            (found, remote.is_of_cluster())
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(service("web"), (named("own/web"), true));
        assert_eq!(service("web.shop"), (named("shop/web"), false));
        assert_eq!(service("web.shop.svc"), (named("shop/web"), true));
        assert_eq!(service("web.shop.svc.cluster.local."), (named("shop/web"), true));
        assert_eq!(service("api.web.example"), (None, false));
        assert_eq!(service("10.0.0.1"), (None, false));
        let v6 = Remote::read("http://[fd00::1]:81").unwrap();
        assert_eq!((v6.host.as_str(), v6.port), ("fd00::1", 81));
        assert_eq!(v6.authority, "[fd00::1]:81");
    }

    #[test]
    fn a_reused_cgroup_number_belongs_to_the_new_workload() {
        let locals = Locals::default();
        let new = |id| Local::new(id, WorkloadKind::Process, Proof::Cgroup, 7, Seat::default(), None);
        locals.insert(new("old"));
        locals.insert(new("new"));
        locals.remove("old");
        assert_eq!(&*locals.of_cgroup(7).unwrap().id, "new");
        locals.remove("new");
        assert!(locals.of_cgroup(7).is_none() && locals.all().is_empty());
        // Without a cgroup there is nothing to be found by.
        locals.insert(Local::new(
            "pod",
            WorkloadKind::Pod,
            Proof::PodListener,
            0,
            Seat::default(),
            None,
        ));
        assert!(locals.of_cgroup(0).is_none());
    }
}
