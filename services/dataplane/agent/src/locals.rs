//! The workloads of this node as the data path finds them: by id, and by the cgroup that the
//! kernel names.
//!
//! Owns the index. One task writes ([`crate::table`]); connections read.

use arc_swap::ArcSwapOption;
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
use weft_runtime::{AppChannel, AppContext, AppHealth, AppSpec, Endpoint, Place, Token};
use weft_tls::SvidCell;

/// Connections of one workload to its runtime APIs: one app's flood takes its own share.
const MAX_CONNECTIONS: usize = 4096;

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

    /// From now on its own capture listener is served.
    pub fn set_captures(&self) {
        self.captures.store(true, Ordering::Release);
    }

    /// Takes what was derived. Connections that are open keep the context they began with.
    pub fn set_member(&self, workload: Workload, spiffe_id: SpiffeId, party: Arc<Party>) -> Arc<Member> {
        let port = u16::try_from(workload.app_port).unwrap_or(0);
        let context = AppContext::new(AppSpec {
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
        });
        let endpoint = Endpoint::new(self.id.clone(), party, Place::Local { app_port: port });
        let member = Arc::new(Member {
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
