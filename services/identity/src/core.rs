//! What the authority's decisions share: its certificates, its record, its clock. The decisions
//! themselves are in `tokens` and `grants`; they know nothing of gRPC but its status codes. Every
//! issuance is recorded before it is given out, every refusal when it is made.

use crate::{
    audit::Gate,
    authority::{self, Authority, Issued, Order},
    config::{CaConfig, Config},
    counts::Counts,
    db::{Audit, AuditRow, Db, StoredAuthority, StoredTrust},
    error::{Refused, StartError},
    keyfile::KeyFile,
    registry::Registry,
    tokens::Kind,
};
use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use weft_model::{SpiffeId, TrustDomain};
use weft_rpc::Caller;
use weft_tls::{Bundle, Clock, Svid, root_sha256};

/// The service's own name; no token can be made for it.
pub(crate) const OWN_NAME: &str = "identity";
/// Labels that sealed keys are bound to.
const ROOT: &str = "root";
const ISSUER: &str = "issuer";
/// Of operators' certificates and join tokens.
const MAX_TTL: u32 = 86_400;

/// Joins that a follower may be behind; one that is further behind is told all anew.
const JOINS: usize = 256;

/// The authority with everything its decisions need.
#[derive(Debug)]
pub struct Core {
    pub(crate) db: Db,
    key_file: KeyFile,
    authority: ArcSwap<Authority>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) bundle: watch::Sender<Bundle>,
    /// Whether the authority was made now.
    pub(crate) is_new: bool,
    pub(crate) registry: Registry,
    /// Names of nodes as they join.
    pub(crate) joins: broadcast::Sender<String>,
    clock: Clock,
    pub(crate) settings: CaConfig,
    pub(crate) gate: Gate,
    pub(crate) counts: Counts,
}

/// What was asked for, or why it is not given.
pub(crate) type Decision<T> = Result<T, Refused>;

impl Core {
    /// Opens the database; makes root and issuer when there are none.
    pub async fn open(config: &Config, clock: Clock, counts: Counts) -> Result<Self, StartError> {
        let trust_domain = config.parsed_trust_domain()?;
        let now = clock.unix_seconds();
        let db = Db::open(&config.database()).await?;
        let held = db.trust().await?;
        let is_new = held.is_none();
        let key_file = KeyFile::open(&config.key_file(), is_new)?;
        let stored = match held {
            Some(stored) => stored,
            None => {
                let made = make_trust(&trust_domain, &key_file, now)?;
                db.create_trust(&made, now).await?;
                made
            }
        };
        if stored.trust_domain != trust_domain.as_str() {
            return Err(StartError::TrustDomain {
                database: config.database(),
                stored: stored.trust_domain,
                configured: trust_domain.to_string(),
            });
        }
        authority::check_root(&stored.root.cert, now)?;
        let issuer = match stored.issuers.iter().find(|i| authority::is_valid(&i.cert, now)) {
            Some(issuer) => issuer.clone(),
            // The service was off for long; the root still speaks for a new one.
            None => add_issuer(&db, &key_file, &trust_domain, &stored.root, now).await?,
        };
        let issuer_key = key_file.open_sealed(ISSUER, &issuer.sealed_key)?;
        let authority = Authority::new(&stored.root, &issuer, &issuer_key, now)?;
        let bundle = Bundle {
            trust_domain: trust_domain.clone(),
            version: stored.bundle_version,
            roots: vec![stored.root.cert.clone()],
        };
        Ok(Self {
            db,
            key_file,
            authority: ArcSwap::from_pointee(authority),
            trust_domain,
            bundle: watch::Sender::new(bundle),
            is_new,
            registry: Registry::default(),
            joins: broadcast::Sender::new(JOINS),
            clock,
            settings: config.ca.clone(),
            gate: Gate::default(),
            counts,
        })
    }

    /// The roots, and their changes.
    pub fn bundle(&self) -> watch::Receiver<Bundle> {
        self.bundle.subscribe()
    }

    /// The copy of the workload registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Issuances and refusals, newest first.
    pub async fn list_audit(&self, limit: u32, before_id: u64) -> Decision<Vec<AuditRow>> {
        Ok(self.db.list_audit(limit, before_id).await?)
    }

    /// Ends all connections to the database.
    pub async fn close(self) {
        self.db.close().await;
    }

    /// The clock that decides.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whose members are named.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// SHA-256 of the root: what join tokens pin.
    pub fn root_sha256(&self) -> [u8; 32] {
        root_sha256(self.authority.load().root())
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.unix_seconds()
    }

