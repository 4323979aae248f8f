//! The audit record as decisions write it: every issuance before it is given out, every refusal when it
//! is made, whoever made it. What fails is recorded as soon as the database can be written again.

use crate::{
    authority::Issued,
    connections::{Due, Key},
    core::{Core, Decision},
    db::{Audit, Recorded},
    reason::Reason,
    refused::Refused,
};
use rcgen::SubjectPublicKeyInfo;
use std::time::Duration;
use weft_model::SpiffeId;
use weft_rpc::{Caller, ConnectionRefused, Limited, TurnedAway};

/// Bytes of what was asked for; it is of the caller's choosing.
const MAX_ASKED: usize = 2048;

impl Core {
    pub(crate) fn asked(&self, action: &'static str, caller: &Caller, spiffe_id: &str) -> Audit {
        let (caller, attested) = match caller {
            Caller::Local { uid } => (format!("local:{uid}"), "local"),
            Caller::Anonymous | Caller::Loopback => ("anonymous".into(), ""),
            Caller::Tls(peer) => (peer.id.to_string(), "certificate"),
        };
        let spiffe_id = spiffe_id.chars().take(MAX_ASKED).collect();
        Audit {
            time: self.now(),
            action,
            caller,
            attested,
            spiffe_id,
            ..Audit::default()
        }
    }

    pub(crate) fn issuance(
        &self,
        action: &'static str,
        caller: &str,
        attested: &'static str,
        issued: &Issued,
    ) -> Audit {
        Audit {
            time: self.now(),
            action,
            caller: caller.into(),
            attested,
            spiffe_id: issued.id.to_string(),
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            ..Audit::default()
        }
    }

    /// Signs a leaf and records it; when this returns, the record is on the disk.
    pub(crate) async fn give(
        &self,
        asked: &Audit,
        id: &SpiffeId,
        node: Option<&str>,
        lifetime: Duration,
        key: &SubjectPublicKeyInfo,
    ) -> Decision<Issued> {
        let given = self.try_give(asked, id, node, lifetime, key).await;
        self.or_record(asked, given).await
    }

    async fn try_give(
        &self,
        asked: &Audit,
        id: &SpiffeId,
        node: Option<&str>,
        lifetime: Duration,
        key: &SubjectPublicKeyInfo,
    ) -> Decision<Issued> {
        let mut again = true;
        loop {
            let issued = self.sign(id, node, lifetime, key)?;
            let recorded = Recorded {
                entry: self.issuance(asked.action, &asked.caller, asked.attested, &issued),
                issuer_id: issued.issuer_id,
            };
            match self.recorder.record(recorded).await {
                // Another replica dropped the issuer before this one heard of it.
                Err(refused) if again && refused.is_stale_issuer() => {
                    again = false;
                    Box::pin(self.refresh()).await?;
                }
                recorded => {
                    recorded?;
                    self.counts.issued(asked.action);
                    return Ok(issued);
                }
            }
        }
    }

    /// Records an operator's order that gives out nothing.
    pub(crate) async fn record_order(&self, asked: Audit) -> Decision<()> {
        self.counts.issued(asked.action);
        let recorded = Recorded {
            entry: asked,
            issuer_id: 0,
        };
        self.recorder.record(recorded).await
    }

    /// Records that something was refused or failed, unless the record knows it, and passes it on.
    pub(crate) async fn or_record<T>(&self, asked: &Audit, outcome: Decision<T>) -> Decision<T> {
        match outcome {
            Ok(done) => Ok(done),
            // Rare, and large: every call would carry room for it.
            Err(refused) => Err(Box::pin(self.refuse(asked.clone(), refused)).await),
        }
    }

    /// Records that something was refused or failed, unless the record knows it; a flood of it is
    /// counted. A refusal stands even if it can not be recorded.
    pub(crate) async fn refuse(&self, asked: Audit, refused: Refused) -> Refused {
        if refused.is_recorded() {
            return refused;
        }
        let why = refused.reason();
        if self.is_recorded_alone(&asked, why.as_str()) {
            match refused.cause() {
                None => self.record_refusal(asked, why, refused.to_string()).await,
                // The database may be away: nobody waits until it is back.
                Some(cause) => self.recorder.owe(Audit {
                    reason: failed(asked.action, cause),
                    ..asked
                }),
            }
        }
        refused.recorded()
    }

