//! The certificates of this node's workloads: for tunnels and, where a workload asks for it, its own.
//! Fetched, kept, renewed around half of their life.
//!
//! Owns the files of tunnel certificates under `svids/` in the data folder, so that tunnels work after a restart while the
//! identity service is away. A file is used only for the SPIFFE ID it is for and while it is valid.

use crate::{
    backoff::{Backoff, jitter},
    persist::{self, PersistError},
    subscription::explain,
    upstream::Upstream,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status, transport::Channel};
use weft_proto::weft::identity::v1::{self as pb, certificates_client::CertificatesClient};
use weft_tls::{Svid, SvidCell, TlsError, Trust, new_key_and_csr};
use weft_workload_api::X509;
use zeroize::Zeroizing;

#[cfg(test)]
mod cold_start;
#[cfg(test)]
mod outage;

/// One attempt takes at most this long.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The clock is looked at so often, so that a machine that slept renews soon.
const LOOK: Duration = Duration::from_secs(30);
/// Requests of this node that run at once, so that one that starts with many workloads leaves room
/// for the other nodes. What waits for its turn has not begun: no attempt times out meanwhile.
const AT_ONCE: usize = 16;
/// Workloads come within about this time after an order to renew.
const ORDERED: Duration = Duration::from_secs(5);
/// The identity service may learn of a workload a moment after it was registered.
const NOT_KNOWN_YET: Duration = Duration::from_millis(100);

/// For whom a certificate is.
#[derive(Debug, Clone, Copy)]
enum Whom<'a> {
    /// A workload, by its id.
    Workload(&'a str),
    /// The gateways of this node.
    Ingress,
}

impl std::fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Workload(id) => id,
            Self::Ingress => "gateways",
        })
    }
}

/// Why a tunnel certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The identity service did not give one.
    #[error("identity service: {reason}")]
    Service {
        /// What it or the transport said.
        reason: String,
        /// The workload has not reached it yet.
        not_known_yet: bool,
        /// It will not give one: this node may not host the workload.
        refused: bool,
    },
    /// What it gave is for somebody else.
    #[error("identity service sent a certificate for {got}, {wanted} was asked for")]
    Other {
        /// In the certificate.
        got: String,
        /// In the registry.
        wanted: String,
    },
    /// What it gave can not be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Fetches and keeps certificates. Clones share.
#[derive(Debug, Clone)]
pub struct Certificates {
    client: CertificatesClient<Channel>,
    upstream: Upstream,
    trust: Trust,
    node: Arc<str>,
    folder: Arc<Path>,
    turns: Arc<Semaphore>,
}

/// A file under `svids/`.
#[derive(Serialize, Deserialize)]
struct Stored {
    chain: Vec<String>,
    key: String,
}

