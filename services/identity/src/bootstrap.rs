//! Certificates for callers that show evidence of who they are: workloads, and nodes of Kubernetes.
//! Judged by [`crate::attest`]; signed, recorded and counted here.

use crate::{
    attest::{Asked, Evidence, Granted, Wanted},
    authority::Issued,
    core::{Core, Decision},
    csr,
    db::{Audit, TokenRecord},
    reason::Reason,
    refused::Refused,
    tokens::Kind,
};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use weft_model::{Principal, SpiffeId};
use weft_rpc::Caller;
use weft_tls::Bundle;

impl Core {
    /// Trades evidence and a certificate request for a certificate: `Bootstrap.Attest`.
    pub async fn attest(
        &self,
        caller: &Caller,
        evidence: &Evidence<'_>,
        wanted: Option<&str>,
        csr: &[u8],
    ) -> Decision<(Issued, Bundle)> {
        let mut asked = self.asked("attest", caller, wanted.unwrap_or_default());
        asked.attested = evidence.how();
        let id = wanted.map(str::parse::<SpiffeId>).transpose();
        let id = id.map_err(|e| Refused::field("spiffe_id", e.to_string()));
        let id = self.or_record(&asked, id).await?;
        let wanted = id.as_ref().map_or(Wanted::Own, Wanted::Id);
        let key = || csr::public_key(csr).map_err(|e| Refused::csr("csr_der", &e));
        let (_, issued) = self.grant("attest", caller, evidence, wanted, key).await?;
        Ok((issued, self.bundle()))
    }

    /// Judges evidence, then reads the `key` that is to be certified, signs what the evidence is good for,
    /// and records either. When this returns, the record is on the disk. Evidence comes first: who has
    /// none learns nothing of what else may be wrong. It is used up last.
    pub(crate) async fn grant(
        &self,
        action: &'static str,
        caller: &Caller,
        evidence: &Evidence<'_>,
        wanted: Wanted<'_>,
        key: impl FnOnce() -> Decision<SubjectPublicKeyInfo> + Send,
    ) -> Decision<(Granted, Issued)> {
        let text = match wanted {
            Wanted::App { namespace, app_id } => format!("/ns/{namespace}/{app_id}"),
            Wanted::Id(id) => id.to_string(),
            Wanted::Own => String::new(),
        };
        let mut asked = self.asked(action, caller, &text);
        let mut who = String::new();
        let judged = self.judge(caller, evidence, wanted, &mut who).await;
        if !who.is_empty() {
            asked.caller = who;
        }
        asked.attested = evidence.how();
        let granted = self.or_record(&asked, judged).await?;
        asked.spiffe_id = granted.id.to_string();
        let signed = async {
            let key = key()?;
            let shown = key.subject_public_key_info();
            self.attestor.use_up(&granted, &shown).await?;
            match granted.id.principal() {
                Principal::Node(name) => self.admit_node(&asked, &granted, &name, &key).await,
                _ => {
                    let lifetime = self.settings.workload_ttl();
                    self.give(&asked, &granted.id, None, lifetime, &key).await
                }
            }
        };
        let signed = signed.await;
        let issued = self.or_record(&asked, signed).await?;
        tracing::info!(id = %granted.id, by = granted.who, how = granted.how, serial = issued.serial, "attested");
        Ok((granted, issued))
    }

    async fn judge(
        &self,
        caller: &Caller,
        evidence: &Evidence<'_>,
        wanted: Wanted<'_>,
        who: &mut String,
    ) -> Decision<Granted> {
        if let Some(id) = caller.spiffe_id()
            && !matches!(
                id.principal(),
                Principal::Node(_) | Principal::Service(_) | Principal::Admin(_)
            )
        {
            return Err(Refused::denied(
                Reason::WorkloadsDoNotJoin,
                format!("{id} is a workload's certificate: show the evidence without it"),
            ));
        }
        if caller.spiffe_id().is_some() {
            self.check_caller(caller)?;
        }
        let node = caller.node();
        let asked = Asked {
            wanted,
            node: node.as_deref(),
        };
        self.attestor.attest(evidence, &asked, who).await
    }

    /// Makes a node that Kubernetes speaks for a member, as a join token would.
    async fn admit_node(
        &self,
        asked: &Audit,
        granted: &Granted,
        name: &str,
        key: &SubjectPublicKeyInfo,
    ) -> Decision<Issued> {
        let record = TokenRecord {
            kind: Kind::Node.as_str().into(),
            name: name.into(),
            may_host: granted.may_host.clone(),
            ..TokenRecord::default()
        };
        let id = self.member_id(Kind::Node, name, &record.may_host)?;
        let issued = self.sign(&id, None, self.member_ttl(Kind::Node), key)?;
        let mut tx = self.db.begin().await?;
        self.db
            .add_member(&mut tx, &record, granted.how, self.now())
            .await?;
        self.finish_join(tx, asked, &issued, Kind::Node, name).await?;
        Ok(issued)
    }
}