    async fn record_refusal(&self, asked: Audit, why: Reason, reason: String) {
        tracing::warn!(
            action = asked.action,
            caller = asked.caller,
            asked = asked.spiffe_id,
            reason,
            why = why.as_str(),
            "refused"
        );
        let recorded = Recorded {
            entry: Audit { reason, ..asked },
            issuer_id: 0,
        };
        if let Err(error) = self.recorder.record(recorded).await {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }

    /// Counts a refusal; whether it has an entry of its own in the record.
    fn is_recorded_alone(&self, asked: &Audit, why: &'static str) -> bool {
        self.counts.refused(asked.action, why);
        // Only a verified certificate or the local socket makes such a name.
        let role = format!("spiffe://{}/weft/", self.trust_domain);
        let is_member = asked.caller.starts_with(&role) || asked.caller.starts_with("local:");
        let alone = self
            .gate
            .ask(is_member.then_some(asked.caller.as_str()), asked.time);
        if !alone {
            tracing::debug!(
                action = asked.action,
                caller = asked.caller,
                why,
                "refused, only counted"
            );
        }
        alone
    }

    /// Records a call that no method decided on. Does not wait.
    pub(crate) fn record_turned_away(&self, call: TurnedAway) {
        let mut asked = self.asked("call", &call.caller, &call.method);
        name_address(&mut asked, call.from);
        if self.is_recorded_alone(&asked, call.reason) {
            self.recorder.owe(Audit {
                reason: call.text,
                ..asked
            });
        }
    }

    /// Records that a caller asks too often; called at most once a minute for each. Does not wait.
    pub(crate) fn record_limited(&self, limited: Limited) {
        let mut asked = self.asked("rate-limit", &limited.caller, "");
        name_address(&mut asked, limited.from);
        if self.is_recorded_alone(&asked, Reason::RateLimited.as_str()) {
            let reason = format!(
                "asks {} too often ({} calls refused)",
                limited.method, limited.refused
            );
            self.recorder.owe(Audit { reason, ..asked });
        }
    }

    /// Records a connection that was refused before any method was asked. Does not wait.
    pub(crate) fn record_connection(&self, refused: ConnectionRefused) {
        let ConnectionRefused {
            from,
            shown,
            reason,
            text,
        } = refused;
        self.counts.refused("handshake", reason);
        let named = shown.as_ref().map_or("", |peer| peer.id.as_str());
        let mut asked = self.asked("handshake", &Caller::Anonymous, named);
        name_address(&mut asked, Some(from));
        asked.reason = match &shown {
            Some(peer) => format!("{text} (serial {})", peer.serial),
            None => text,
        };
        let key = Key {
            from,
            reason,
            named: asked.spiffe_id.as_str().into(),
        };
        if self.connections.ask(key, &asked) {
            tracing::warn!(%from, named = asked.spiffe_id, why = reason, reason = asked.reason, "connection refused");
            self.recorder.owe(asked);
        }
    }

    /// Records how often connections were refused that have no entry of their own. Does not wait.
    pub(crate) fn record_connections(&self, due: Due) {
        for (entry, count) in due.again {
            let reason = format!("{}; {count} more times since it was recorded last", entry.reason);
            self.recorder.owe(Audit { reason, ..entry });
        }
        if due.left_out > 0 {
            self.recorder.owe(Audit {
                time: self.now(),
                action: "left-out",
                caller: "connections".into(),
                reason: format!(
                    "{} more connections refused within a minute, which are not recorded one by one",
                    due.left_out
                ),
                ..Audit::default()
            });
        }
    }

    /// Records how many refusals have no entry of their own. Does not wait.
    pub(crate) fn record_left_out(&self, left_out: Vec<(Box<str>, u64)>) {
        for (who, count) in left_out {
            self.recorder.owe(Audit {
                time: self.now(),
                action: "left-out",
                caller: who.into(),
                reason: format!("{count} more refusals within a minute, which are not recorded one by one"),
                ..Audit::default()
            });
        }
    }

    /// The same for minutes that are over.
    pub(crate) fn record_floods(&self) {
        self.record_left_out(self.gate.left_out(self.now()));
        self.record_connections(self.connections.due(self.now()));
    }
}

/// Who has no other name has its address.
fn name_address(asked: &mut Audit, from: Option<std::net::IpAddr>) {
    if asked.caller == "anonymous"
        && let Some(from) = from
    {
        asked.caller = format!("anonymous at {from}");
    }
}

/// What the record says of something that failed. Of an order it may be unknown whether it was carried
/// out, if the database went away with its answer; of what is given out, nothing left the service.
pub(crate) fn failed(action: &str, cause: &str) -> String {
    let is_order = action.starts_with("rotate") || matches!(action, "revoke" | "reinstate");
    if is_order {
        format!("the order failed: {cause}")
    } else {
        format!("nothing was given out: {cause}")
    }
}
