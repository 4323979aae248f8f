//! Conditions as Kubernetes writes them.

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// `status` of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One thing that is said of an object or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub kind: &'static str,
    pub status: Truth,
    pub reason: &'static str,
    pub message: String,
    /// When `status` became what it is, in seconds since the Unix epoch.
    pub since: u64,
}

impl Condition {
    pub(super) fn new(
        kind: &'static str,
        status: Truth,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            status,
            reason,
            message: message.into(),
            since: 0,
        }
    }

    pub(super) fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::True, reason, message)
    }

    pub(super) fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::False, reason, message)
    }

    pub(super) fn is_true(&self) -> bool {
        self.status == Truth::True
    }

    /// Of an object in this generation.
    pub(super) fn json(&self, generation: u64) -> Value {
        json!({
            "type": self.kind,
            "status": self.status.name(),
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": time(self.since),
        })
    }
}

/// RFC 3339, as Kubernetes writes times.
pub(in crate::world) fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Those that are as they were keep their time.
pub(super) fn carry(old: &[Condition], new: &mut [Condition], now: u64) {
    for condition in new {
        let before = old.iter().find(|c| c.kind == condition.kind);
        condition.since = match before {
            Some(before) if before.status == condition.status => before.since,
            _ => now,
        };
    }
}

/// The first few of what is wrong, in one line.
pub(super) fn line(problems: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut line = problems[..problems.len().min(SHOWN)].join("; ");
    if problems.len() > SHOWN {
        line += &format!("; and {} more", problems.len() - SHOWN);
    }
    line
}
