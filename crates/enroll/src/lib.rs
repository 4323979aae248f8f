//! How a process becomes a member of the mesh and stays one.
//!
//! Owns: the folder that holds a process's key, certificate and trust bundle; joining with a
//! token of the mesh or of Kubernetes; renewal at half of the certificate's life; following the trust bundle. What crosses the
//! border is a [`Member`]: an [`SvidCell`](weft_tls::SvidCell) and a [`Trust`](weft_tls::Trust)
//! that stay current by themselves.
//!
//! ```no_run
//! # async fn f(drain: weft_drain::Watcher) -> Result<(), weft_enroll::EnrollError> {
//! let domain = weft_model::TrustDomain::default();
//! let id = domain.node("n1")?;
//! let member = weft_enroll::Enrollment::new(id, "/var/lib/weft/node".into(), "10.0.0.1:7301".into())
//!     .token(weft_enroll::TokenSource::File("/etc/weft/join-token".into()))
//!     .enroll(drain)
//!     .await?;
//! # let _ = (member.svid, member.trust);
//! # Ok(()) }
//! ```

mod error;
mod files;
mod join;
mod keep;
mod means;
mod revoked;
mod token;

pub use error::EnrollError;
pub use join::{Enrollment, Member};
pub use means::{KubernetesJoin, TokenSource};
pub use revoked::add_revocation;
pub use token::{JoinToken, TokenError};
