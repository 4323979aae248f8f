//! Names and values that the state machine deals in.

use std::{fmt, ops::Add, sync::Arc, time::Duration};

/// A point in time, counted from wherever the caller's monotonic clock starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// So long after the clock's start.
    pub fn since_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How much later this is than `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// One actor type of one namespace. Equal type names in two namespaces have nothing in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeKey {
    /// Namespace of the hosts.
    pub namespace: Arc<str>,
    /// Name of the actor type.
    pub actor_type: Arc<str>,
}

impl TypeKey {
    /// Puts the two names together.
    pub fn new(namespace: &str, actor_type: &str) -> Self {
        Self {
            namespace: namespace.into(),
            actor_type: actor_type.into(),
        }
    }
}

impl fmt::Display for TypeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.actor_type)
    }
}

/// An app instance that hosts actors, as everybody sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostInfo {
    /// Unique in the cluster.
    pub id: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its app-id.
    pub app_id: Arc<str>,
    /// The node that serves it, as the node's certificate names it.
    pub node: Arc<str>,
    /// Relative share of slots, at least 1.
    pub capacity: u32,
}

/// A host with the actor types that it registers for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Registration {
    /// Unique in the cluster.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Its app-id.
    pub app_id: String,
    /// The types it runs.
    pub actor_types: Vec<String>,
    /// Relative share of slots; 0 counts as 1.
    pub capacity: u32,
    /// It is to hand over what it has, and gets nothing more.
    pub leaving: bool,
}
