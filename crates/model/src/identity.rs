//! Numeric security identities: what the kernel maps and flows carry instead of labels.
//!
//! The numbers below 256 are Cilium's (pkg/identity/reserved.go), so that flows and tools read the same.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A number that stands for a label set, or one of the reserved meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumericIdentity(pub u32);

impl NumericIdentity {
    /// Not known. Never allowed by a rule that names peers.
    pub const UNKNOWN: Self = Self(0);
    /// The node itself.
    pub const HOST: Self = Self(1);
    /// Outside the cluster.
    pub const WORLD: Self = Self(2);
    /// In the cluster, without an agent.
    pub const UNMANAGED: Self = Self(3);
    /// Health checks.
    pub const HEALTH: Self = Self(4);
    /// A workload whose labels are not known yet.
    pub const INIT: Self = Self(5);
    /// Another node.
    pub const REMOTE_NODE: Self = Self(6);
    /// The Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// Traffic that entered by a gateway.
    pub const INGRESS: Self = Self(8);
    /// In the cluster, not known yet: matches no label selector, and does match `cluster`.
    pub const CLUSTER_UNKNOWN: Self = Self(11);

    /// The first number given to a label set.
    pub const FIRST_ALLOCATED: Self = Self(256);
    /// The last number given to a label set.
    pub const LAST_ALLOCATED: Self = Self(65_535);

    /// Whether the number stands for a label set of the cluster.
    pub fn is_allocated(self) -> bool {
        (Self::FIRST_ALLOCATED..=Self::LAST_ALLOCATED).contains(&self)
    }

    /// The name of a reserved number, without `reserved:`.
    pub fn reserved_name(self) -> Option<&'static str> {
        Some(match self {
            Self::UNKNOWN => "unknown",
            Self::HOST => "host",
            Self::WORLD => "world",
            Self::UNMANAGED => "unmanaged",
            Self::HEALTH => "health",
            Self::INIT => "init",
            Self::REMOTE_NODE => "remote-node",
            Self::KUBE_APISERVER => "kube-apiserver",
            Self::INGRESS => "ingress",
            Self::CLUSTER_UNKNOWN => "aggregate-cluster",
            _ => return None,
        })
    }
}

impl fmt::Display for NumericIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
