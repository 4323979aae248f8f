//! The decisions of the authority: who gets which certificate. Knows nothing of gRPC but its
//! status codes; every issuance is recorded before it is given out, every refusal when it is made.

use crate::{
    audit::{Gate, Verdict},
    authority::{self, Authority, Issued, Order},
    config::{CaConfig, Config},
    csr,
    db::{Audit, AuditRow, Db, StoredAuthority, StoredTrust, TokenRecord},
    error::{Refused, StartError},
    keyfile::KeyFile,
    pattern::{self, HostPattern},
    registry::{Lookup, Registry},
};
use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::sync::watch;
use weft_enroll::JoinToken;
use weft_model::{Principal, SpiffeId, TrustDomain, check_dns_label, check_name};
use weft_proto::weft::{identity::v1::SvidUse, policy::v1::Workload};
use weft_rpc::Caller;
use weft_tls::{Bundle, Clock, Svid, root_sha256};

/// The service's own name; no token can be made for it.
const OWN_NAME: &str = "identity";
const DEFAULT_TOKEN_TTL: u32 = 600;
const DEFAULT_ADMIN_TTL: u32 = 3600;
const MAX_TTL: u32 = 86_400;
/// Node names travel in a certificate extension with a one-byte length.
const MAX_NODE_NAME: usize = 127;

/// What a join token makes of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/weft/service/<name>`
    Service,
    /// `/weft/node/<name>`
    Node,
}

impl Kind {
    /// As the protocol and the database write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Service, Self::Node]
            .into_iter()
            .find(|k| k.as_str() == text)
    }
}

/// The authority with everything its decisions need.
#[derive(Debug)]
pub struct Core {
    db: Db,
    key_file: KeyFile,
    authority: ArcSwap<Authority>,
    trust_domain: TrustDomain,
    bundle: watch::Sender<Bundle>,
    registry: Registry,
    clock: Clock,
    settings: CaConfig,
    gate: Gate,
}

type Decision<T> = Result<T, Refused>;

