//! TCP of any protocol between workloads: what the kernel sent to the capture listener is judged,
//! taken to where it was meant for (in the target's namespace here, by tunnel to another node), and
//! carried without looking at it. Where routes or rules at L7 speak of single requests it is given to
//! `weft-proxy` instead.
//!
//! Owns: connections from accept to end, their bounds, their flows, and judging them anew when the
//! mesh changes ([`Capture`]); the plain streams that come out of tunnels ([`Streams`]). What
//! crosses the border: who called and where to, as the kernel recorded it ([`Asked`]); who is there,
//! who may and how sockets are made come through [`Mesh`].
//!
//! An end is told as what it was: a half-close stays one, and whatever breaks off (a reset, a dead
//! tunnel, a policy) reaches both apps as a reset, never as the end of a complete answer.

mod case;
mod http;
mod inbound;
mod limits;
mod mesh;
mod open;
mod outbound;
mod relay;
mod socket;

pub use inbound::Streams;
pub use limits::CaptureLimits;
pub use mesh::{Asked, Found, Mesh};
pub use open::{Capture, Refused};
