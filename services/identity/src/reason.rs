//! Why something is refused, for programs: the `reason` of `google.rpc.ErrorInfo`.
//!
//! Names never change. A test makes each of them happen, and another keeps the table in
//! `docs/identity.md` in step with this list.

/// Domain of the reasons.
pub const DOMAIN: &str = "identity.weft.dev";

macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why something is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As programs read it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// As people read it.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($meaning),+).trim_ascii_start(),)+
                }
            }
        }
    };
}

reasons! {
    /// A field of the request is missing or not of its form; `BadRequest` names it
    FieldInvalid = "FIELD_INVALID",
    /// The certificate request is larger than 4096 bytes
    CsrTooLarge = "CSR_TOO_LARGE",
    /// The certificate request is not PKCS#10
    CsrMalformed = "CSR_MALFORMED",
    /// The key of the certificate request is none of ECDSA P-256, ECDSA P-384, Ed25519
    CsrKeyType = "CSR_KEY_TYPE",
    /// The certificate request is not signed with its own key
    CsrSignature = "CSR_SIGNATURE",
    /// The certificate of the caller was revoked
    CallerRevoked = "CALLER_REVOKED",
    /// The identity that was asked for is revoked
    IdentityRevoked = "IDENTITY_REVOKED",
    /// The caller has not joined, or no longer belongs
    NotAMember = "NOT_A_MEMBER",
    /// Operators and workloads do not renew their certificates themselves
    NotRenewable = "NOT_RENEWABLE",
    /// No such workload is registered
    WorkloadUnknown = "WORKLOAD_UNKNOWN",
    /// The workload is registered on another node
    WorkloadElsewhere = "WORKLOAD_ELSEWHERE",
    /// None of the node's host patterns matches
    HostingNotPermitted = "HOSTING_NOT_PERMITTED",
    /// Namespace and name make no SPIFFE ID of a workload
    NotNameable = "NOT_NAMEABLE",
    /// The registry's SPIFFE ID is not that of the namespace and name beside it
    RegistryContradicts = "REGISTRY_CONTRADICTS",
    /// The policy service's registry has not been read yet
    RegistryNotReady = "REGISTRY_NOT_READY",
    /// The key for JWT-SVIDs is being made
    JwtKeyNotReady = "JWT_KEY_NOT_READY",
    /// The join token is not known here
    JoinTokenUnknown = "JOIN_TOKEN_UNKNOWN",
    /// The join token has been used
    JoinTokenUsed = "JOIN_TOKEN_USED",
    /// The join token has expired
    JoinTokenExpired = "JOIN_TOKEN_EXPIRED",
    /// Workloads do not join
    WorkloadsDoNotJoin = "WORKLOADS_DO_NOT_JOIN",
    /// The operator supplies what was to be made here
    AuthoritySupplied = "AUTHORITY_SUPPLIED",
    /// A rotation is under way that this one would disturb
    RotationUnderWay = "ROTATION_UNDER_WAY",
    /// The authority was changed by others again and again
    AuthorityBusy = "AUTHORITY_BUSY",
    /// No more revocations are kept
    RevocationsFull = "REVOCATIONS_FULL",
    /// The identity is not revoked
    NotRevoked = "NOT_REVOKED",
    /// The caller has no such stream of the bundle
    StreamUnknown = "STREAM_UNKNOWN",
    /// The issuer was replaced while it signed
    IssuerReplaced = "ISSUER_REPLACED",
    /// The database does not answer
    DatabaseUnavailable = "DATABASE_UNAVAILABLE",
    /// The service failed; its log says why
    Internal = "INTERNAL",
}
