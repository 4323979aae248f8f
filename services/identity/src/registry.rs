//! The authority's copy of the policy service's workload registry: who runs where.
//!
//! Whoever feeds it (the watch of the policy service, a test) calls [`Registry::apply`]; the last
//! good copy stays when the feed is cut.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use weft_model::{SvidForm, TrustDomain};
use weft_proto::weft::policy::v1::{WatchResponse, Workload};

/// A workload may be asked for right after it was registered, before this copy knows it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Far above any cluster; a registry that is larger is not taken over.
const MAX_WORKLOADS: usize = 1_000_000;

type Workloads = HashMap<Box<str>, Arc<Known>>;

/// What decisions need of a workload, and no more: there may be very many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where it runs.
    pub node: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its app-id, if it has one.
    pub app_id: Box<str>,
    /// Its service account, if it has one.
    pub service_account: Box<str>,
    /// What the registry derived, unless that is what namespace and name make anyway; may be empty.
    pub spiffe_id: Box<str>,
}

/// What SPIFFE IDs are made of beside a workload's names.
#[derive(Debug)]
struct Naming {
    trust_domain: TrustDomain,
    form: SvidForm,
}

/// The copy. Clones share.
#[derive(Debug, Clone)]
pub struct Registry {
    // `None` until the first snapshot.
    state: Arc<watch::Sender<Option<Workloads>>>,
    naming: Arc<Naming>,
}

/// What the copy knows of a workload.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// It is registered.
    Found(Arc<Known>),
    /// The copy is there and has no such workload.
    Unknown,
    /// There is no copy yet.
    NotReady,
}

/// Why a change is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// A change before the first snapshot.
    #[error("the first message of the registry's watch is no snapshot")]
    NoSnapshot,
    /// More than this copy takes.
    #[error("the registry has more than {MAX_WORKLOADS} workloads")]
    TooMany,
}

/// Keeps what is needed, as copies: in place it would lie scattered among what is given back, and hold most
/// of that as well. Nodes and namespaces of one message are few and shared.
fn known(workload: &Workload, naming: &Naming, names: &mut HashSet<Arc<str>>) -> (Box<str>, Arc<Known>) {
    let name = naming.form.name(&workload.app_id, &workload.service_account);
    let made = naming.form.id(&naming.trust_domain, &workload.namespace, name);
    let is_made = made.is_ok_and(|made| made.as_str() == workload.spiffe_id);
    let spiffe_id = if is_made { "" } else { &*workload.spiffe_id };
    let mut shared = |name: &str| match names.get(name) {
        Some(name) => name.clone(),
        None => {
            let name: Arc<str> = name.into();
            names.insert(name.clone());
            name
        }
    };
    let known = Known {
        node: shared(&workload.node),
        namespace: shared(&workload.namespace),
        app_id: (*workload.app_id).into(),
        service_account: (*workload.service_account).into(),
        spiffe_id: spiffe_id.into(),
    };
    ((*workload.id).into(), Arc::new(known))
}

