//! One of several replicas leads: it holds a Lease of the API server.
//!
//! Every write names the version that it replaces, so of two who want the lease one gets it. Whether a
//! lease has run out is told by when it was last seen to change, by the own monotonic clock: whoever
//! held it began its time before that. A holder counts from before it asked, and stops after two thirds.

use super::api::{Api, Fault};
use http::Method;
use serde_json::{Value, json};
use std::{future::Future, time::Duration};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

/// A lease may claim to last as long as this.
const LONGEST: u64 = 3_600;
const MAX_LEASE: usize = 1024 * 1024;

/// Until when this replica leads; nothing when it does not.
pub(super) type Leading = Option<Instant>;

/// A Lease, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    /// That this one replaces, or that it is; empty before there is any.
    pub version: String,
    pub holder: String,
    pub seconds: u64,
    pub acquired: String,
    pub transitions: u64,
}

/// Where leases are.
pub(super) trait Leases: Send + Sync {
    fn read(&self) -> impl Future<Output = Result<Option<Record>, Fault>> + Send;
    /// Written only if the version is still the one that the record names.
    fn write(&self, record: &Record) -> impl Future<Output = Result<Record, Fault>> + Send;
}

/// The lease of this service in a cluster.
#[derive(Debug)]
pub(super) struct ClusterLease {
    pub api: Api,
    pub namespace: String,
    pub name: &'static str,
    pub within: Duration,
}

/// As `metav1.MicroTime` has it.
fn micro_time(at: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}

impl ClusterLease {
    fn path(&self, name: &str) -> String {
        format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases{name}",
            self.namespace
        )
    }
}

fn record(lease: &Value) -> Result<Record, Fault> {
    let (meta, spec) = (&lease["metadata"], &lease["spec"]);
    let version = meta["resourceVersion"].as_str().unwrap_or_default();
    if version.is_empty() {
        return Err(Fault::garbage("a lease without resourceVersion"));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Record {
        version: version.to_owned(),
        holder: text(&spec["holderIdentity"]),
        seconds: spec["leaseDurationSeconds"].as_u64().unwrap_or_default(),
        acquired: text(&spec["acquireTime"]),
        transitions: spec["leaseTransitions"].as_u64().unwrap_or_default(),
    })
}

impl Leases for ClusterLease {
    async fn read(&self) -> Result<Option<Record>, Fault> {
        let path = self.path(&format!("/{}", self.name));
        match self.api.get(&path, MAX_LEASE, self.within).await {
            Ok(bytes) => {
                let lease: Value = serde_json::from_slice(&bytes).map_err(Fault::garbage)?;
                record(&lease).map(Some)
            }
            Err(Fault::NotFound) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn write(&self, wanted: &Record) -> Result<Record, Fault> {
        let now = micro_time(OffsetDateTime::now_utc());
        let acquired = match wanted.acquired.as_str() {
            "" => &now,
            at => at,
        };
        let mut metadata = json!({"name": self.name, "namespace": self.namespace});
        let (method, path) = match wanted.version.as_str() {
            "" => (Method::POST, self.path("")),
            version => {
                metadata["resourceVersion"] = version.into();
                (Method::PUT, self.path(&format!("/{}", self.name)))
            }
        };
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": wanted.holder,
                "leaseDurationSeconds": wanted.seconds,
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": wanted.transitions,
            },
        });
        let content = ("application/json", &lease);
        let written = self
            .api
            .send(method, &path, content, MAX_LEASE, self.within)
            .await?;
        record(&written)
    }
}

/// One who wants to lead.
#[derive(Debug)]
struct Candidate {
    /// Of this process and no other, ever.
    me: String,
    lasts: Duration,
    /// The lease, and when it was first seen so.
    seen: Option<(Record, Instant)>,
}

impl Candidate {
    fn saw(&mut self, record: Option<Record>) {
        let same = match (&self.seen, &record) {
            (Some((old, _)), Some(new)) => old.version == new.version,
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.seen = record.map(|record| (record, Instant::now()));
        }
    }

    /// What is to be written, if anything is.
    fn wanted(&self) -> Option<Record> {
        let mine = Record {
            holder: self.me.clone(),
            seconds: self.lasts.as_secs().max(1),
            ..Record::default()
        };
        let Some((record, since)) = &self.seen else {
            return Some(mine);
        };
        let version = record.version.clone();
        if record.holder == self.me {
            let (acquired, transitions) = (record.acquired.clone(), record.transitions);
            return Some(Record {
                version,
                acquired,
                transitions,
                ..mine
            });
        }
        let lasts = Duration::from_secs(record.seconds.clamp(1, LONGEST));
        let free = record.holder.is_empty() || since.elapsed() >= lasts;
        free.then(|| Record {
            version,
            transitions: record.transitions.saturating_add(1),
            ..mine
        })
    }
}

/// Runs for the lead until the future is dropped; `leading` says how it stands.
pub(super) async fn run(leases: &impl Leases, me: &str, lasts: Duration, leading: &watch::Sender<Leading>) {
    let mut candidate = Candidate {
        me: me.to_owned(),
        lasts,
        seen: None,
    };
    // A question that takes longer comes too late for a holder.
    let within = lasts / 3;
    let mut failing = false;
    loop {
        let outcome = tokio::time::timeout(within, turn(leases, &mut candidate, leading)).await;
        match outcome.unwrap_or(Err(Fault::Silent(within))) {
            Ok(()) | Err(Fault::Conflict) => failing = false,
            Err(fault) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%fault, "the lease of who writes statuses can not be held: the API server");
                }
            }
        }
        tokio::time::sleep((lasts / 6).mul_f64(rand::random_range(0.8..=1.0))).await;
    }
}

async fn turn(
    leases: &impl Leases,
    candidate: &mut Candidate,
    leading: &watch::Sender<Leading>,
) -> Result<(), Fault> {
    candidate.saw(leases.read().await?);
    let Some(wanted) = candidate.wanted() else {
        if leading.send_replace(None).is_some() {
            tracing::warn!("another replica writes statuses now");
        }
        return Ok(());
    };
    let began = Instant::now();
    let written = leases.write(&wanted).await?;
    candidate.saw(Some(written));
    if leading
        .send_replace(Some(began + candidate.lasts * 2 / 3))
        .is_none()
    {
        tracing::info!("this replica writes statuses");
    }
    Ok(())
}

/// Lets go of the lease, so that another need not wait for its end. To be called once nothing is written
/// any more.
pub(super) async fn release(leases: &impl Leases, me: &str) -> Result<(), Fault> {
    match leases.read().await? {
        Some(record) if record.holder == me => {
            let free = Record {
                holder: String::new(),
                seconds: 1,
                ..record
            };
            leases.write(&free).await.map(|_| ())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
