//! A request that is not granted: what the caller is told, in words and for programs.

use crate::{
    authority::AuthorityError,
    csr::CsrError,
    error::StartError,
    reason::{DOMAIN, Reason},
};
use std::time::Duration;
use tonic::{Code, Status};
use weft_rpc::Refusal;
use weft_store::StoreError;

/// When to ask again after what passes by itself.
const SOON: Duration = Duration::from_secs(1);

/// A request that is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    code: Code,
    text: String,
    reason: Reason,
    field: Option<&'static str>,
    retry_after: Option<Duration>,
    about: Option<(&'static str, String)>,
    /// Why the service could not decide or could not do it, for the audit record alone.
    cause: Option<Box<str>>,
    /// Whether the audit record knows of it.
    recorded: bool,
}

impl Refused {
    fn new(code: Code, reason: Reason, text: String) -> Self {
        Self {
            code,
            text,
            reason,
            field: None,
            retry_after: None,
            about: None,
            cause: None,
            recorded: false,
        }
    }

    /// The caller may not have it.
    pub fn denied(reason: Reason, text: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, reason, text.into())
    }

    /// This field of the request makes no sense.
    pub fn field(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            field: Some(name),
            ..Self::new(Code::InvalidArgument, Reason::FieldInvalid, text.into())
        }
    }

    /// A certificate request in this field.
    pub fn csr(name: &'static str, error: &CsrError) -> Self {
        let reason = match error {
            CsrError::TooLarge(_) => Reason::CsrTooLarge,
            CsrError::Malformed => Reason::CsrMalformed,
            CsrError::KeyType => Reason::CsrKeyType,
            CsrError::Names => Reason::CsrNames,
            CsrError::Authority => Reason::CsrAuthority,
            CsrError::Signature => Reason::CsrSignature,
        };
        Self {
            reason,
            ..Self::field(name, error.to_string())
        }
    }

    /// What it is about does not exist.
    pub fn missing(reason: Reason, text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, text.into())
    }

    /// Can not be decided now; soon, perhaps.
    pub fn unavailable(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            retry_after: Some(SOON),
            ..Self::new(Code::Unavailable, reason, text.into())
        }
    }

    /// Not in this state.
    pub fn precondition(reason: Reason, text: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, text.into())
    }

    /// The issuer that signed was dropped meanwhile; asking again helps.
    pub fn stale_issuer() -> Self {
        let text = "the issuing certificate was replaced meanwhile; ask again";
        Self {
            cause: Some(text.into()),
            ..Self::unavailable(Reason::IssuerReplaced, text)
        }
    }

    /// Whether it is [`Refused::stale_issuer`].
    pub fn is_stale_issuer(&self) -> bool {
        self.reason == Reason::IssuerReplaced
    }

    /// Our own fault; the log says more.
    pub fn internal() -> Self {
        let text = "the identity service failed; its log says why";
        Self {
            cause: Some(text.into()),
            ..Self::new(Code::Internal, Reason::Internal, text.into())
        }
    }

    /// What the request is about.
    pub fn about(mut self, kind: &'static str, name: &str) -> Self {
        self.about = Some((kind, name.to_owned()));
        self
    }

    /// Another code than the constructor's, where a protocol asks for it.
    pub fn with_code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Another reason than the constructor's.
    pub fn because(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// As gRPC has it.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Why, for programs.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The field of the request that makes no sense.
    pub fn in_field(&self) -> Option<&'static str> {
        self.field
    }

    /// What the audit record is told of why the service could not decide; nothing if it was decided.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// The audit record knows of it.
    pub fn recorded(mut self) -> Self {
        self.recorded = true;
        self
    }

    /// Whether the audit record knows of it.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Whether it was decided; otherwise the service could not decide.
    #[cfg(test)]
    pub fn is_decision(&self) -> bool {
        self.cause.is_none()
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<StoreError> for Refused {
    /// Paths and the like are for the operator's log, not for callers.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "database");
        let text = "the identity service can not use its database; its log says why";
        Self {
            cause: Some(error.to_string().into()),
            ..Self::unavailable(Reason::DatabaseUnavailable, text)
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
        let mut refusal = Refusal::new(refused.code, refused.reason.as_str(), DOMAIN, refused.text);
        if let Some(name) = refused.field {
            refusal = refusal.field(name);
        }
        if let Some((kind, name)) = refused.about {
            refusal = match refused.code {
                Code::FailedPrecondition => refusal.precondition(kind, &name),
                _ => refusal.resource(kind, &name),
            };
        }
        if let Some(pause) = refused.retry_after {
            refusal = refusal.retry_after(pause);
        }
        refusal.into()
    }
}
