//! The shared endpoints of this node: workloads that the policy service made, in whose place this agent
//! answers.
//!
//! Owns their lives: known, certified, governed, and only then called; given up when the policy service
//! takes them away. What they answer is [`crate::channels`]' business.

use crate::{
    agent::Shared,
    endpoints::party,
    locals::{Local, Seat},
};
use futures::FutureExt;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};
use weft_drain::Watcher;
use weft_flows::Proof;
use weft_model::SpiffeId;
use weft_proto::weft::policy::v1::{Workload, WorkloadKind};

/// So long one waits for its tunnel certificate. Without one, calls on this node work.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(5);
/// So long the start of an agent waits for those that one before it answered for.
const RESTORE_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct SharedApps {
    shared: Arc<Shared>,
    here: HashMap<String, Entry>,
}

struct Entry {
    message: Workload,
    local: Arc<Local>,
}

impl SharedApps {
    /// Takes up what the last good state names, and waits a little until it is served.
    pub async fn start(shared: Arc<Shared>) -> Self {
        let mut apps = Self {
            shared,
            here: HashMap::new(),
        };
        let ready = apps.reconcile();
        let all = futures::future::join_all(ready);
        let _ = tokio::time::timeout(RESTORE_WITHIN, all).await;
        apps
    }

    /// Follows the policy service until the drain.
    pub async fn run(mut self, mut drain: Watcher) {
        let mut changed = self.shared.view.mesh.subscribe();
        loop {
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = drain.draining() => return,
            }
            self.reconcile();
        }
    }

    /// Brings what is here to what should be; answers with who tells when new ones are served.
    fn reconcile(&mut self) -> Vec<oneshot::Receiver<()>> {
        let wanted = self.shared.view.mesh.shared_here();
        let ids: std::collections::HashSet<&str> = wanted.iter().map(|w| w.id.as_str()).collect();
        let gone: Vec<String> = self
            .here
            .keys()
            .filter(|id| !ids.contains(id.as_str()))
            .cloned()
            .collect();
        for id in gone {
            self.remove(&id);
        }
        let mut ready = Vec::new();
        for message in wanted {
            match self.here.get_mut(&message.id) {
                Some(entry) if entry.message == message => {}
                Some(entry)
                    if entry.message.spiffe_id == message.spiffe_id
                        && same_seat(&entry.message, &message) =>
                {
                    entry.message = message.clone();
                    let local = entry.local.clone();
                    self.named(&local, message);
                    // Known at once; its components are open already.
                    if let Some(member) = local.member() {
                        let _ = self.shared.blocks().app_here(&member.context).now_or_never();
                    }
                }
                Some(_) => {
                    self.remove(&message.id.clone());
                    ready.extend(self.add(message));
                }
                None => ready.extend(self.add(message)),
            }
        }
        ready
    }

    fn add(&mut self, message: Workload) -> Option<oneshot::Receiver<()>> {
        let addresses = message.addresses.iter().filter_map(|a| a.parse().ok());
        let local = Local::new(
            &message.id,
            WorkloadKind::Pod,
            Proof::Agent,
            0,
            Seat {
                number: 0,
                addresses: addresses.collect(),
                app_port: 0,
            },
            None,
        );
        if !self.named(&local, message.clone()) {
            return None;
        }
        tracing::info!(
            workload = message.id,
            identity = message.identity,
            "answering for a shared app"
        );
        self.shared.view.locals.insert(local.clone());
        let (told, ready) = oneshot::channel();
        tokio::spawn(live(self.shared.clone(), local.clone(), told));
        self.here.insert(message.id.clone(), Entry { message, local });
        Some(ready)
    }

    /// Takes what the policy service says of one; `false` when it can not be used.
    fn named(&self, local: &Arc<Local>, message: Workload) -> bool {
        let id: SpiffeId = match message.spiffe_id.parse() {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(workload = message.id, %error, "a shared endpoint is not served");
                return false;
            }
        };
        if id.trust_domain() != self.shared.trust_domain {
            tracing::error!(workload = message.id, spiffe_id = %id, "a shared endpoint of another trust domain is not served");
            return false;
        }
        let party = party(&message);
        let member = local.set_member(message, id, party);
        let mesh = &self.shared.view.mesh;
        if mesh.read(|endpoints| endpoints.local(&local.id)).is_some() {
            mesh.change_local(|endpoints| endpoints.local_up(member.endpoint.clone()));
        }
        true
    }

    fn remove(&mut self, id: &str) {
        let Some(entry) = self.here.remove(id) else { return };
        tracing::info!(workload = id, "a shared app is not this node's any more");
        entry.local.gone.cancel();
        self.shared.view.locals.remove(id);
        self.shared
            .view
            .mesh
            .change_local(|endpoints| endpoints.local_down(id));
        self.shared.blocks().app_gone(id);
        self.shared.forget_identity(&entry.local);
    }
}

/// What is not changed under a workload that is served.
fn same_seat(old: &Workload, new: &Workload) -> bool {
    old.addresses == new.addresses
}

/// One's life, until it is taken away or the drain starts.
async fn live(shared: Arc<Shared>, local: Arc<Local>, ready: oneshot::Sender<()>) {
    let (mut drain, gone) = (shared.drain.clone(), local.gone.clone());
    let living = async {
        let Some(member) = local.member() else { return };
        let spiffe_id = member.spiffe_id.clone();
        let refusal = watch::Sender::new(None);
        let refused = refusal.subscribe();
        let certified = shared
            .certificates
            .keep(&local.id, spiffe_id.as_str(), &local.svid, &refusal);
        let served = async {
            if serve(&shared, &local, refused).await {
                let _ = ready.send(());
            }
            std::future::pending::<()>().await
        };
        tokio::join!(certified, served);
    };
    tokio::select! {
        () = living => {}
        () = gone.cancelled() => {}
        () = drain.draining() => {}
    }
}

/// `false`: it will not be served under this name on this node.
async fn serve(shared: &Shared, local: &Arc<Local>, mut refused: watch::Receiver<Option<String>>) -> bool {
    let mut svid = local.svid.subscribe();
    let certified = async {
        tokio::select! {
            _ = svid.wait_for(|_| local.svid.get().is_some()) => None,
            Ok(reason) = refused.wait_for(Option::is_some) => reason.clone(),
        }
    };
    match tokio::time::timeout(CERTIFICATE_WITHIN, certified).await {
        Ok(Some(reason)) => {
            tracing::error!(workload = &*local.id, reason, "a shared endpoint is not served");
            return false;
        }
        Ok(None) => {}
        Err(_) => tracing::warn!(
            workload = &*local.id,
            "served without a tunnel certificate: calls of other nodes fail until it comes"
        ),
    }
    shared.view.mesh.governed(&local.id).await;
    let Some(member) = local.member() else {
        return false;
    };
    shared.identities.insert(&member.spiffe_id, local.svid.clone());
    // What manifests give the app is there before it can ask for it.
    shared.tell_components();
    shared.blocks().app_here(&member.context).await;
    // The app behind it may come and go.
    local.health.set_app(true);
    local.health.set_outbound(true);
    shared
        .view
        .mesh
        .change_local(|endpoints| endpoints.local_up(member.endpoint.clone()));
    tracing::info!(workload = &*local.id, "served");
    true
}