    /// A fresh certificate for the service itself. Its chain ends with the root, which newcomers
    /// compare with the hash in their token.
    pub async fn own_svid(&self) -> Result<Svid, StartError> {
        let id = self.trust_domain.service(OWN_NAME)?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(authority::AuthorityError::from)?;
        let order = Order {
            id: &id,
            node: None,
            lifetime: self.settings.service_ttl(),
            key: &key,
        };
        let (issued, root) = {
            let authority = self.authority.load();
            (authority.issue(&order, self.now())?, authority.root().clone())
        };
        self.db
            .audit(&self.issuance("own-certificate", "local", &issued))
            .await?;
        self.counts.issued("own-certificate");
        self.counts.own_certificate(issued.not_after);
        let chain: Vec<CertificateDer<'static>> = issued.chain.into_iter().chain([root]).collect();
        Ok(Svid::new(
            chain,
            &PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?)
    }

    /// Puts a new issuer in place when half of the present one's life is over. The root, and so
    /// every verifier's bundle, stays.
    pub async fn renew_issuer_if_due(&self) -> Result<bool, StartError> {
        let now = self.now();
        if !self.authority.load().issuer_is_due(now) {
            return Ok(false);
        }
        let Some(stored) = self.db.trust().await? else {
            return Ok(false);
        };
        let issuer = add_issuer(&self.db, &self.key_file, &self.trust_domain, &stored.root, now).await?;
        let issuer_key = self.key_file.open_sealed(ISSUER, &issuer.sealed_key)?;
        let authority = Authority::new(&stored.root, &issuer, &issuer_key, now)?;
        self.authority.store(authority.into());
        tracing::info!("new issuing certificate in use");
        Ok(true)
    }

    /// Drops audit entries beyond the configured number.
    pub async fn trim_audit(&self) -> Result<u64, StartError> {
        Ok(self.db.trim_audit(self.settings.audit_entries).await?)
    }

    pub(crate) fn member_ttl(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Service => self.settings.service_ttl(),
            Kind::Node => self.settings.node_ttl(),
        }
    }

    pub(crate) fn sign(
        &self,
        id: &SpiffeId,
        node: Option<&str>,
        lifetime: Duration,
        key: &rcgen::SubjectPublicKeyInfo,
    ) -> Decision<Issued> {
        let order = Order {
            id,
            node,
            lifetime,
            key,
        };
        Ok(self.authority.load().issue(&order, self.now())?)
    }

    pub(crate) fn asked(&self, action: &'static str, caller: &Caller, spiffe_id: &str) -> Audit {
        let caller = match caller {
            Caller::Local { uid } => format!("local:{uid}"),
            Caller::Anonymous => "anonymous".into(),
            Caller::Tls(peer) => peer.id.to_string(),
        };
        let spiffe_id = spiffe_id.chars().take(2048).collect();
        Audit {
            time: self.now(),
            action,
            caller,
            spiffe_id,
            ..Audit::default()
        }
    }

    pub(crate) fn issuance(&self, action: &'static str, caller: &str, issued: &Issued) -> Audit {
        Audit {
            time: self.now(),
            action,
            caller: caller.into(),
            spiffe_id: issued.id.to_string(),
            serial: issued.serial.clone(),
            ..Audit::default()
        }
    }

    /// Records what is about to be given out.
    pub(crate) async fn record_issue(
        &self,
        action: &'static str,
        caller: &str,
        issued: &Issued,
    ) -> Decision<()> {
        self.db.audit(&self.issuance(action, caller, issued)).await?;
        self.counts.issued(action);
        Ok(())
    }

    /// Records a refusal and passes the decision on.
    pub(crate) async fn or_record<T>(&self, asked: &Audit, checked: Decision<T>) -> Decision<T> {
        if let Err(refused) = &checked
            && refused.is_decision()
        {
            self.record_refusal(asked.clone(), refused.to_string()).await;
        }
        checked
    }

    /// A refusal stands even if it can not be recorded.
    pub(crate) async fn record_refusal(&self, asked: Audit, reason: String) {
        self.counts.refused(asked.action);
        tracing::warn!(
            action = asked.action,
            caller = asked.caller,
            asked = asked.spiffe_id,
            reason,
            "refused"
        );
        if let Err(error) = self.db.audit(&Audit { reason, ..asked }).await {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }
}

/// A time to live from outside.
pub(crate) fn ttl(asked: u32, default: u32) -> Decision<u64> {
    match asked {
        0 => Ok(default.into()),
        1..=MAX_TTL => Ok(asked.into()),
        _ => Err(Refused::invalid(format!(
            "ttl_seconds {asked}, at most {MAX_TTL}"
        ))),
    }
}

async fn add_issuer(
    db: &Db,
    key_file: &KeyFile,
    trust_domain: &TrustDomain,
    root: &StoredAuthority,
    now: u64,
) -> Result<StoredAuthority, StartError> {
    let root_key = key_file.open_sealed(ROOT, &root.sealed_key)?;
    let made = authority::make_issuer(trust_domain, &root.cert, &root_key, now)?;
    let issuer = StoredAuthority {
        sealed_key: key_file.seal(ISSUER, &made.key)?,
        cert: made.cert,
    };
    db.add_issuer(&issuer, now).await?;
    Ok(issuer)
}

fn make_trust(trust_domain: &TrustDomain, key_file: &KeyFile, now: u64) -> Result<StoredTrust, StartError> {
    let root = authority::make_root(trust_domain, now)?;
    let issuer = authority::make_issuer(trust_domain, &root.cert, &root.key, now)?;
    Ok(StoredTrust {
        trust_domain: trust_domain.to_string(),
        bundle_version: 1,
        root: StoredAuthority {
            sealed_key: key_file.seal(ROOT, &root.key)?,
            cert: root.cert,
        },
        issuers: vec![StoredAuthority {
            sealed_key: key_file.seal(ISSUER, &issuer.key)?,
            cert: issuer.cert,
        }],
    })
}
