//! mTLS with SPIFFE identities over rustls: TLS 1.3 only, aws-lc-rs, both sides always verified.
//!
//! Owns: the certificates a process holds ([`SvidCell`]), the roots it trusts and what is revoked
//! under them ([`Trust`], [`Revoked`]), and the rustls configurations made of them. All can change
//! while connections run: a configuration reads them at each handshake, so rotation needs no
//! restart; whoever keeps connections open listens for the change. What crosses the border are
//! [`weft_model::SpiffeId`]s; who may do what is decided elsewhere.
//!
//! Sessions are never resumed, so that the identity is checked at every handshake.

mod clock;
mod config;
mod keys;
mod revoked;
mod shown;
mod svid;
mod trust;
mod verify;

pub use clock::{Clock, ManualClock, Now, SystemClock};
pub use config::{ClientAuth, client_config, pinned_client_config, server_config};
pub use keys::{KeyAndCsr, new_key_and_csr};
pub use revoked::Revoked;
pub use shown::with_refused;
pub use svid::{PeerIdentity, Svid, SvidCell, peer_identity};
pub use trust::{Bundle, Trust, root_sha256};
pub use verify::Expect;

/// The extension of tunnel certificates that names the node that holds them: UTF8String under
/// a private arc (UUID-derived, X.667), never set on certificates handed to workloads.
pub const NODE_EXTENSION_OID: &[u64] = &[2, 25, 231_927_114, 1, 1];

/// Why certificates or connections can not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate that can not be parsed.
    #[error("certificate can not be read: {0}")]
    Certificate(String),
    /// The private key does not fit or has an unknown form.
    #[error("private key can not be used: {0}")]
    Key(String),
    /// No single SPIFFE ID among the URI names.
    #[error("certificate has {0} SPIFFE IDs, exactly one is required")]
    SpiffeIds(usize),
    /// A SPIFFE ID that is none.
    #[error(transparent)]
    SpiffeId(#[from] weft_model::SpiffeError),
    /// The bundle has no usable root.
    #[error("trust bundle of {0} has no usable root certificate")]
    EmptyBundle(String),
    /// A bundle that was replaced already.
    #[error("trust bundle of version {offered} is older than the present one, version {held}")]
    OldBundle {
        /// Of the present one.
        held: u64,
        /// Of the one that is refused.
        offered: u64,
    },
    /// rustls refused a configuration.
    #[error("TLS configuration refused: {0}")]
    Config(#[from] rustls::Error),
}

/// Makes aws-lc-rs the provider of this process. Call once in `main`; later calls change nothing.
pub fn install_provider() {
    // The error only says that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