impl Registry {
    /// No copy yet, of a mesh where workloads are named so.
    pub(crate) fn new(trust_domain: TrustDomain, form: SvidForm) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(None)),
            naming: Arc::new(Naming { trust_domain, form }),
        }
    }

    /// Takes over a message of the registry's watch.
    pub fn apply(&self, change: WatchResponse) -> Result<(), RegistryError> {
        let mut verdict = Ok(());
        self.state.send_if_modified(|state| {
            let held = state.as_ref().map_or(0, HashMap::len);
            if !change.snapshot && state.is_none() {
                verdict = Err(RegistryError::NoSnapshot);
                return false;
            }
            let before = if change.snapshot { 0 } else { held };
            if before.saturating_add(change.upserts.len()) > MAX_WORKLOADS {
                verdict = Err(RegistryError::TooMany);
                return false;
            }
            if change.snapshot {
                *state = None;
            }
            let workloads = state.get_or_insert_default();
            let mut names = HashSet::new();
            workloads.reserve(if change.snapshot { change.upserts.len() } else { 0 });
            for workload in &change.upserts {
                let (id, known) = known(workload, &self.naming, &mut names);
                workloads.insert(id, known);
            }
            for id in &change.removed_ids {
                workloads.remove(id.as_str());
            }
            true
        });
        verdict
    }

    /// Whether there is a copy, and of how many workloads.
    pub fn size(&self) -> Option<usize> {
        self.state.borrow().as_ref().map(HashMap::len)
    }

    /// Looks a workload up; one that is not there yet is waited for a little.
    pub async fn find(&self, id: &str) -> Lookup {
        if let Some(workload) = self.state.borrow().as_ref().and_then(|w| w.get(id)) {
            return Lookup::Found(workload.clone());
        }
        let mut watch = self.state.subscribe();
        let there = watch.wait_for(|state| state.as_ref().is_some_and(|w| w.contains_key(id)));
        // Only the state after the wait counts. Boxed: nearly every call is over before.
        let _ = Box::pin(tokio::time::timeout(PATIENCE, there)).await;
        match self.state.borrow().as_ref() {
            None => Lookup::NotReady,
            Some(workloads) => workloads.get(id).cloned().map_or(Lookup::Unknown, Lookup::Found),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(TrustDomain::new("td").unwrap(), SvidForm::default())
    }

    fn workload(id: &str) -> Workload {
        Workload {
            id: id.into(),
            ..Default::default()
        }
    }

    fn change(snapshot: bool, upserts: &[&str], removed: &[&str]) -> WatchResponse {
        WatchResponse {
            snapshot,
            upserts: upserts.iter().map(|id| workload(id)).collect(),
            removed_ids: removed.iter().map(|id| (*id).into()).collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn snapshot_then_changes() {
        let registry = registry();
        assert_eq!(registry.find("a").await, Lookup::NotReady);
        assert_eq!(
            registry.apply(change(false, &["a"], &[])),
            Err(RegistryError::NoSnapshot)
        );
        registry.apply(change(true, &["a", "b"], &[])).unwrap();
        assert!(matches!(registry.find("a").await, Lookup::Found(_)));
        registry.apply(change(false, &["c"], &["a"])).unwrap();
        assert_eq!(registry.find("a").await, Lookup::Unknown);
        assert!(matches!(registry.find("c").await, Lookup::Found(_)));
        // A new snapshot replaces everything.
        registry.apply(change(true, &["d"], &[])).unwrap();
        assert_eq!(registry.find("b").await, Lookup::Unknown);
        assert_eq!(registry.size(), Some(1));
    }

    #[tokio::test]
    async fn what_decisions_need_is_kept() {
        let registry = registry();
        let told = Workload {
            node: "n1".into(),
            namespace: "shop".into(),
            app_id: "cart".into(),
            service_account: "robot".into(),
            spiffe_id: "spiffe://td/ns/shop/cart".into(),
            ..workload("a")
        };
        // Another name is kept, to be refused by.
        let lie = Workload {
            id: "b".into(),
            spiffe_id: "spiffe://td/ns/shop/pay".into(),
            ..told.clone()
        };
        let snapshot = WatchResponse {
            upserts: vec![told, lie],
            ..change(true, &[], &[])
        };
        registry.apply(snapshot).unwrap();
        for (id, spiffe_id) in [("a", ""), ("b", "spiffe://td/ns/shop/pay")] {
            let known = Known {
                node: "n1".into(),
                namespace: "shop".into(),
                app_id: "cart".into(),
                service_account: "robot".into(),
                spiffe_id: spiffe_id.into(),
            };
            assert_eq!(registry.find(id).await, Lookup::Found(Arc::new(known)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_on_its_way_is_waited_for() {
        let registry = registry();
        registry.apply(change(true, &[], &[])).unwrap();
        let feed = registry.clone();
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feed.apply(change(false, &["late"], &[]))
        });
        assert!(matches!(registry.find("late").await, Lookup::Found(_)));
        late.await.unwrap().unwrap();
    }
}
