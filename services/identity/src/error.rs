//! Why the service does not start.

use crate::{
    attest::FetchError, authority::AuthorityError, config::ConfigError, kek::KekError,
    supplied::SuppliedError,
};
use std::path::PathBuf;
use weft_model::SpiffeError;
use weft_rpc::RpcError;
use weft_store::StoreError;
use weft_tls::TlsError;

/// Why the service can not run. Every message is one line that names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key-encryption key.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The operator's authority.
    #[error(transparent)]
    Supplied(#[from] SuppliedError),
    /// The authority's certificates or the clock.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The state folder is of another mesh.
    #[error(
        "database {database} is the authority of trust domain {stored:?}, the configuration says {configured:?}; set \
         trust_domain to {stored:?} or use another state folder"
    )]
    TrustDomain {
        /// The database.
        database: String,
        /// What it was made for.
        stored: String,
        /// What is configured.
        configured: String,
    },
    /// A database that was put back to an older state.
    #[error(
        "database {database} is older than the certificate this service got from it last, by {seconds} s: it \
         was put back from a copy, and certificates were given out since that it knows nothing of; put the \
         newest copy back, or restore a backup with `weft identity restore`, which takes that into account; to \
         go on all the same, remove {}",
        path.display()
    )]
    OlderDatabase {
        /// The database.
        database: String,
        /// How much older.
        seconds: u64,
        /// The certificate.
        path: PathBuf,
    },
    /// The certificate beside the database.
    #[error("{} can not be used: {cause}; remove it if it is damaged", path.display())]
    OwnCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Rows that belong together are not all there.
    #[error("the database holds no {0}; restore it from a backup")]
    Incomplete(&'static str),
    /// A key that signs JWT-SVIDs.
    #[error("the key for JWT-SVIDs can not be used: {0}")]
    JwtKey(String),
    /// The database did not take the record of the service's own certificate.
    #[error("own certificate: {0}")]
    NotRecorded(String),
    /// The cluster's address and credentials.
    #[error("attestation.kubernetes: {0}")]
    Kubernetes(String),
    /// The place of keys that tokens are verified with.
    #[error("attestation.jwt: {0}")]
    Jwks(#[from] FetchError),
    /// Names.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Sockets and the gRPC server.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// A task of the service died.
    #[error("a task of the identity service ended unexpectedly: {0}")]
    Task(String),
}
