//! What can be taken out of the protocol, to see that somebody notices.

/// One mechanism that is missing. The rest of the world stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The state store takes writes of any epoch.
    FencingOff,
    /// An owner's first write raises the fence, instead of a claim before its first read.
    ClaimSkipped,
    /// A silent node's slots go to others before its lease is over.
    LeaseNotWaitedFor,
    /// A node's lease is as long as the service's.
    MarginZero,
    /// A node counts its lease from when the answer came, not from when it asked.
    LeaseFromAnswer,
    /// A node has its lease with the welcome, before what changed meanwhile has come.
    WelcomeGivesLease,
    /// Epochs are not durable: a new leader gives some out again.
    EpochsForgotten,
    /// A node says that a slot is drained, and goes on running turns in it.
    DrainSkipped,
    /// Slots move without their owner being asked.
    DrainNotAsked,
    /// Renewals are answered before what changed was told.
    RenewedBeforeTables,
    /// The row of the leader is overwritten, not compared and swapped.
    LeaderWithoutCas,
    /// A leader goes on when its own time is over.
    LeaderNeverStops,
    /// The database takes writes of any term.
    TermNotCompared,
    /// The database takes a leader's saves in any order.
    SavesUnordered,
    /// Nodes are told before the change is committed.
    ToldBeforeWritten,
    /// A new leader does not wait for nodes that have a lease from the one before.
    NoGraceAfterFailover,
    /// Reminders are acknowledged before they are committed.
    AckBeforeCommit,
    /// Reminders are removed when they are sent to their owner.
    RemovedBeforeRun,
}

impl Fault {
    pub const ALL: [Self; 18] = [
        Self::FencingOff,
        Self::ClaimSkipped,
        Self::LeaseNotWaitedFor,
        Self::MarginZero,
        Self::LeaseFromAnswer,
        Self::WelcomeGivesLease,
        Self::EpochsForgotten,
        Self::DrainSkipped,
        Self::DrainNotAsked,
        Self::RenewedBeforeTables,
        Self::LeaderWithoutCas,
        Self::LeaderNeverStops,
        Self::TermNotCompared,
        Self::SavesUnordered,
        Self::ToldBeforeWritten,
        Self::NoGraceAfterFailover,
        Self::AckBeforeCommit,
        Self::RemovedBeforeRun,
    ];
}
