//! What the authority's decisions share: its certificates, its clock; its record is in `record`. The
//! decisions themselves are in `tokens` and `grants`; they know nothing of gRPC but its status codes.

use crate::{
    acks::Acks,
    attest::Attestor,
    audit::Gate,
    authority::{Issued, Maker, Order},
    config::{CaConfig, Config},
    connections::Connections,
    counts::Counts,
    db::{AuditRow, Db, Filter, StoredTrust},
    error::StartError,
    hierarchy::{self, Live},
    kek::Kek,
    members::Members,
    own,
    recorder::Recorder,
    refused::Refused,
    registry::Registry,
    revocation::{Revocations, verifiers_view},
    rotation,
    supplied::Supplied,
    tokens::Kind,
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{Notify, broadcast, watch};
use weft_model::{SpiffeId, TrustDomain};
use weft_rpc::Caller;
use weft_tls::{Bundle, Clock, Revoked};

/// The service's own name; no token can be made for it.
pub(crate) const OWN_NAME: &str = "identity";
/// Of operators' certificates and join tokens.
const MAX_TTL: u32 = 86_400;

/// Joins that a follower may be behind; one that is further behind is told all anew.
const JOINS: usize = 256;
/// What members are told of, and its changes.
#[derive(Debug, Clone)]
pub struct Published {
    /// The roots.
    pub bundle: Bundle,
    /// Certificates that begin before are to be renewed now.
    pub renew_before: u64,
    /// What is revoked.
    pub revocations: Revocations,
}

/// The authority with everything its decisions need.
#[derive(Debug)]
pub struct Core {
    pub(crate) db: Db,
    pub(crate) kek: Kek,
    pub(crate) maker: Maker,
    pub(crate) live: ArcSwap<Live>,
    /// Held while `live` is replaced, so that it never goes back.
    taking: Mutex<()>,
    /// What is revoked, as handshakes ask it.
    pub(crate) revoked_now: ArcSwap<Revoked>,
    pub(crate) trust_domain: TrustDomain,
    published: watch::Sender<Published>,
    pub(crate) acks: Acks,
    /// Has the next step of a rotation looked for now.
    pub(crate) wake: Notify,
    /// Whether the authority was made now.
    pub(crate) is_new: bool,
    pub(crate) registry: Registry,
    pub(crate) attestor: Attestor,
    /// Names of nodes as they join.
    pub(crate) joins: broadcast::Sender<String>,
    clock: Clock,
    pub(crate) settings: CaConfig,
    /// Whether roots and issuers are brought by the operator.
    pub(crate) supplied: bool,
    pub(crate) own_certificate: PathBuf,
    /// This process among those that share the database.
    pub(crate) name: String,
    pub(crate) recorder: Recorder,
    pub(crate) members: Members,
    pub(crate) gate: Gate,
    pub(crate) connections: Connections,
    pub(crate) counts: Counts,
}

/// What was asked for, or why it is not given.
pub(crate) type Decision<T> = Result<T, Refused>;

impl Core {
    /// Opens the database; makes root and issuer when there are none.
    pub async fn open(
        config: &Config,
        clock: Clock,
        counts: Counts,
        insecure: bool,
    ) -> Result<Self, StartError> {
        let trust_domain = config.parsed_trust_domain()?;
        let now = clock.unix_seconds();
        let db = match &config.database_url {
            Some(url) => Db::connect(url).await?,
            None => Db::open(&config.database()).await?,
        };
        let maker = Maker {
            trust_domain: trust_domain.clone(),
            key_type: config.ca.key_type,
            root_lifetime: config.ca.root_ttl(),
            issuer_lifetime: config.ca.issuer_ttl(),
        };
        let held = db.trust().await?;
        let kek = Kek::open(&config.kek_source()?, held.is_none()).await?;
        let supplied = config.ca.supplied.as_deref();
        let supplied = supplied
            .map(|at| Supplied::read(at, &trust_domain, now))
            .transpose()?;
        let mut is_new = false;
        let stored = match held {
            Some(stored) => stored,
            None => {
                let ops = hierarchy::first(&maker, supplied.as_ref(), &kek, now)?;
                is_new = db.create_trust(trust_domain.as_str(), &ops, now).await?;
                db.trust().await?.ok_or(StartError::Incomplete("authority"))?
            }
        };
        if stored.trust_domain != trust_domain.as_str() {
            return Err(StartError::TrustDomain {
                database: db.name(),
                stored: stored.trust_domain,
                configured: trust_domain.to_string(),
            });
        }
        own::check(&config.own_certificate(), &stored, &db.name())?;
        let stored = usable(&db, &kek, &maker, stored, now).await?;
        let live = Live::open(stored, &kek, now)?;
        let published = publication(&live, &trust_domain);
        let form = config.ca.svid_form;
        let attestor = Attestor::new(&config.attestation, &trust_domain, form, &clock, &db, insecure).await?;
        let core = Self {
            registry: Registry::new(trust_domain.clone(), form),
            attestor,
            recorder: Recorder::start(db.clone(), counts.clone()),
            db,
            kek,
            maker,
            revoked_now: ArcSwap::from_pointee(verifiers_view(&live.revocations)),
            live: ArcSwap::from_pointee(live),
            taking: Mutex::new(()),
            trust_domain,
            published: watch::Sender::new(published),
            acks: Acks::new(clock.clone()),
            wake: Notify::new(),
            is_new,
            joins: broadcast::Sender::new(JOINS),
            clock,
            settings: config.ca.clone(),
            supplied: supplied.is_some(),
            own_certificate: config.own_certificate(),
            name: format!("{:016x}", rand::random::<u64>()),
            members: Members::default(),
            gate: Gate::default(),
            connections: Connections::default(),
            counts,
        };
        if let Some(supplied) = &supplied {
            core.adopt_supplied(supplied).await?;
        }
        Ok(core)
    }

    /// Takes what was read into use, unless something newer is already.
    pub(crate) fn take(&self, live: Live) {
        let _taking = self.taking.lock();
        if live.trust.generation <= self.live.load().trust.generation {
            return;
        }
        let mut live = live;
        let before = self.published.borrow().clone();
        if *before.revocations == *live.revocations {
            // The same list: followers see by the pointer that nothing changed.
            live.revocations = before.revocations.clone();
        } else {
            self.revoked_now.store(verifiers_view(&live.revocations).into());
        }
        let now = publication(&live, &self.trust_domain);
        self.live.store(live.into());
        let changed = before.bundle != now.bundle
            || before.renew_before != now.renew_before
            || !Arc::ptr_eq(&before.revocations, &now.revocations);
        if changed {
            self.published.send_replace(now);
        }
    }

    /// What members are told of, and its changes.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// The roots.
    pub fn bundle(&self) -> Bundle {
        self.published.borrow().bundle.clone()
    }

    /// The issuer in use.
    pub fn issuer_id(&self) -> i64 {
        self.live.load().authority.issuer_id()
    }

    /// Certificates that begin before are to be renewed now.
    pub fn renew_before(&self) -> u64 {
        self.live.load().trust.renew_before
    }

    /// The copy of the workload registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Issuances and refusals, newest first.
    pub async fn list_audit(&self, caller: &Caller, filter: &Filter) -> Decision<Vec<AuditRow>> {
        let listed = self.db.list_audit(filter).await;
        self.or_record(&self.asked("list-audit", caller, ""), listed.map_err(Into::into))
            .await
    }

    /// Ends all connections to the database.
    pub async fn close(self) {
        self.leave().await;
        self.record_left_out(self.gate.rest());
        self.record_connections(self.connections.rest(self.now()));
        self.recorder.close().await;
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

    pub(crate) fn now(&self) -> u64 {
        self.clock.unix_seconds()
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
        let begins = self.may_begin(id)?;
        let live = self.live.load();
        let order = Order {
            id,
            node,
            lifetime,
            earliest: live.trust.renew_before.max(begins),
            key,
        };
        Ok(live.authority.issue(&order, self.now())?)
    }
}

/// A time to live from outside.
pub(crate) fn ttl(asked: u32, default: u32) -> Decision<u64> {
    match asked {
        0 => Ok(default.into()),
        1..=MAX_TTL => Ok(asked.into()),
        _ => Err(Refused::field(
            "ttl_seconds",
            format!("ttl_seconds {asked}, at most {MAX_TTL}"),
        )),
    }
}

fn publication(live: &Live, trust_domain: &TrustDomain) -> Published {
    Published {
        bundle: live.bundle(trust_domain),
        renew_before: live.trust.renew_before,
        revocations: live.revocations.clone(),
    }
}

/// Checks the clock against the root, and puts a new issuer in place of one that ended while the
/// service was off: the root still speaks for it.
async fn usable(
    db: &Db,
    kek: &Kek,
    maker: &Maker,
    stored: StoredTrust,
    now: u64,
) -> Result<StoredTrust, StartError> {
    let root = stored
        .active_root()
        .ok_or(StartError::Incomplete("active root"))?;
    crate::authority::validity("root", &root.cert, now)?;
    let issuer = stored.active_issuer();
    if root.sealed_key.is_none() || issuer.is_some_and(|i| rotation::is_valid(&i.cert, now)) {
        return Ok(stored);
    }
    let ops = hierarchy::perform(rotation::Step::Reissue, maker, &stored, kek, now)?;
    db.change_trust(stored.generation, &ops, now).await?;
    db.trust().await?.ok_or(StartError::Incomplete("authority"))
}
