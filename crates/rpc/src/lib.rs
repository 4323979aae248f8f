//! gRPC between Weft's processes: mTLS always, health and reflection on every server, and a table
//! of which role may call which method.
//!
//! Owns: accepting connections ([`GrpcServer`]), calling out ([`channel`]), and the decision
//! whether a caller may use a method ([`MethodRoles`]). A handler finds the caller as [`Caller`]
//! in the request's extensions (see [`caller`]); it never reads identities from messages. A server
//! may limit how much one caller asks ([`Limiter`]). Who follows another service's stream of changes does so
//! by [`follow()`]. What is refused says why in a form for programs
//! as well ([`Refusal`]).
//!
//! Every connection takes no new calls after [`MAX_CONNECTION_AGE`], so a certificate that was
//! rotated is shown again soon; and it ends, with all its streams, when the certificate that it
//! was opened with expires.

mod client;
mod follow;
mod gate;
mod incoming;
mod limit;
mod local;
mod refusal;
mod refused;
mod roles;
mod server;
mod until;

pub use client::{channel, channel_local, channel_pinned};
pub use follow::{FollowError, follow};
pub use limit::{Limited, Limiter, Rate};
pub use local::bind_local;
pub use refusal::{RPC_DOMAIN, Refusal};
pub use refused::ConnectionRefused;
pub use roles::{Admit, Caller, MethodRoles, TurnedAway, address, caller};
pub use server::{BuiltServer, GrpcServer, MAX_CONNECTION_AGE, methods};
pub use tonic_types::{ErrorDetails, StatusExt};

/// Why a server or client could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// A socket could not be bound.
    #[error("cannot listen on {address}: {source}{}", remedy(.address, .source))]
    Bind {
        /// Address or path.
        address: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// TLS configuration.
    #[error(transparent)]
    Tls(#[from] weft_tls::TlsError),
    /// An address that is not `host:port`.
    #[error("address {0:?} is not host:port")]
    Address(String),
    /// The transport gave up.
    #[error("gRPC server failed: {0}")]
    Transport(String),
    /// The compiled descriptors can not be served.
    #[error("gRPC reflection can not be set up: {0}")]
    Reflection(String),
}

fn remedy(address: &str, e: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match e.kind() {
        K::AddrInUse if address.starts_with('/') => {
            "; another process has it: stop that one or choose another folder with --run-dir"
        }
        K::AddrInUse => "; another process has it: stop that one or choose another with --listen",
        K::PermissionDenied => "; run as root or choose a place this user may use",
        K::AddrNotAvailable => "; no interface of this machine has that address",
        K::NotFound => "; make its folder first",
        _ => "",
    }
}
