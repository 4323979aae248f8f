//! How the node stands with the placement service.

use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// The stream to the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not there: first connect, or trying again.
    Down {
        /// Since when.
        since: Instant,
        /// Why the last attempt ended; empty before the first.
        reason: String,
    },
    /// The service has welcomed the node.
    Up {
        /// Since when.
        since: Instant,
    },
}

/// How the node stands with the placement service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The stream.
    pub link: Link,
    /// No turn may start after this: the service may have given the node's slots to others. `None`
    /// before the first welcome.
    pub lease_until: Option<Instant>,
    /// Hosts that the service did not take, with its reason.
    pub refused: BTreeMap<String, String>,
    /// How many streams there were, for metrics.
    pub streams: u64,
}

impl Status {
    pub(crate) fn new(now: Instant) -> Self {
        let link = Link::Down {
            since: now,
            reason: String::new(),
        };
        Self {
            link,
            lease_until: None,
            refused: BTreeMap::new(),
            streams: 0,
        }
    }

    /// Whether the node's hosts are owners now, as far as the node itself can know.
    pub fn lease_holds(&self) -> bool {
        self.lease_left() > Duration::ZERO
    }

    /// For how long the lease still holds.
    pub fn lease_left(&self) -> Duration {
        self.lease_until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Whether the stream is there.
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }
}
