//! The life of one workload, from its place to its last connection.
//!
//! Owns the order: registered, named, certified, governed, and only then served. Each step is
//! tried again until it works or the workload is taken away; one that was named before (by an
//! agent before this one) is served with the last good state while it is registered again.

use crate::{
    agent::Shared,
    backoff::Backoff,
    capture, dns,
    endpoints::party,
    host::Placement,
    listen::{self, Api},
    locals::Local,
    registry::{Registry, RegistryError},
};
use std::{
    io,
    net::{TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use weft_model::{SpiffeId, TrustDomain};
use weft_proto::weft::{dataplane::v1::WorkloadSpec, policy::v1 as pb};

/// So long a start waits for the tunnel certificate. Without one, calls on this node work and
/// calls to others do not: better late than not at all.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(5);
/// An app is asked so often whether it listens, until it does.
const PROBE_FIRST: Duration = Duration::from_millis(50);
const PROBE_MOST: Duration = Duration::from_secs(1);

/// How far a workload's start is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Waiting for this.
    Waiting(String),
    /// It can be called; its own listeners are next.
    Known,
    /// It is served.
    Ready,
    /// It will not be served.
    Refused(String),
}

/// What the registry is told of a workload.
pub fn registration(node: &str, placement: &Placement) -> pb::Workload {
    let spec = &placement.spec;
    pb::Workload {
        id: placement.id.clone(),
        node: node.to_owned(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        kind: placement.kind.into(),
        app_id: app_id(spec),
        service_account: spec.service_account.clone(),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        addresses: placement.addresses.iter().map(ToString::to_string).collect(),
        app_port: spec.app_port,
        app_protocol: if spec.app_protocol.is_empty() {
            "http".into()
        } else {
            spec.app_protocol.clone()
        },
        named_ports: spec.named_ports.clone(),
        identity: 0,
        spiffe_id: String::new(),
        shared: None,
    }
}

/// As given, else by the annotation.
fn app_id(spec: &WorkloadSpec) -> String {
    if spec.app_id.is_empty() {
        spec.annotations
            .get("dapr.io/app-id")
            .cloned()
            .unwrap_or_default()
    } else {
        spec.app_id.clone()
    }
}

/// One workload's task.
pub struct Driver {
    /// What all workloads share.
    pub shared: Arc<Shared>,
    /// This one, as the data path sees it.
    pub local: Arc<Local>,
    /// What the registry is told.
    pub registration: pb::Workload,
    /// What an earlier agent was told.
    pub derived: Option<(u32, String)>,
    /// Dapr's HTTP API.
    pub http: Vec<TcpListener>,
    /// Dapr's gRPC API.
    pub grpc: Vec<TcpListener>,
    /// Tunnels.
    pub tunnel: Vec<TcpListener>,
    /// Connections that the kernel redirects.
    pub capture: Vec<TcpListener>,
    /// Where the kernel sends questions to resolvers; empty for processes.
    pub dns: Vec<UdpSocket>,
    /// Told how far it is.
    pub progress: watch::Sender<Progress>,
}

impl Driver {
    /// Runs until the workload is taken away or the drain starts. What is being served then ends
    /// by itself.
    pub async fn run(self) {
        let (local, shared) = (self.local.clone(), self.shared.clone());
        let mut drain = shared.drain.clone();
        tokio::select! {
            () = self.live() => {}
            () = local.gone.cancelled() => {}
            () = drain.draining() => {}
        }
        // Here and not where it is taken away: nothing of this task comes after it. The same workload
        // may be here anew, handed over by a node that started again.
        let now = shared.view.locals.get(&local.id);
        if local.gone.is_cancelled() && now.is_none_or(|now| Arc::ptr_eq(&now, &local)) {
            shared.blocks().app_gone(&local.id);
        }
    }

    async fn live(mut self) {
        let mut sessions = self.shared.sessions.subscribe();
        sessions.mark_unchanged();
        if let Some((identity, spiffe_id)) = self.derived.take() {
            let mut known = self.registration.clone();
            (known.identity, known.spiffe_id) = (identity, spiffe_id);
            if let Err(reason) = self.named(known).await {
                tracing::warn!(
                    workload = &*self.local.id,
                    reason,
                    "what an earlier agent was told is not used"
                );
            }
        }
        let start = self.local.member().is_none();
        if start && !self.register().await {
            return;
        }
        let (registry, certificates) = (self.shared.registry.clone(), self.shared.certificates.clone());
        let Some(member) = self.local.member() else { return };
        let refusal = watch::Sender::new(None);
        let certified = certificates.keep(
            &self.local.id,
            member.spiffe_id.as_str(),
            &self.local.svid,
            &refusal,
        );
        let renewed = async {
            // A workload that was named before is registered again at the first session.
            if start {
                sessions.mark_unchanged();
            }
            loop {
                if sessions.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                self.register_again(&registry).await;
            }
        };
        let served = async {
            if let Err(reason) = self.ready(refusal.subscribe()).await {
                tracing::error!(workload = &*self.local.id, reason, "workload is not served");
                self.progress.send_replace(Progress::Refused(reason));
                return;
            }
            self.serve().await;
            std::future::pending().await
        };
        tokio::select! {
            () = served => {}
            _ = async { tokio::join!(certified, renewed, self.probe(), self.tell_of_certificates()) } => {}
        }
    }

    /// Until the service knows it; `false` when it never will.
    async fn register(&self) -> bool {
        let mut backoff = Backoff::upstream();
        loop {
            let failed = match self.shared.registry.register(self.registration.clone()).await {
                Ok(workload) => match self.named(workload).await {
                    Ok(()) => return true,
                    Err(reason) => reason,
                },
                Err(error @ RegistryError::Refused { .. }) => {
                    tracing::error!(%error, "workload is not served");
                    self.progress.send_replace(Progress::Refused(error.to_string()));
                    return false;
                }
                Err(error) => error.to_string(),
            };
            self.progress.send_replace(Progress::Waiting(failed));
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// After the service was away: it may have missed what went on here, or lost what it knew.
    async fn register_again(&self, registry: &Registry) {
        let mut backoff = Backoff::upstream();
        loop {
            match registry.register(self.registration.clone()).await {
                Ok(workload) => {
                    if let Err(reason) = self.named(workload).await {
                        tracing::error!(workload = &*self.local.id, reason, "registered again");
                    }
                    return;
                }
                Err(error @ RegistryError::Refused { .. }) => {
                    tracing::error!(%error, "it is served as before");
                    return;
                }
                Err(error) => tracing::debug!(%error, "trying again"),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Takes what the service derived.
    async fn named(&self, workload: pb::Workload) -> Result<(), String> {
        let id = check(&workload, &self.registration, &self.shared.trust_domain)?;
        let old = self.local.member();
        if old.as_ref().is_some_and(|m| m.workload == workload) {
            return Ok(());
        }
        let (identity, spiffe_id) = (workload.identity, workload.spiffe_id.clone());
        let party = party(&workload);
        let member = self.local.set_member(workload, id.clone(), party);
        if old.is_some() {
            // Already served: from now on under the new name.
            self.shared
                .view
                .mesh
                .change_local(|e| e.local_up(member.endpoint.clone()));
            self.open_components().await;
            self.tell_ready();
        }
        if let Err(error) = self
            .shared
            .view
            .host
            .derived(&self.local.id, identity, &spiffe_id)
            .await
        {
            tracing::warn!(workload = &*self.local.id, %error, "weft-node was not told");
        }
        tracing::info!(workload = &*self.local.id, identity, spiffe_id, "registered");
        Ok(())
    }

    /// Until certificate and policy are here, or the identity service says that this node may not
    /// host the workload: then it must not be served under that name on this node either.
    async fn ready(&self, mut refusal: watch::Receiver<Option<String>>) -> Result<(), String> {
        let mut svid = self.local.svid.subscribe();
        if self.local.svid.get().is_none() {
            let waiting = "its tunnel certificate from the identity service";
            self.progress.send_replace(Progress::Waiting(waiting.into()));
            let came = async {
                tokio::select! {
                    _ = svid.wait_for(|_| self.local.svid.get().is_some()) => None,
                    Ok(reason) = refusal.wait_for(Option::is_some) => reason.clone(),
                }
            };
            let came = tokio::time::timeout(CERTIFICATE_WITHIN, came).await;
            if let Ok(Some(reason)) = came {
                return Err(reason);
            }
            if came.is_err() {
                tracing::warn!(
                    workload = &*self.local.id,
                    "served without a tunnel certificate: calls to other nodes fail until it comes"
                );
            }
        }
        let waiting = "its policy from the policy service";
        self.progress.send_replace(Progress::Waiting(waiting.into()));
        self.shared.view.mesh.governed(&self.local.id).await;
        if let Some(kernel) = &self.shared.kernel {
            self.progress
                .send_replace(Progress::Waiting("the kernel's policy tables".into()));
            self.shared.view.mesh.journal.here(&self.local.id);
            kernel.flush_in_turn().await;
        }
        Ok(())
    }

    async fn serve(&self) {
        let Some(member) = self.local.member() else { return };
        let shared_tunnel = self.tunnel.is_empty();
        if shared_tunnel {
            self.shared
                .identities
                .insert(&member.spiffe_id, self.local.svid.clone());
        }
        self.shared
            .view
            .mesh
            .change_local(|e| e.local_up(member.endpoint.clone()));
        // What manifests give the app is there before it can ask for it.
        self.open_components().await;
        self.local.health.set_outbound(true);
        self.tell_ready();
        // Known and ready to be called: this much others wait for before anything is accepted.
        self.progress.send_replace(Progress::Known);
        self.shared.settled.cancelled().await;
        match self.listen() {
            Ok(()) => {
                self.progress.send_replace(Progress::Ready);
                tracing::info!(workload = &*self.local.id, "served");
            }
            Err(error) => {
                tracing::error!(workload = &*self.local.id, %error, "its listeners can not be used");
                self.progress.send_replace(Progress::Refused(error.to_string()));
            }
        }
    }

    /// The app's components, as far as manifests have come.
    async fn open_components(&self) {
        if let Some(member) = self.local.member() {
            self.shared.tell_components();
            self.shared.blocks().app_here(&member.context).await;
        }
    }

    /// Once it is served and listens, messages and events reach it.
    fn tell_ready(&self) {
        if self.local.health.is_ready()
            && let Some(member) = self.local.member()
        {
            self.shared.blocks().app_ready(&member.context, &member.endpoint);
        }
    }

    /// Starts accepting; each listener in a task of its own, which ends when the workload is gone
    /// or the drain starts.
    fn listen(&self) -> io::Result<()> {
        for (listeners, api) in [(&self.http, Api::Http), (&self.grpc, Api::Grpc)] {
            for listener in listeners {
                let listener = listen::to_tokio(listener)?;
                let (shared, local) = (self.shared.clone(), self.local.clone());
                tokio::spawn(listen::own(shared, local, listener, api));
            }
        }
        for socket in &self.dns {
            let socket = dns::to_tokio(socket)?;
            tokio::spawn(dns::own(self.shared.clone(), self.local.clone(), socket));
        }
        for listener in &self.capture {
            let listener = listen::to_tokio(listener)?;
            tokio::spawn(capture::own(self.shared.clone(), self.local.clone(), listener));
            self.local.set_captures();
            self.shared.view.mesh.journal.here(&self.local.id);
        }
        for listener in &self.tunnel {
            let listener = listen::to_tokio(listener)?;
            let (shared, local) = (self.shared.clone(), self.local.clone());
            tokio::spawn(async move {
                let gone = local.gone.clone();
                shared
                    .serve_tunnels(listener, weft_tunnel::Local::One(local.svid.clone()), gone)
                    .await;
            });
        }
        Ok(())
    }

    /// The kernel lets connections that must be proven pass only where there are certificates.
    async fn tell_of_certificates(&self) {
        let mut svid = self.local.svid.subscribe();
        while svid.changed().await.is_ok() {
            self.shared.view.mesh.journal.here(&self.local.id);
        }
        std::future::pending::<()>().await;
    }

    /// Until the app listens on its port.
    async fn probe(&self) {
        let port = u16::try_from(self.registration.app_port).unwrap_or(0);
        let mut backoff = Backoff::new(PROBE_FIRST, PROBE_MOST);
        if port != 0 {
            let connect = || {
                self.shared
                    .view
                    .host
                    .connect_app(&self.local.id, self.local.kind, port)
            };
            while connect().await.is_err() {
                tokio::time::sleep(backoff.pause()).await;
            }
        }
        self.local.health.set_app(true);
        self.tell_ready();
    }
}

/// Whether an answer of the registry is about this workload and names it.
fn check(answer: &pb::Workload, asked: &pb::Workload, domain: &TrustDomain) -> Result<SpiffeId, String> {
    if answer.id != asked.id {
        return Err(format!("the answer is about workload {}", answer.id));
    }
    if answer.identity == 0 {
        return Err("the answer has no identity".into());
    }
    let id: SpiffeId = answer.spiffe_id.parse().map_err(|e| format!("{e}"))?;
    if id.trust_domain() != *domain {
        return Err(format!("{id} is not of trust domain {domain}"));
    }
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_about_the_workload_and_name_it() {
        let asked = pb::Workload {
            id: "n1/default/cart/1".into(),
            ..Default::default()
        };
        let answer = pb::Workload {
            identity: 300,
            spiffe_id: "spiffe://cluster.local/ns/default/cart".into(),
            ..asked.clone()
        };
        let domain = TrustDomain::default();
        assert!(check(&answer, &asked, &domain).is_ok());
        let wrong = [
            pb::Workload {
                id: "other".into(),
                ..answer.clone()
            },
            pb::Workload {
                identity: 0,
                ..answer.clone()
            },
            pb::Workload {
                spiffe_id: String::new(),
                ..answer.clone()
            },
            pb::Workload {
                spiffe_id: "spiffe://elsewhere/ns/default/cart".into(),
                ..answer.clone()
            },
        ];
        for answer in wrong {
            assert!(check(&answer, &asked, &domain).is_err(), "{answer:?} was taken");
        }
    }
}
