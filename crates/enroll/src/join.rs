//! The start of a member: with what the folder holds, or with a join token.

use crate::{
    EnrollError, KubernetesJoin, TokenSource,
    files::{Folder, Held},
    keep::Keeper,
    means::Means,
    revoked::RevocationList,
};
use rustls_pki_types::CertificateDer;
use std::{path::PathBuf, time::Duration};
use tonic::{Code, Status};
use weft_drain::Watcher;
use weft_model::{Principal, SpiffeId, TrustDomain};
use weft_proto::weft::identity::v1::{self as proto, bootstrap_client::BootstrapClient};
use weft_tls::{Bundle, Clock, Svid, SvidCell, SystemClock, Trust, new_key_and_csr};

const PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);
/// How a process wants to become a member.
#[derive(Debug)]
pub struct Enrollment {
    id: SpiffeId,
    folder: PathBuf,
    address: String,
    token: Option<TokenSource>,
    kubernetes: Option<KubernetesJoin>,
    clock: Clock,
    look_every: Duration,
    patience: Duration,
}

/// A process that is a member: its certificate and its trust, both kept current by a task that
/// ends with the drain.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who it is.
    pub id: SpiffeId,
    /// The present certificate.
    pub svid: SvidCell,
    /// The present roots.
    pub trust: Trust,
}

impl Enrollment {
    /// To be `id` (`/weft/service/<name>` or `/weft/node/<name>`), with key and certificate in
    /// `folder`, by the identity service at `address` (`host:port`).
    pub fn new(id: SpiffeId, folder: PathBuf, address: String) -> Self {
        Self {
            id,
            folder,
            address,
            token: None,
            kubernetes: None,
            clock: SystemClock::shared(),
            look_every: Duration::from_secs(1),
            patience: DEFAULT_PATIENCE,
        }
    }

    /// The token for the first start, and for one after the certificate expired.
    pub fn token(mut self, token: TokenSource) -> Self {
        self.token = Some(token);
        self
    }

    /// Instead of a join token: the token that Kubernetes gave this process's pod, whenever one is needed.
    pub fn kubernetes(mut self, by: KubernetesJoin) -> Self {
        self.kubernetes = Some(by);
        self
    }

    /// Another clock than the machine's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How often the clock is compared with the time to renew (every second by default).
    pub fn look_every(mut self, every: Duration) -> Self {
        self.look_every = every;
        self
    }

    /// How long to try when the identity service can not be reached (a minute by default): it may
    /// be starting at the same time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Becomes a member. Returns as soon as there is a valid certificate: from the folder when it
    /// holds one, else by joining. The task that keeps it current runs until the drain.
    pub async fn enroll(self, drain: Watcher) -> Result<Member, EnrollError> {
        if !matches!(self.id.principal(), Principal::Service(_) | Principal::Node(_)) {
            return Err(EnrollError::NotAMember(self.id));
        }
        let trust_domain = self.id.trust_domain();
        let folder = Folder::open(&self.folder)?;
        let starting = folder.lock(self.patience).await?;
        let usable = match folder.load(&trust_domain)? {
            Some(held) => self.check(held)?,
            None => None,
        };
        let held = match usable {
            Some(held) => held,
            None => self.join(&folder, &trust_domain).await?,
        };
        drop(starting);
        let trust = Trust::new(trust_domain, self.clock.clone());
        trust.set(held.bundle)?;
        trust.set_revoked(held.revoked.revoked());
        let svid = SvidCell::new();
        svid.set(held.svid);
        let member = Member {
            id: self.id,
            svid,
            trust,
        };
        let keeper = Keeper {
            member: member.clone(),
            folder,
            address: self.address,
            clock: self.clock,
            look_every: self.look_every,
        };
        tokio::spawn(keeper.run(drain));
        Ok(member)
    }

    /// Whether what the folder holds can be used; `None` when a new join has to replace it.
    fn check(&self, held: Held) -> Result<Option<Held>, EnrollError> {
        if *held.svid.id() != self.id {
            return Err(EnrollError::OtherId {
                folder: self.folder.clone(),
                found: Box::new(held.svid.id().clone()),
                wanted: Box::new(self.id.clone()),
            });
        }
        let now = self.clock.unix_seconds();
        let (id, folder) = (self.id.clone(), self.folder.clone());
        let identity = held.svid.identity();
        if now < identity.not_before {
            return Err(EnrollError::ClockBehind {
                id,
                folder,
                seconds: identity.not_before - now,
            });
        }
        if now <= identity.not_after {
            return Ok(Some(held));
        }
        if self.token.is_none() && self.kubernetes.is_none() {
            return Err(EnrollError::Expired {
                id,
                folder,
                seconds_ago: now - identity.not_after,
            });
        }
        tracing::info!(%id, "the certificate has expired, joining anew");
        Ok(None)
    }

