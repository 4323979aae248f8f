//! Writes statuses, as long as this replica leads.

use super::{
    api::{Api, Fault, one_line},
    election::Leading,
    object::{self, Facts, place},
    observed::Observed,
    status::{Owners, of_rejected, to_apply},
    wire::path,
};
use crate::{
    owner::Event,
    world::{ObjectKey, Written},
};
use http::Method;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

const MANAGER: &str = "weft-policy";
const MAX_OBJECT: usize = 4 * 1024 * 1024;
const WITHIN: Duration = Duration::from_secs(5);
/// A write begins only if the lead lasts so much longer.
const MARGIN: Duration = Duration::from_millis(200);
/// Several changes together are one look.
const TOGETHER: Duration = Duration::from_millis(100);
/// Looked at so often also when nobody says that something has changed.
const LOOK: Duration = Duration::from_secs(10);
/// So often an object that changes meanwhile is tried before others have their turn.
const TRIES: u32 = 4;
/// A status that was refused is tried again after this time.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// Who is not to write any more.
#[derive(Debug, PartialEq, Eq)]
struct Lost;

/// Gateways that are ours.
#[derive(Debug, Default)]
struct Gateways(BTreeMap<(String, String), &'static str>);

impl Owners for Gateways {
    fn of_gateway(&self, namespace: &str, name: &str) -> Option<&'static str> {
        self.0.get(&(namespace.to_owned(), name.to_owned())).copied()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    pub api: Api,
    pub observed: Observed,
    pub events: mpsc::Sender<Event>,
    pub leading: watch::Receiver<Leading>,
    /// Objects whose status the API server refused, and when.
    pub refused: BTreeMap<ObjectKey, Instant>,
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}

/// How long a request may take: it ends before the lead does.
fn within(leading: Leading) -> Result<Duration, Lost> {
    let left = leading.ok_or(Lost)?.saturating_duration_since(Instant::now());
    let left = left
        .checked_sub(MARGIN)
        .filter(|left| !left.is_zero())
        .ok_or(Lost)?;
    Ok(left.min(WITHIN))
}

impl Writer {
    /// Writes until the owner of the world is gone.
    pub(super) async fn run(mut self) {
        loop {
            let led = self.leading.wait_for(Option::is_some).await.is_ok();
            if !led {
                return;
            }
            let began = Instant::now();
            match self.look().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(Lost) => {
                    tokio::time::sleep(MARGIN).await;
                    continue;
                }
            }
            // Where there is much to look at and much changes, others have to be served as well.
            let pause = TOGETHER.max(began.elapsed() * 4).min(LOOK);
            // Whatever wakes it, it looks.
            let _ = tokio::time::timeout(LOOK, self.observed.news()).await;
            tokio::time::sleep(pause).await;
        }
    }

    fn within(&self) -> Result<Duration, Lost> {
        within(*self.leading.borrow())
    }

    /// Compares every object's status with what is there; false when there is nobody to ask.
    async fn look(&mut self) -> Result<bool, Lost> {
        let (mut after, mut gateways, mut rejected) = (None, Gateways::default(), BTreeMap::new());
        self.refused.retain(|_, at| at.elapsed() < REFUSED_FOR);
        let bad: BTreeSet<ObjectKey> = self.observed.rejected().into_iter().collect();
        loop {
            let (reply, answer) = oneshot::channel();
            if self.events.send(Event::Statuses { after, reply }).await.is_err() {
                return Ok(false);
            }
            let Ok((written, next)) = answer.await else {
                return Ok(false);
            };
            for Written {
                key,
                status,
                controller,
            } in written
            {
                if let Some(controller) = controller {
                    gateways
                        .0
                        .insert((key.namespace.clone(), key.name.clone()), controller);
                }
                if bad.contains(&key) {
                    rejected.insert(key, status);
                } else {
                    self.bring(&key, |_| Some(status.clone())).await?;
                }
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        for key in bad {
            let before = rejected.remove(&key);
            let of = |facts: &Facts| {
                of_rejected(
                    key.kind,
                    &key.namespace,
                    facts,
                    before.clone(),
                    (&gateways, &now()),
                )
            };
            self.bring(&key, of).await?;
        }
        Ok(true)
    }

    /// Writes a status if what is there differs. `wanted` is asked with what is there.
    async fn bring(&mut self, key: &ObjectKey, wanted: impl Fn(&Facts) -> Option<Value>) -> Result<(), Lost> {
        for _ in 0..TRIES {
            let Some(facts) = self.observed.get(key) else {
                return Ok(());
            };
            let there = serde_json::from_str(&facts.status).unwrap_or_default();
            let Some(status) = wanted(&facts).and_then(|wanted| to_apply(wanted, &there)) else {
                return Ok(());
            };
            if self.refused.contains_key(key) {
                return Ok(());
            }
            match self.apply(key, &facts, status).await? {
                Ok(()) | Err(Fault::NotFound) => return Ok(()),
                // Somebody was quicker: what he wrote is to stay.
                Err(Fault::Conflict) => self.again(key, &facts).await?,
                Err(Fault::Busy(wait)) => {
                    let wait = wait.unwrap_or(TOGETHER).min(self.within()?);
                    tokio::time::sleep(wait).await;
                }
                Err(fault @ Fault::Refused { .. }) => {
                    tracing::warn!(object = place(key), %fault, "a status could not be written: the API server");
                    self.refused.insert(key.clone(), Instant::now());
                    return Ok(());
                }
                Err(fault) => {
                    tracing::debug!(object = place(key), %fault, "a status is written later");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn apply(&self, key: &ObjectKey, facts: &Facts, status: Value) -> Result<Result<(), Fault>, Lost> {
        let mut metadata = json!({"name": key.name});
        if !key.namespace.is_empty() {
            metadata["namespace"] = key.namespace.clone().into();
        }
        // The list of parents is shared: it is replaced only as it was seen.
        if status["parents"].is_array() {
            metadata["resourceVersion"] = facts.version.clone().into();
        }
        let body = json!({
            "apiVersion": facts.api_version, "kind": key.kind.name(), "metadata": metadata, "status": status,
        });
        let path = format!(
            "{}/status?fieldManager={MANAGER}&force=true",
            path(key.kind, facts.api_version, Some(key))
        );
        let content = ("application/apply-patch+yaml", &body);
        let sent = self
            .api
            .send(Method::PATCH, &path, content, MAX_OBJECT, self.within()?);
        Ok(sent.await.map(|answer| self.note(key, facts, &answer)))
    }

    /// Takes over what the API server has now, before the watch says so.
    fn note(&self, key: &ObjectKey, facts: &Facts, answer: &Value) {
        let now = object::read(key.kind, facts.api_version, &answer.to_string());
        match now {
            Ok(item) if item.key == *key => {
                if let Some(facts) = item.facts {
                    self.observed.set(key, facts);
                }
            }
            Ok(_) => tracing::debug!(object = place(key), "answered with another object"),
            Err(why) => tracing::debug!(object = place(key), why = one_line(&why), "no object"),
        }
    }

    async fn again(&self, key: &ObjectKey, facts: &Facts) -> Result<(), Lost> {
        let path = path(key.kind, facts.api_version, Some(key));
        let within = self.within()?;
        if let Ok(bytes) = self.api.get(&path, MAX_OBJECT, within).await
            && let Ok(answer) = serde_json::from_slice(&bytes)
        {
            self.note(key, facts, &answer);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_ends_before_the_lead_does_or_does_not_begin() {
        let until = Instant::now() + Duration::from_secs(6);
        let left = |seconds: u64| async move {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            within(Some(until))
        };
        assert_eq!(left(0).await, Ok(WITHIN));
        assert_eq!(left(4).await, Ok(Duration::from_secs(2) - MARGIN));
        tokio::time::advance(Duration::from_secs(2) - MARGIN).await;
        assert_eq!(left(0).await, Err(Lost));
        assert_eq!(left(9).await, Err(Lost));
        assert_eq!(within(None), Err(Lost));
    }
}