impl Core {
    /// Opens the database; makes root and issuer when there are none.
    pub async fn open(config: &Config, clock: Clock) -> Result<Self, StartError> {
        config.check()?;
        let trust_domain = config.parsed_trust_domain()?;
        let now = clock.unix_seconds();
        let db = Db::open(&config.database()).await?;
        let held = db.trust().await?;
        let key_file = KeyFile::open(&config.key_file(), held.is_none())?;
        let stored = match held {
            Some(stored) => stored,
            None => {
                let made = make_trust(&trust_domain, &key_file, now)?;
                db.create_trust(&made, now).await?;
                tracing::info!(%trust_domain, "new authority made");
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
        let issuer_key = key_file.open_sealed("issuer", &stored.issuer.sealed_key)?;
        let authority = Authority::new(&stored.root, &stored.issuer, &issuer_key, now)?;
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
            registry: Registry::default(),
            clock,
            settings: config.ca.clone(),
            gate: Gate::default(),
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

    fn now(&self) -> u64 {
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
        let entry = self.issuance("own-certificate", "local", &issued);
        self.db.audit(&entry).await?;
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
        let root_key = self.key_file.open_sealed("root", &stored.root.sealed_key)?;
        let made = authority::make_issuer(&self.trust_domain, &stored.root.cert, &root_key, now)?;
        let issuer = StoredAuthority {
            cert: made.cert.clone(),
            sealed_key: self.key_file.seal("issuer", &made.key)?,
        };
        self.db.add_issuer(&issuer, now).await?;
        let authority = Authority::new(&stored.root, &issuer, &made.key, now)?;
        self.authority.store(authority.into());
        tracing::info!("new issuing certificate in use");
        Ok(true)
    }

    /// Drops audit entries beyond the configured number.
    pub async fn trim_audit(&self) -> Result<u64, StartError> {
        Ok(self.db.trim_audit(self.settings.audit_entries).await?)
    }

    /// Makes a join token. The result is the only copy of its secret.
    pub async fn create_join_token(
        &self,
        caller: &Caller,
        kind: &str,
        name: &str,
        may_host: Vec<HostPattern>,
        ttl_seconds: u32,
    ) -> Decision<(JoinToken, u64)> {
        let asked = self.asked("create-join-token", caller, &format!("/weft/{kind}/{name}"));
        let checked = || -> Decision<(Kind, SpiffeId, u64)> {
            let kind = Kind::parse(kind)
                .ok_or_else(|| Refused::invalid(format!("kind {kind:?} must be \"service\" or \"node\"")))?;
            let ttl = ttl(ttl_seconds, DEFAULT_TOKEN_TTL)?;
            Ok((kind, self.member_id(kind, name, &may_host)?, ttl))
        };
        let (kind, id, ttl) = self.or_record(&asked, checked()).await?;
        let now = self.now();
        let (mut token_id, mut secret) = ([0u8; 8], [0u8; 32]);
        aws_lc_rs::rand::fill(&mut token_id).map_err(|_| Refused::internal())?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Refused::internal())?;
        let token = JoinToken::new(self.root_sha256(), token_id, secret);
        let record = TokenRecord {
            secret_sha256: Sha256::digest(token.secret()).to_vec(),
            kind: kind.as_str().into(),
            name: name.into(),
            may_host,
            expires_at: now + ttl,
            used_at: None,
        };
        let mut tx = self.db.begin().await?;
        self.db.add_token(&mut tx, token.id(), &record, now).await?;
        self.db
            .audit_in(
                &mut tx,
                &Audit {
                    spiffe_id: id.to_string(),
                    ..asked
                },
            )
            .await?;
        self.db.commit(tx).await?;
        Ok((token, record.expires_at))
    }

    fn member_id(&self, kind: Kind, name: &str, may_host: &[HostPattern]) -> Decision<SpiffeId> {
        let invalid = |e: &dyn std::fmt::Display| Refused::invalid(e.to_string());
        match kind {
            Kind::Service => {
                check_dns_label(name).map_err(|e| invalid(&e))?;
                if name == OWN_NAME {
                    return Err(Refused::invalid(
                        "the identity service joins nobody: it is the authority".into(),
                    ));
                }
                if !may_host.is_empty() {
                    return Err(Refused::invalid(
                        "a service hosts no workloads: leave may_host empty".into(),
                    ));
                }
                self.trust_domain.service(name).map_err(|e| invalid(&e))
            }
            Kind::Node => {
                check_name(name).map_err(|e| invalid(&e))?;
                if name.len() > MAX_NODE_NAME {
                    return Err(Refused::invalid(format!(
                        "node name of {} bytes, at most 127",
                        name.len()
                    )));
                }
                pattern::check(may_host).map_err(|e| invalid(&e))?;
                self.trust_domain.node(name).map_err(|e| invalid(&e))
            }
        }
    }

    /// Trades a join token for a certificate.
    pub async fn join(&self, caller: &Caller, token: &str, csr: &[u8]) -> Decision<(Issued, Bundle)> {
        let mut asked = self.asked("join", caller, "");
        let outcome = self.try_join(caller, &mut asked, token, csr).await;
        if let Err(refused) = &outcome
            && refused.is_decision()
        {
            match self.gate.ask(asked.time) {
                Verdict::LeaveOut => tracing::debug!(reason = %refused, "join refused, not recorded"),
                Verdict::Record { left_out: 0 } => self.record_refusal(asked, refused.to_string()).await,
                Verdict::Record { left_out } => {
                    let reason =
                        format!("{refused} (and {left_out} more refusals before it were not recorded)");
                    self.record_refusal(asked, reason).await;
                }
            }
        }
        outcome
    }

    async fn try_join(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        token: &str,
        csr: &[u8],
    ) -> Decision<(Issued, Bundle)> {
        if let Some(id) = caller.spiffe_id()
            && matches!(id.principal(), Principal::Workload { .. } | Principal::Other)
        {
            return Err(Refused::denied(format!(
                "{id} is a workload's certificate: workloads do not join"
            )));
        }
        let token: JoinToken = token.parse().map_err(|e| Refused::invalid(format!("{e}")))?;
        asked.caller = format!("join-token:{}", token.id());
        let key = csr::public_key(csr).map_err(|e| Refused::invalid(e.to_string()))?;
        let mut tx = self.db.begin().await?;
        let record = self.db.token(&mut tx, token.id()).await?;
        let record = checked_token(&token, record, self.now())?;
        let kind = Kind::parse(&record.kind).ok_or_else(Refused::internal)?;
        let id = self.member_id(kind, &record.name, &record.may_host)?;
        asked.spiffe_id = id.to_string();
        let issued = self.sign(&id, None, self.member_ttl(kind), &key)?;
        self.db.admit(&mut tx, token.id(), &record, self.now()).await?;
        self.db
            .audit_in(&mut tx, &self.issuance("join", &asked.caller, &issued))
            .await?;
        self.db.commit(tx).await?;
        tracing::info!(%id, token = token.id(), serial = issued.serial, "joined");
        Ok((issued, self.bundle.borrow().clone()))
    }

    fn member_ttl(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Service => self.settings.service_ttl(),
            Kind::Node => self.settings.node_ttl(),
        }
    }

    /// A new certificate for the caller's own ID.
    pub async fn renew(&self, caller: &Caller, csr: &[u8]) -> Decision<Issued> {
        let own = caller.spiffe_id().map(ToString::to_string).unwrap_or_default();
        let asked = self.asked("renew", caller, &own);
        let checked = self.check_renewal(caller, csr).await;
        let (id, lifetime, key) = self.or_record(&asked, checked).await?;
        let issued = self.sign(&id, None, lifetime, &key)?;
        self.db
            .audit(&self.issuance("renew", &asked.caller, &issued))
            .await?;
        Ok(issued)
    }

    async fn check_renewal(
        &self,
        caller: &Caller,
        csr: &[u8],
    ) -> Decision<(SpiffeId, Duration, rcgen::SubjectPublicKeyInfo)> {
        let id = caller
            .spiffe_id()
            .ok_or_else(|| Refused::denied("only a certificate can be renewed".into()))?;
        let key = csr::public_key(csr).map_err(|e| Refused::invalid(e.to_string()))?;
        let (kind, name) = match id.principal() {
            Principal::Service(name) => (Kind::Service, name),
            Principal::Node(name) => (Kind::Node, name),
            Principal::Admin(_) => {
                return Ok((id.clone(), Duration::from_secs(DEFAULT_ADMIN_TTL.into()), key));
            }
            _ => return Err(Refused::denied(format!("{id} is not renewed by its holder"))),
        };
        if self.db.member(kind.as_str(), &name).await?.is_none() {
            return Err(Refused::denied(format!(
                "{id} is no member: it has to join with a token"
            )));
        }
        Ok((id.clone(), self.member_ttl(kind), key))
    }

    /// A certificate for a workload of the calling node.
    pub async fn sign_workload(
        &self,
        caller: &Caller,
        workload_id: &str,
        csr: &[u8],
        purpose: SvidUse,
    ) -> Decision<Issued> {
        // Names the workload until its SPIFFE ID is known.
        let mut asked = self.asked(
            "sign-workload",
            caller,
            &workload_id.chars().take(512).collect::<String>(),
        );
        let checked = self
            .check_workload(caller, &mut asked, workload_id, csr, purpose)
            .await;
        let (id, node, key) = self.or_record(&asked, checked).await?;
        let node = (purpose == SvidUse::Tunnel).then_some(node.as_str());
        let issued = self.sign(&id, node, self.settings.workload_ttl(), &key)?;
        self.db
            .audit(&self.issuance("sign-workload", &asked.caller, &issued))
            .await?;
        Ok(issued)
    }

    async fn check_workload(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        workload_id: &str,
        csr: &[u8],
        purpose: SvidUse,
    ) -> Decision<(SpiffeId, String, rcgen::SubjectPublicKeyInfo)> {
        let node = caller
            .node()
            .ok_or_else(|| Refused::denied("only nodes ask for workloads".into()))?;
        if purpose == SvidUse::Unspecified {
            return Err(Refused::invalid(
                "use must be SVID_USE_TUNNEL or SVID_USE_WORKLOAD".into(),
            ));
        }
        let key = csr::public_key(csr).map_err(|e| Refused::invalid(e.to_string()))?;
        let workload = match self.registry.find(workload_id).await {
            Lookup::Found(workload) => workload,
            Lookup::Unknown => {
                return Err(Refused::missing(format!(
                    "workload {workload_id:?} is not registered"
                )));
            }
            Lookup::NotReady => {
                return Err(Refused::unavailable(
                    "the policy service has not been reached yet, so it is not known which workloads run \
                     where; see policy_addr and the identity service's log"
                        .into(),
                ));
            }
        };
        if workload.node != node {
            let reason = format!(
                "workload {workload_id:?} runs on node {:?}, not on {node:?}",
                workload.node
            );
            return Err(Refused::denied(reason));
        }
        let (id, name) = self.workload_id(&workload)?;
        asked.spiffe_id = id.to_string();
        let may_host = self.db.member(Kind::Node.as_str(), &node).await?;
        let may_host = may_host.ok_or_else(|| Refused::denied(format!("node {node:?} is no member")))?;
        if !may_host.iter().any(|p| p.matches(&workload.namespace, &name)) {
            return Err(Refused::denied(format!(
                "node {node:?} may not host {}/{name}: none of its {} host patterns matches; join it with a \
                 token that permits it (weft identity join-token create --kind node --name {node} --may-host \
                 {}/{name})",
                workload.namespace,
                may_host.len(),
                workload.namespace,
            )));
        }
        Ok((id, node, key))
    }

    /// The ID follows from namespace and name. What the registry derived must agree with it, so
    /// that a mistake there can not name something else.
    fn workload_id(&self, workload: &Workload) -> Decision<(SpiffeId, String)> {
        let name = if workload.app_id.is_empty() {
            &workload.service_account
        } else {
            &workload.app_id
        };
        let id = self
            .trust_domain
            .workload(&workload.namespace, name)
            .map_err(|e| Refused::denied(e.to_string()))?;
        if !matches!(id.principal(), Principal::Workload { .. }) {
            let reason = format!("{}/{name} can not be named in a SPIFFE ID", workload.namespace);
            return Err(Refused::denied(reason));
        }
        if !workload.spiffe_id.is_empty() && workload.spiffe_id != id.as_str() {
            let reason = format!(
                "the registry names {:?}, its namespace and name make {id}",
                workload.spiffe_id
            );
            return Err(Refused::denied(reason));
        }
        Ok((id, name.clone()))
    }

    /// An operator's certificate.
    pub async fn sign_admin(
        &self,
        caller: &Caller,
        name: &str,
        csr: &[u8],
        ttl_seconds: u32,
    ) -> Decision<(Issued, Bundle)> {
        let asked = self.asked("sign-admin", caller, &format!("/weft/admin/{name}"));
        let checked = || -> Decision<(SpiffeId, u64, rcgen::SubjectPublicKeyInfo)> {
            check_name(name).map_err(|e| Refused::invalid(e.to_string()))?;
            let id = self
                .trust_domain
                .admin(name)
                .map_err(|e| Refused::invalid(e.to_string()))?;
            let key = csr::public_key(csr).map_err(|e| Refused::invalid(e.to_string()))?;
            Ok((id, ttl(ttl_seconds, DEFAULT_ADMIN_TTL)?, key))
        };
        let (id, ttl, key) = self.or_record(&asked, checked()).await?;
        let issued = self.sign(&id, None, Duration::from_secs(ttl), &key)?;
        self.db
            .audit(&self.issuance("sign-admin", &asked.caller, &issued))
            .await?;
        Ok((issued, self.bundle.borrow().clone()))
    }

    fn sign(
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

    fn asked(&self, action: &'static str, caller: &Caller, spiffe_id: &str) -> Audit {
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

    fn issuance(&self, action: &'static str, caller: &str, issued: &Issued) -> Audit {
        Audit {
            time: self.now(),
            action,
            caller: caller.into(),
            spiffe_id: issued.id.to_string(),
            serial: issued.serial.clone(),
            ..Audit::default()
        }
    }

    async fn or_record<T>(&self, asked: &Audit, checked: Decision<T>) -> Decision<T> {
        if let Err(refused) = &checked
            && refused.is_decision()
        {
            self.record_refusal(asked.clone(), refused.to_string()).await;
        }
        checked
    }

    /// A refusal stands even if it can not be recorded.
    async fn record_refusal(&self, asked: Audit, reason: String) {
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

/// Secret first: only its holder learns whether the token was used or is over.
fn checked_token(token: &JoinToken, record: Option<TokenRecord>, now: u64) -> Decision<TokenRecord> {
    let digest = Sha256::digest(token.secret());
    let stored = record.as_ref().map_or(&[0u8; 32][..], |r| &r.secret_sha256);
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(&digest, stored).is_ok();
    let Some(record) = record.filter(|_| same) else {
        return Err(Refused::denied(format!(
            "join token {} is unknown; make one with `weft identity join-token create`",
            token.id()
        )));
    };
    let again = format!(
        "weft identity join-token create --kind {} --name {}",
        record.kind, record.name
    );
    if record.used_at.is_some() {
        return Err(Refused::denied(format!(
            "join token {} was used already, each is good for one join; make another with `{again}`",
            token.id()
        )));
    }
    if now >= record.expires_at {
        return Err(Refused::denied(format!(
            "join token {} has expired; make another with `{again}`",
            token.id()
        )));
    }
    Ok(record)
}

fn ttl(asked: u32, default: u32) -> Decision<u64> {
    match asked {
        0 => Ok(default.into()),
        1..=MAX_TTL => Ok(asked.into()),
        _ => Err(Refused::invalid(format!(
            "ttl_seconds {asked}, at most {MAX_TTL}"
        ))),
    }
}

fn make_trust(trust_domain: &TrustDomain, key_file: &KeyFile, now: u64) -> Result<StoredTrust, StartError> {
    let root = authority::make_root(trust_domain, now)?;
    let issuer = authority::make_issuer(trust_domain, &root.cert, &root.key, now)?;
    Ok(StoredTrust {
        trust_domain: trust_domain.to_string(),
        bundle_version: 1,
        root: StoredAuthority {
            sealed_key: key_file.seal("root", &root.key)?,
            cert: root.cert,
        },
        issuer: StoredAuthority {
            sealed_key: key_file.seal("issuer", &issuer.key)?,
            cert: issuer.cert,
        },
    })
}
