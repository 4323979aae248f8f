//! The timing that server and nodes agree on.

use std::time::Duration;

/// How long a node's hosts stay owners after its last renewal.
pub const LEASE: Duration = Duration::from_secs(10);

/// How often a node renews.
pub const RENEW: Duration = Duration::from_secs(2);

/// How much earlier than the server a node takes its own lease to be over. Covers clocks that
/// run at different speeds.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// When two looks at the clock are further apart, the server itself was stopped, and renewals may
/// wait unread: every lease is prolonged by the gap. Prolonging is always safe, it only delays.
pub const PAUSE: Duration = Duration::from_secs(2);

/// A node that was not heard of for this long gets no calls from others, though its hosts keep
/// their slots.
pub const SILENT: Duration = Duration::from_secs(3);

/// How long turns that run may go on in a slot that is to be handed over.
pub const DRAIN: Duration = Duration::from_secs(2);

/// When a slot that is to be handed over is free even if its owner says nothing. A lease that was
/// given before the owner was told ends within [`LEASE`]; one that was given after it came behind
/// what it was told. Turns that run then are over after [`DRAIN`]; the rest covers clocks.
pub const HANDOVER: Duration = Duration::from_secs(13);
