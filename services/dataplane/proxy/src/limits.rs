//! Bounds of what is proxied.

use std::time::Duration;
use weft_l7::{PoolLimits, ServerLimits};

/// Counts, sizes and times.
#[derive(Debug, Clone)]
pub struct ProxyLimits {
    /// Of each connection that is served.
    pub server: ServerLimits,
    /// Of the connections to each endpoint. A thousand requests under way at once are no overload
    /// of a workload, so there may be more than a client's library would allow.
    pub pool: PoolLimits,
    /// Endpoints that a request is tried at when nothing of it could be sent.
    pub connect_tries: usize,
    /// Bytes of a body that are kept, where a route wants to send a request more than once.
    pub kept_body: usize,
    /// Copies of requests under way at once; further ones are not made.
    pub mirrors: usize,
    /// Time for one copy.
    pub mirror_time: Duration,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            server: ServerLimits::default(),
            pool: PoolLimits {
                max_in_use: 8192,
                max_idle: 1024,
                ..PoolLimits::default()
            },
            connect_tries: 3,
            kept_body: 64 * 1024,
            mirrors: 256,
            mirror_time: Duration::from_secs(15),
        }
    }
}
