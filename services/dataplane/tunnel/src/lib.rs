//! Tunnels between nodes: HTTP/2 CONNECT over mTLS, where both certificates name a workload and
//! the node it runs on.
//!
//! Owns: the pool of tunnels a node has to others ([`Client`]), the accepting side ([`serve`]),
//! and the byte stream inside ([`TunnelStream`]). What crosses the border: sockets come from a
//! [`Dialer`], certificates from [`SvidCell`]s, accepted
//! streams go to a [`Handler`] with the [`PeerIdentity`] that was verified. Who may call whom is
//! decided elsewhere.
//!
//! `h2` is used directly: hyper's CONNECT streams had no back-pressure in several releases, and a
//! tunnel that buffers without bound takes the node down with it.
//!
//! [`SvidCell`]: weft_tls::SvidCell
//! [`PeerIdentity`]: weft_tls::PeerIdentity

mod client;
mod life;
mod limits;
mod link;
mod local;
mod server;
mod share;
mod stream;
mod stuck;

pub use client::{Client, Destination, Dialer, OpenError, Opened, Source};
pub use limits::Limits;
pub use local::{Local, SharedIdentities, sni_of};
pub use server::{Handler, Incoming, serve};
pub use stream::{ReadHalf, TunnelStream, WriteHalf};

/// Names the workload that opens a stream, by its id. Proves nothing by itself: the receiver takes
/// it only if that workload is known to have the certificate's SPIFFE ID and node.
pub const SOURCE_HEADER: &str = "weft-source";
/// Names the workload that a stream is for, by its id.
pub const DESTINATION_HEADER: &str = "weft-destination";
/// Header of a refusal: the rule of the destination's policy that refuses. Its node tells it to the node of the
/// source, for that one's flows.
const RULE_HEADER: &str = "weft-rule";
/// Bytes of a rule's text that are told.
const MAX_RULE: usize = 512;
/// ALPN of tunnels.
const ALPN: &[&[u8]] = &[b"h2"];
