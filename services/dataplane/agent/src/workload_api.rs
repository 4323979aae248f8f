//! SPIFFE's Workload API for the workloads of this node.
//!
//! Owns which workload a cgroup means there, and the certificates that were asked for: each is
//! fetched at the first request and kept fresh until its workload is taken away.

use crate::agent::Shared;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_model::SpiffeId;
use weft_tls::Trust;
use weft_workload_api::{Jwks, Source, Workload, X509};

/// Tokens that are kept; beyond, each request goes to the identity service.
const MAX_TOKENS: usize = 4096;

type Told = watch::Receiver<Option<Arc<X509>>>;

/// Starts serving on a socket of `weft-node`, until the drain or until `replaced`.
pub fn serve(shared: &Arc<Shared>, listener: UnixListener, replaced: CancellationToken) {
    let cgroup2 = match weft_bpf::find_cgroup2() {
        Ok(cgroup2) => cgroup2,
        Err(error) => {
            tracing::warn!(%error, "the SPIFFE Workload API is not served: nobody could be told apart");
            return;
        }
    };
    let source = Arc::new(Identities {
        shared: shared.clone(),
        kept: Mutex::default(),
        tokens: Mutex::default(),
        jwks: keys(&shared.trust, replaced.clone()),
    });
    let (trust, drain) = (shared.trust.clone(), shared.drain.clone());
    tokio::spawn(async move {
        let served = weft_workload_api::serve(listener, source, trust, cgroup2, drain);
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::error!(%error, "workloads get no identities");
                }
            }
            () = replaced.cancelled() => {}
        }
    });
}

/// The keys of the bundle, as they change.
fn keys(trust: &Trust, ended: CancellationToken) -> watch::Receiver<Arc<Jwks>> {
    let read = |trust: &Trust| {
        let json = trust.bundle().jwks;
        if json.is_empty() {
            return Arc::new(Jwks::empty());
        }
        Arc::new(Jwks::parse(&json).unwrap_or_else(|error| {
            tracing::error!(%error, "the bundle's keys for JWT-SVIDs can not be used: none is good");
            Jwks::empty()
        }))
    };
    let mut changed = trust.subscribe();
    let (told, keys) = watch::channel(read(trust));
    let trust = trust.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = ended.cancelled() => return,
                () = told.closed() => return,
            }
            let now = read(&trust);
            told.send_if_modified(|held| {
                let other = held.json() != now.json();
                *held = now;
                other
            });
        }
    });
    keys
}

/// Workload, name and audience.
type Asked = (Arc<str>, SpiffeId, Vec<String>);

#[derive(Debug, Clone)]
struct Token {
    token: String,
    /// Handed out so long, in seconds since the Unix epoch.
    until: u64,
}

struct Identities {
    shared: Arc<Shared>,
    /// By workload and the name it had when it asked.
    kept: Mutex<HashMap<(Arc<str>, SpiffeId), Told>>,
    tokens: Mutex<HashMap<Asked, Token>>,
    jwks: watch::Receiver<Arc<Jwks>>,
}

impl Source for Identities {
    fn find(&self, cgroups: &[u64]) -> Option<Workload> {
        let locals = &self.shared.view.locals;
        let local = cgroups.iter().find_map(|cgroup| locals.of_cgroup(*cgroup))?;
        Some(Workload {
            id: local.id.clone(),
            spiffe_id: local.member()?.spiffe_id.clone(),
            gone: local.gone.clone(),
        })
    }

    fn x509(&self, workload: &Workload) -> Told {
        let mut kept = self.kept.lock();
        // Those whose task has ended.
        kept.retain(|_, told| told.has_changed().is_ok());
        let key = (workload.id.clone(), workload.spiffe_id.clone());
        if let Some(told) = kept.get(&key) {
            return told.clone();
        }
        let (sender, told) = watch::channel(None);
        kept.insert(key, told.clone());
        let (certificates, mut drain) = (self.shared.certificates.clone(), self.shared.drain.clone());
        let workload = workload.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = certificates.keep_own(&workload.id, workload.spiffe_id.as_str(), &sender) => {}
                () = workload.gone.cancelled() => {}
                () = drain.draining() => {}
            }
        });
        told
    }

    async fn jwt(&self, workload: &Workload, mut audience: Vec<String>) -> Result<String, Status> {
        audience.sort_unstable();
        audience.dedup();
        let key = (workload.id.clone(), workload.spiffe_id.clone(), audience);
        let now = self.shared.trust.clock().unix_seconds();
        let held = self.tokens.lock().get(&key).cloned();
        if let Some(held) = held.filter(|held| now < held.until) {
            return Ok(held.token);
        }
        let (token, end) = self.shared.certificates.jwt(&workload.id, key.2.clone()).await?;
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, held| now < held.until);
        }
        if tokens.len() < MAX_TOKENS {
            // At half of its life there is a new one, so that who is given it has time to use it.
            let until = now + end.saturating_sub(now) / 2;
            let token = token.clone();
            tokens.insert(key, Token { token, until });
        }
        Ok(token)
    }

    fn jwks(&self) -> watch::Receiver<Arc<Jwks>> {
        self.jwks.clone()
    }
}
