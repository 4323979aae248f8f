//! Join tokens: made for an operator, traded once for a certificate.

use crate::{
    authority::Issued,
    core::{Core, Decision, OWN_NAME, ttl},
    csr,
    db::{Audit, TokenRecord, Tx},
    pattern::{self, HostPattern},
    reason::Reason,
    refused::Refused,
};
use sha2::{Digest, Sha256};
use weft_enroll::JoinToken;
use weft_model::{Principal, SpiffeId, check_dns_label, check_name};
use weft_rpc::Caller;
use weft_tls::{Bundle, root_sha256};

const DEFAULT_TTL: u32 = 600;
/// Node names travel in a certificate extension with a one-byte length.
const MAX_NODE_NAME: usize = 127;

/// What a join token makes of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

impl Core {
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
        let made = self.try_token(&asked, kind, name, may_host, ttl_seconds).await;
        self.or_record(&asked, made).await
    }

    async fn try_token(
        &self,
        asked: &Audit,
        kind: &str,
        name: &str,
        may_host: Vec<HostPattern>,
        ttl_seconds: u32,
    ) -> Decision<(JoinToken, u64)> {
        let kind = Kind::parse(kind).ok_or_else(|| {
            Refused::field("kind", format!("kind {kind:?} must be \"service\" or \"node\""))
        })?;
        let ttl = ttl(ttl_seconds, DEFAULT_TTL)?;
        let id = self.member_id(kind, name, &may_host)?;
        let now = self.now();
        let (mut token_id, mut secret) = ([0u8; 8], [0u8; 32]);
        aws_lc_rs::rand::fill(&mut token_id).map_err(|_| Refused::internal())?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Refused::internal())?;
        let live = self.live.load_full();
        let token = JoinToken::new(root_sha256(&live.root), token_id, secret);
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
        // The root that it pins stays until then, whatever is rotated.
        if !self
            .db
            .keep_until(&mut tx, live.root_id(), record.expires_at)
            .await?
        {
            return Err(Refused::stale_issuer());
        }
        self.db
            .audit_in(
                &mut tx,
                &Audit {
                    spiffe_id: id.to_string(),
                    ..asked.clone()
                },
            )
            .await?;
        self.db.commit(tx).await?;
        self.counts.issued("create-join-token");
        Ok((token, record.expires_at))
    }

    pub(crate) fn member_id(&self, kind: Kind, name: &str, may_host: &[HostPattern]) -> Decision<SpiffeId> {
        let invalid = |e: &dyn std::fmt::Display| Refused::field("name", e.to_string());
        match kind {
            Kind::Service => {
                check_dns_label(name).map_err(|e| invalid(&e))?;
                if name == OWN_NAME {
                    return Err(Refused::field(
                        "name",
                        "the identity service joins nobody: it is the authority",
                    ));
                }
                if !may_host.is_empty() {
                    return Err(Refused::field(
                        "may_host",
                        "a service hosts no workloads: leave may_host empty",
                    ));
                }
                self.trust_domain.service(name).map_err(|e| invalid(&e))
            }
            Kind::Node => {
                check_name(name).map_err(|e| invalid(&e))?;
                if name.len() > MAX_NODE_NAME {
                    let text = format!("node name of {} bytes, at most 127", name.len());
                    return Err(Refused::field("name", text));
                }
                pattern::check(may_host).map_err(|e| Refused::field("may_host", e.to_string()))?;
                self.trust_domain.node(name).map_err(|e| invalid(&e))
            }
        }
    }

    /// Trades a join token for a certificate.
    pub async fn join(&self, caller: &Caller, token: &str, csr: &[u8]) -> Decision<(Issued, Bundle)> {
        let mut asked = self.asked("join", caller, "");
        let outcome = self.try_join(caller, &mut asked, token, csr).await;
        self.or_record(&asked, outcome).await
    }

    async fn try_join(
        &self,
        caller: &Caller,
        asked: &mut Audit,
        token: &str,
        csr: &[u8],
    ) -> Decision<(Issued, Bundle)> {
        if let Some(id) = caller.spiffe_id()
            && !matches!(
                id.principal(),
                Principal::Service(_) | Principal::Node(_) | Principal::Admin(_)
            )
        {
            let text = format!("{id} is a workload's certificate: workloads do not join");
            return Err(Refused::denied(Reason::WorkloadsDoNotJoin, text));
        }
        let token: JoinToken = token
            .parse()
            .map_err(|e| Refused::field("token", format!("{e}")))?;
        asked.caller = format!("join-token:{}", token.id());
        asked.attested = "join-token";
        // Looked up without the write lock first, so that strangers with made-up tokens never hold it.
        let now = self.now();
        checked_token(&token, self.db.peek_token(token.id()).await?, now)?;
        let key = csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e))?;
        let mut tx = self.db.begin().await?;
        let record = self.db.token(&mut tx, token.id()).await?;
        let record = checked_token(&token, record, now)?;
        let kind = Kind::parse(&record.kind).ok_or_else(Refused::internal)?;
        let id = self.member_id(kind, &record.name, &record.may_host)?;
        asked.spiffe_id = id.to_string();
        let issued = self.sign(&id, None, self.member_ttl(kind), &key)?;
        self.db.admit(&mut tx, token.id(), &record, self.now()).await?;
        self.finish_join(tx, asked, &issued, kind, &record.name).await?;
        tracing::info!(%id, token = token.id(), serial = issued.serial, "joined");
        Ok((issued, self.bundle()))
    }

    /// Records who was admitted and ends the transaction; then everybody may know.
    pub(crate) async fn finish_join(
        &self,
        mut tx: Tx,
        asked: &Audit,
        issued: &Issued,
        kind: Kind,
        name: &str,
    ) -> Decision<()> {
        let kept = self
            .db
            .keep_until(&mut tx, issued.issuer_id, issued.not_after)
            .await?;
        if !kept {
            return Err(Refused::stale_issuer());
        }
        let entry = self.issuance(asked.action, &asked.caller, asked.attested, issued);
        self.db.audit_in(&mut tx, &entry).await?;
        self.db.commit(tx).await?;
        self.members.forget(kind, name);
        if kind == Kind::Node {
            // Nobody follows yet when the policy service itself joins.
            let _ = self.joins.send(name.to_owned());
        }
        self.counts.issued(asked.action);
        Ok(())
    }
}

/// Secret first: only its holder learns whether the token was used or is over.
fn checked_token(token: &JoinToken, record: Option<TokenRecord>, now: u64) -> Decision<TokenRecord> {
    let digest = Sha256::digest(token.secret());
    let stored = record.as_ref().map_or(&[0u8; 32][..], |r| &r.secret_sha256);
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(&digest, stored).is_ok();
    let Some(record) = record.filter(|_| same) else {
        let text = format!(
            "join token {} is unknown; make one with `weft identity join-token create`",
            token.id()
        );
        return Err(Refused::denied(Reason::JoinTokenUnknown, text).about("join-token", token.id()));
    };
    let again = format!(
        "weft identity join-token create --kind {} --name {}",
        record.kind, record.name
    );
    if record.used_at.is_some() {
        let text = format!(
            "join token {} was used already, each is good for one join; make another with `{again}`",
            token.id()
        );
        return Err(Refused::denied(Reason::JoinTokenUsed, text).about("join-token", token.id()));
    }
    if now >= record.expires_at {
        let text = format!(
            "join token {} has expired; make another with `{again}`",
            token.id()
        );
        return Err(Refused::denied(Reason::JoinTokenExpired, text).about("join-token", token.id()));
    }
    Ok(record)
}