    async fn join(&self, folder: &Folder, trust_domain: &TrustDomain) -> Result<Held, EnrollError> {
        let means = match (&self.kubernetes, &self.token) {
            (Some(by), _) => Means::Kubernetes(by.clone()),
            (None, Some(source)) => Means::token(source)?,
            (None, None) => {
                return Err(EnrollError::NoToken {
                    id: self.id.clone(),
                    folder: folder.path().to_path_buf(),
                });
            }
        };
        let mut client = BootstrapClient::new(means.channel(&self.address, trust_domain, &self.clock)?);
        let made = new_key_and_csr()?;
        let deadline = tokio::time::Instant::now() + self.patience;
        let mut pause = PAUSE;
        let (svid, bundle) = loop {
            let status = match means.ask(&mut client, &self.id, made.csr_der.clone()).await? {
                Ok(answer) => break answer,
                Err(status) => status,
            };
            let error = self.sort(&status);
            let again = matches!(error, EnrollError::Unreachable { .. });
            if !again || tokio::time::Instant::now() + pause > deadline {
                return Err(error);
            }
            tracing::warn!(%error, "join failed, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        let unusable = |reason: String| EnrollError::Answer {
            address: self.address.clone(),
            reason,
        };
        let bundle = read_bundle(bundle, trust_domain).map_err(unusable)?;
        means.check(&bundle).map_err(unusable)?;
        let chain = read_chain(svid).map_err(unusable)?;
        let svid = Svid::new(chain.clone(), &made.key)?;
        if *svid.id() != self.id {
            return Err(EnrollError::TokenForOther {
                given: Box::new(svid.id().clone()),
                wanted: Box::new(self.id.clone()),
            });
        }
        // The certificate last: when it is there, all of it is.
        folder.store_bundle(&bundle)?;
        folder.store_svid(&made.key, &chain)?;
        tracing::info!(id = %self.id, by = means.name(), serial = svid.identity().serial, "joined the mesh");
        // What is revoked comes with the first message of the bundle's stream.
        Ok(Held {
            svid,
            bundle,
            revoked: RevocationList::default(),
        })
    }

    fn sort(&self, status: &Status) -> EnrollError {
        let address = self.address.clone();
        let reason = explain(status);
        match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated => EnrollError::Refused {
                address,
                id: Box::new(self.id.clone()),
                reason,
            },
            // rustls wraps what the verifier said; nothing else of an I/O error matters here.
            _ if reason.contains("certificate") => EnrollError::WrongServer { address, reason },
            _ => EnrollError::Unreachable { address, reason },
        }
    }
}

/// The message with what lies under it: tonic's own says only "transport error".
pub(crate) fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn read_chain(svid: Option<proto::Svid>) -> Result<Vec<CertificateDer<'static>>, String> {
    const MAX_CHAIN: usize = 8;
    let chain = svid.ok_or("no certificate")?.chain_der;
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err(format!("a chain of {} certificates", chain.len()));
    }
    Ok(chain.into_iter().map(CertificateDer::from).collect())
}

pub(crate) fn read_bundle(
    bundle: Option<proto::TrustBundle>,
    expected: &TrustDomain,
) -> Result<Bundle, String> {
    const MAX_ROOTS: usize = 16;
    let bundle = bundle.ok_or("no trust bundle")?;
    if bundle.trust_domain != expected.as_str() {
        return Err(format!(
            "a trust bundle of {:?}, expected {expected}",
            bundle.trust_domain
        ));
    }
    if bundle.roots_der.is_empty() || bundle.roots_der.len() > MAX_ROOTS {
        return Err(format!("a trust bundle with {} roots", bundle.roots_der.len()));
    }
    const MAX_JWKS: usize = 64 * 1024;
    if bundle.jwks_json.len() > MAX_JWKS {
        return Err(format!("{} bytes of keys for JWT-SVIDs", bundle.jwks_json.len()));
    }
    let roots = bundle.roots_der.into_iter().map(CertificateDer::from).collect();
    Ok(Bundle {
        trust_domain: expected.clone(),
        version: bundle.version,
        roots,
        jwks: bundle.jwks_json,
    })
}
