//! Bounds of captured connections.

use std::time::Duration;

/// Counts and times. There is no idle timeout: what an app keeps open stays open.
#[derive(Debug, Clone)]
pub struct CaptureLimits {
    /// Connections that one workload may have open to others.
    pub opened_per_workload: usize,
    /// Connections that others may have open to one workload by tunnel.
    pub accepted_per_workload: usize,
    /// Connecting to a workload of this node.
    pub connect_timeout: Duration,
    /// Connecting to what is outside the mesh: as long as Linux itself tries (`tcp_syn_retries` 6).
    pub outside_timeout: Duration,
    /// The mesh may change many times a second; what is open is judged anew at most so often.
    pub rejudge_pause: Duration,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self {
            opened_per_workload: 4096,
            accepted_per_workload: 4096,
            connect_timeout: Duration::from_secs(5),
            outside_timeout: Duration::from_secs(130),
            rejudge_pause: Duration::from_millis(100),
        }
    }
}
