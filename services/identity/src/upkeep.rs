//! What happens by itself while the service runs: steps of a rotation, changes by other replicas or
//! by the operator's files, the service's own certificate, the length of the audit record.

use crate::{core::Core, error::StartError, memory, supplied::Supplied};
use std::{path::Path, time::Duration};
use weft_telemetry::Health;
use weft_tls::{SvidCell, Trust};

/// How often the clock is looked at for renewals, and the database for what other replicas changed.
/// Short against any lifetime (a minute or more), and against the two seconds in which a revocation
/// has to arrive.
const LOOK: Duration = Duration::from_millis(500);
/// How long until something that failed is tried again: soon, since what other replicas revoked is
/// heard of by this as well.
const RETRY: Duration = Duration::from_secs(1);
/// How often the log is told of what goes on failing.
const TELL: Duration = Duration::from_secs(15);
/// How often the audit record is trimmed: often enough for no flood to fill the disk.
const TRIM: Duration = Duration::from_secs(60);
/// How often memory is given back, if something was done since.
const REST: Duration = Duration::from_secs(5);
/// The operator's files are looked at as often as a mounted Secret is worth it.
const FILES: Duration = Duration::from_secs(5);
/// The part of the process's health.
pub const CERTIFICATE: &str = "certificate";

/// What is kept up.
pub struct Upkeep<'a> {
    pub core: &'a Core,
    /// The service's own certificate.
    pub svid: &'a SvidCell,
    /// What the service itself verifies by.
    pub trust: &'a Trust,
    /// Where the operator's authority is.
    pub place: Option<&'a Path>,
}

impl Upkeep<'_> {
    /// Never ends by itself.
    pub async fn run(&self, health: &Health) {
        let now = tokio::time::Instant::now;
        let (mut trimmed, mut read, mut rested) = (now(), now(), now());
        let (mut recorded, mut resting) = (0, false);
        let mut told = None::<tokio::time::Instant>;
        let mut published = self.core.published();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.core.acks.changed() => {}
                () = self.core.wake.notified() => {}
                Ok(()) = published.changed() => {}
            }
            self.core.record_floods();
            if trimmed.elapsed() >= TRIM {
                trimmed = now();
                if let Err(error) = self.core.trim_audit().await {
                    tracing::warn!(%error, "audit record could not be trimmed");
                }
            }
            if rested.elapsed() >= REST {
                rested = now();
                let before = std::mem::replace(&mut recorded, self.core.recorder.recorded());
                let idle = before == recorded;
                if !idle || !resting {
                    memory::trim_heap();
                }
                if idle && !resting {
                    memory::unmap_program();
                }
                resting = idle;
            }
            if read.elapsed() >= FILES {
                read = now();
                if let Err(error) = self.read_supplied().await {
                    tracing::error!(%error, "the supplied authority can not be used, the present one stays");
                }
            }
            self.core
                .counts
                .workloads(self.core.registry().size().unwrap_or(0));
            match self.renew().await {
                Ok(()) => {
                    told = None;
                    health.ready(CERTIFICATE);
                }
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() >= TELL) {
                        told = Some(now());
                        tracing::error!(%error, "the authority or its own certificate could not be kept up, trying again");
                    }
                    health.waiting(CERTIFICATE, error.to_string());
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), StartError> {
        let core = self.core;
        let before = core.issuer_id();
        if core.may_rotate().await? {
            core.advance().await?;
        } else {
            core.refresh().await?;
        }
        core.tell_joins().await?;
        let bundle = core.bundle();
        if bundle.version != self.trust.version() {
            self.trust.set(bundle)?;
        }
        let held = self.svid.get();
        let due = held.is_none_or(|s| {
            core.clock().unix_seconds() >= s.renew_at() || s.identity().not_before < core.renew_before()
        });
        if due || core.issuer_id() != before {
            let fresh = core.own_svid().await?;
            tracing::info!(serial = fresh.identity().serial, "own certificate renewed");
            self.svid.set(fresh);
        }
        Ok(())
    }

    async fn read_supplied(&self) -> Result<(), StartError> {
        if let Some(place) = self.place {
            let now = self.core.clock().unix_seconds();
            let supplied = Supplied::read(place, self.core.trust_domain(), now)?;
            self.core.adopt_supplied(&supplied).await?;
        }
        Ok(())
    }
}
