//! Why the service does not start, and why it refuses.

use crate::{authority::AuthorityError, config::ConfigError, kek::KekError, supplied::SuppliedError};
use std::path::PathBuf;
use tonic::{Code, Status};
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

/// A request that is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    code: Code,
    reason: String,
    decision: bool,
}

impl Refused {
    /// The caller may not have it.
    pub fn denied(reason: String) -> Self {
        Self {
            code: Code::PermissionDenied,
            reason,
            decision: true,
        }
    }

    /// The request makes no sense.
    pub fn invalid(reason: String) -> Self {
        Self {
            code: Code::InvalidArgument,
            reason,
            decision: true,
        }
    }

    /// What it is about does not exist.
    pub fn missing(reason: String) -> Self {
        Self {
            code: Code::NotFound,
            reason,
            decision: true,
        }
    }

    /// Can not be decided now.
    pub fn unavailable(reason: String) -> Self {
        Self {
            code: Code::Unavailable,
            reason,
            decision: true,
        }
    }

    /// Not in this state.
    pub fn precondition(reason: String) -> Self {
        Self {
            code: Code::FailedPrecondition,
            reason,
            decision: true,
        }
    }

    /// The issuer that signed was dropped meanwhile; asking again helps.
    pub fn stale_issuer() -> Self {
        Self {
            code: Code::Unavailable,
            reason: "the issuing certificate was replaced meanwhile; ask again".into(),
            decision: false,
        }
    }

    /// Whether it is [`Refused::stale_issuer`].
    pub fn is_stale_issuer(&self) -> bool {
        *self == Self::stale_issuer()
    }

    /// Our own fault; the log says more.
    pub fn internal() -> Self {
        let reason = "the identity service failed; its log says why".into();
        Self {
            code: Code::Internal,
            reason,
            decision: false,
        }
    }

    /// Whether it was decided; otherwise the service could not decide.
    pub fn is_decision(&self) -> bool {
        self.decision
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<StoreError> for Refused {
    /// Paths and the like are for the operator's log, not for callers.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "database");
        let reason = "the identity service can not use its database; its log says why".into();
        Self {
            code: Code::Unavailable,
            reason,
            decision: false,
        }
    }
}

impl From<AuthorityError> for Refused {
    fn from(error: AuthorityError) -> Self {
        tracing::error!(%error, "authority");
        Self::internal()
    }
}

impl From<StartError> for Refused {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            error => {
                tracing::error!(%error, "authority");
                Self::internal()
            }
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Status::new(refused.code, refused.reason)
    }
}