impl Certificates {
    /// Over a channel to the identity service; files go under `folder`, which must exist.
    pub fn new(channel: Channel, upstream: Upstream, trust: Trust, node: &str, folder: &Path) -> Self {
        Self {
            client: CertificatesClient::new(channel),
            upstream,
            trust,
            node: node.into(),
            folder: folder.into(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    fn now(&self) -> u64 {
        self.trust.clock().unix_seconds()
    }

    /// Waits until a certificate is to be renewed: around half of its life, or when that is ordered.
    async fn until_due(
        &self,
        svid: &Svid,
        renewal: &mut watch::Receiver<u64>,
        revocations: &mut watch::Receiver<u64>,
    ) {
        let renew_at = svid.renew_at_spread(rand::random());
        loop {
            // After a revocation was taken back, what it had before stays revoked.
            let ordered = svid.identity().not_before < *renewal.borrow_and_update()
                || self.trust.is_revoked(svid.identity());
            let due = renew_at.saturating_sub(self.now());
            if due == 0 || ordered {
                return;
            }
            let pause = Duration::from_secs(due).min(LOOK);
            tokio::select! {
                () = tokio::time::sleep(jitter(pause)) => {}
                Ok(()) = revocations.changed() => {}
                // All nodes are told at once; their workloads need not all come at once.
                Ok(()) = renewal.changed() => tokio::time::sleep(jitter(ORDERED)).await,
            }
        }
    }

    /// A token of a workload's for an audience, and when it ends.
    pub async fn jwt(&self, workload: &str, audience: Vec<String>) -> Result<(String, u64), Status> {
        let request = pb::SignJwtRequest {
            workload_id: workload.into(),
            audience,
        };
        let mut client = self.client.clone();
        match tokio::time::timeout(ATTEMPT, client.sign_jwt(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let end = answer
                    .not_after
                    .map_or(0, |t| u64::try_from(t.seconds).unwrap_or(0));
                Ok((answer.token, end))
            }
            Ok(Err(status)) => Err(Status::new(
                status.code(),
                format!("identity service: {}", explain(&status)),
            )),
            Err(_) => Err(Status::unavailable(format!(
                "no answer of the identity service within {} s",
                ATTEMPT.as_secs()
            ))),
        }
    }

    fn file(&self, spiffe_id: &str) -> PathBuf {
        let name: String = Sha256::digest(spiffe_id)
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        self.folder.join(name)
    }

    /// Keeps `cell` filled for one workload until dropped. Never ends by itself.
    ///
    /// `refused` is told when the service says that this node may not have it.
    pub async fn keep(
        &self,
        workload: &str,
        spiffe_id: &str,
        cell: &SvidCell,
        refused: &watch::Sender<Option<String>>,
    ) {
        self.keep_for(Whom::Workload(workload), spiffe_id, cell, refused)
            .await;
    }

    /// Keeps `cell` filled for the gateways of this node until dropped.
    pub async fn keep_ingress(&self, spiffe_id: &str, cell: &SvidCell) {
        self.keep_for(Whom::Ingress, spiffe_id, cell, &watch::Sender::new(None))
            .await;
    }

    async fn keep_for(
        &self,
        workload: Whom<'_>,
        spiffe_id: &str,
        cell: &SvidCell,
        refused: &watch::Sender<Option<String>>,
    ) {
        match self.load(spiffe_id).await {
            Ok(Some(svid)) => cell.set(svid),
            Ok(None) => {}
            Err(error) => tracing::warn!(%workload, %error, "kept tunnel certificate can not be used"),
        }
        let mut backoff = Backoff::upstream();
        let mut renewal = self.trust.renewal();
        let mut revocations = self.trust.revocations();
        loop {
            if let Some(svid) = cell.get().filter(|s| s.id().as_str() == spiffe_id) {
                self.until_due(&svid, &mut renewal, &mut revocations).await;
            }
            match self.renew(workload, spiffe_id, cell).await {
                Ok(()) => backoff.reset(),
                Err(CertificateError::Service {
                    not_known_yet: true, ..
                }) => tokio::time::sleep(backoff.pause().min(NOT_KNOWN_YET)).await,
                Err(error) => {
                    tracing::warn!(%workload, %error, "no tunnel certificate yet");
                    if matches!(error, CertificateError::Service { refused: true, .. }) {
                        refused.send_replace(Some(error.to_string()));
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    /// One tunnel certificate, fetched, written to its file and put in place.
    async fn renew(
        &self,
        workload: Whom<'_>,
        spiffe_id: &str,
        cell: &SvidCell,
    ) -> Result<(), CertificateError> {
        // Nobody closes it. Keys are made and files written in turn as well.
        let _turn = self.turns.acquire().await.ok();
        let (svid, key) = self.fetch(workload, spiffe_id, pb::SvidUse::Tunnel).await?;
        self.store(&svid, spiffe_id, &key).await;
        self.upstream.connected();
        tracing::debug!(%workload, serial = svid.identity().serial, "tunnel certificate");
        cell.set(svid);
        Ok(())
    }

    /// Keeps `told` filled with a workload's own certificate until dropped or until nobody listens.
    /// It is not written to a file: the workload asks again after a restart.
    pub async fn keep_own(&self, workload: &str, spiffe_id: &str, told: &watch::Sender<Option<Arc<X509>>>) {
        let mut backoff = Backoff::upstream();
        let (mut renewal, mut revocations) = (self.trust.renewal(), self.trust.revocations());
        loop {
            let turn = self.turns.acquire().await.ok();
            let whom = Whom::Workload(workload);
            let fetched = self.fetch(whom, spiffe_id, pb::SvidUse::Workload).await;
            drop(turn);
            match fetched {
                Ok((svid, key)) => {
                    self.upstream.connected();
                    backoff.reset();
                    tracing::debug!(
                        workload,
                        serial = svid.identity().serial,
                        "certificate for the workload"
                    );
                    told.send_replace(Some(Arc::new(X509 {
                        chain: svid.chain().to_vec(),
                        key: Zeroizing::new(key.secret_der().to_vec()),
                    })));
                    self.until_due(&svid, &mut renewal, &mut revocations).await;
                }
                Err(CertificateError::Service {
                    not_known_yet: true, ..
                }) => tokio::time::sleep(backoff.pause().min(NOT_KNOWN_YET)).await,
                Err(error) => {
                    tracing::warn!(workload, %error, "the workload gets no certificate of its own yet");
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    async fn fetch(
        &self,
        whom: Whom<'_>,
        spiffe_id: &str,
        purpose: pb::SvidUse,
    ) -> Result<(Svid, PrivateKeyDer<'static>), CertificateError> {
        let made = new_key_and_csr()?;
        let mut client = self.client.clone();
        let csr_der = made.csr_der;
        let asking = async move {
            match whom {
                Whom::Workload(workload) => {
                    let request = pb::SignWorkloadRequest {
                        workload_id: workload.into(),
                        csr_der,
                        r#use: purpose.into(),
                    };
                    Ok(client.sign_workload(request).await?.into_inner().svid)
                }
                Whom::Ingress => {
                    let request = pb::SignIngressRequest { csr_der };
                    Ok::<_, Status>(client.sign_ingress(request).await?.into_inner().svid)
                }
            }
        };
        let service = |reason: String, code| CertificateError::Service {
            reason,
            not_known_yet: code == Code::NotFound,
            refused: code == Code::PermissionDenied,
        };
        let svid = match tokio::time::timeout(ATTEMPT, asking).await {
            Ok(Ok(svid)) => svid,
            Ok(Err(status)) => {
                let reason = explain(&status);
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::DeadlineExceeded | Code::Unknown
                ) {
                    self.upstream.failed(&reason);
                }
                return Err(service(reason, status.code()));
            }
            Err(_) => {
                let reason = format!("no answer within {} s", ATTEMPT.as_secs());
                self.upstream.failed(&reason);
                return Err(service(reason, Code::DeadlineExceeded));
            }
        };
        let chain = svid.unwrap_or_default().chain_der;
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let svid = Svid::new(chain, &made.key)?;
        self.check(&svid, spiffe_id, purpose)?;
        Ok((svid, made.key))
    }

    /// A tunnel's names this node; a workload's own names none, so that it opens no tunnel.
    fn check(&self, svid: &Svid, spiffe_id: &str, purpose: pb::SvidUse) -> Result<(), CertificateError> {
        let node = svid.identity().node.as_deref();
        let wanted = (purpose == pb::SvidUse::Tunnel).then_some(&*self.node);
        if svid.id().as_str() == spiffe_id && node == wanted {
            return Ok(());
        }
        Err(CertificateError::Other {
            got: format!("{} on node {}", svid.id(), node.unwrap_or("none")),
            wanted: format!("{spiffe_id} on node {}", wanted.unwrap_or("none")),
        })
    }

    /// A certificate that can not be kept is used all the same: it is only missing after a restart.
    async fn store(&self, svid: &Svid, spiffe_id: &str, key: &PrivateKeyDer<'static>) {
        let stored = Stored {
            chain: svid.chain().iter().map(|c| STANDARD.encode(c)).collect(),
            key: STANDARD.encode(key.secret_der()),
        };
        let path = self.file(spiffe_id);
        let written = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            persist::write_soon(&path, &serde_json::to_vec(&stored)?)?;
            Ok(())
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "tunnel certificate is not kept for a restart"),
            Err(error) => tracing::warn!(%error, "tunnel certificate is not kept for a restart"),
        }
    }

    async fn load(&self, spiffe_id: &str) -> Result<Option<Svid>, anyhow::Error> {
        let path = self.file(spiffe_id);
        let content = tokio::task::spawn_blocking(move || persist::read(&path)).await??;
        let Some(content) = content else {
            return Ok(None);
        };
        let svid = read_stored(&content)?;
        self.check(&svid, spiffe_id, pb::SvidUse::Tunnel)?;
        Ok((svid.identity().not_after > self.now()).then_some(svid))
    }

    /// Removes files of certificates that have expired.
    pub fn sweep(&self) -> Result<usize, PersistError> {
        let fail = |source| PersistError::Io {
            action: "list",
            path: (*self.folder).into(),
            source,
        };
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let valid = persist::read(&path)
                .ok()
                .flatten()
                .and_then(|content| read_stored(&content).ok())
                .is_some_and(|svid| svid.identity().not_after > self.now());
            if !valid && std::fs::remove_file(&path).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn read_stored(content: &[u8]) -> Result<Svid, anyhow::Error> {
    let stored: Stored = serde_json::from_slice(content)?;
    let chain: Result<Vec<_>, _> = stored.chain.iter().map(|c| STANDARD.decode(c)).collect();
    let chain = chain?.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(STANDARD.decode(&stored.key)?));
    Ok(Svid::new(chain, &key)?)
}
