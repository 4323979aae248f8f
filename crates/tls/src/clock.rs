//! The time that certificates are judged by. Tests move it; processes use the system's.

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where "now" comes from. Cheap to clone.
pub type Clock = Arc<dyn Now>;

/// A source of wall-clock time.
pub trait Now: Send + Sync + std::fmt::Debug {
    /// Seconds since the Unix epoch.
    fn unix_seconds(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// As a shared [`Clock`].
    pub fn shared() -> Clock {
        Arc::new(Self)
    }
}

impl Now for SystemClock {
    fn unix_seconds(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs()
    }
}

/// A clock that only moves when told to.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Starts at so many seconds since the Unix epoch.
    pub fn at(unix_seconds: u64) -> Self {
        Self(Arc::new(AtomicU64::new(unix_seconds)))
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    /// Moves anywhere, also back.
    pub fn set(&self, unix_seconds: u64) {
        self.0.store(unix_seconds, Ordering::SeqCst);
    }

    /// As a shared [`Clock`] that moves with this one.
    pub fn shared(&self) -> Clock {
        Arc::new(self.clone())
    }
}

impl Now for ManualClock {
    fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The clock as rustls wants it.
#[derive(Debug)]
pub(crate) struct RustlsClock(pub Clock);

impl TimeProvider for RustlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.0.unix_seconds(),
        )))
    }
}
