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
    /// The certificate request asks for names
    CsrNames = "CSR_NAMES",
    /// The certificate request asks for a certificate that signs others
    CsrAuthority = "CSR_AUTHORITY",
    /// The certificate request is not signed with its own key
    CsrSignature = "CSR_SIGNATURE",
    /// The certificate of the caller was revoked
    CallerRevoked = "CALLER_REVOKED",
    /// The identity that was asked for is revoked
    IdentityRevoked = "IDENTITY_REVOKED",
    /// The caller has not joined, or no longer belongs
    NotAMember = "NOT_A_MEMBER",
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
    /// The caller asks too often
    RateLimited = "RATE_LIMITED",
    /// Certificates are for the mesh's own trust domain only
    OtherTrustDomain = "OTHER_TRUST_DOMAIN",
    /// This kind of evidence is not configured here
    AttestationOff = "ATTESTATION_OFF",
    /// What vouches for the evidence can not be asked now
    AttestorAway = "ATTESTOR_AWAY",
    /// The token is none of its kind
    TokenMalformed = "TOKEN_MALFORMED",
    /// The token is not vouched for, or says something that is not taken
    TokenInvalid = "TOKEN_INVALID",
    /// The token has expired
    TokenExpired = "TOKEN_EXPIRED",
    /// The token is not valid yet
    TokenNotYetValid = "TOKEN_NOT_YET_VALID",
    /// The token is for another audience
    TokenAudience = "TOKEN_AUDIENCE",
    /// The token is signed with an algorithm that is not permitted
    TokenAlgorithm = "TOKEN_ALGORITHM",
    /// The token is signed with a key that its issuer does not have
    TokenKey = "TOKEN_KEY",
    /// The token is for another subject than the identity that was asked for
    TokenSubject = "TOKEN_SUBJECT",
    /// The token was used already, for another key
    TokenReplayed = "TOKEN_REPLAYED",
    /// The token is bound to no pod
    TokenUnbound = "TOKEN_UNBOUND",
    /// The pod of the token is gone or has ended
    PodGone = "POD_GONE",
    /// Another pod has the name of the token's
    PodReplaced = "POD_REPLACED",
    /// The pod runs on another node than the one that asks
    PodElsewhere = "POD_ELSEWHERE",
    /// The evidence is for another identity than the one that was asked for
    OtherIdentity = "OTHER_IDENTITY",
    /// Kubernetes has no such pod on the node
    PodNotOnNode = "POD_NOT_ON_NODE",
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_for_operators_has_every_reason() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/identity.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        let row = |reason: &Reason| format!("| `{}` | {} |", reason.as_str(), reason.meaning());
        let missing: Vec<_> = Reason::ALL
            .iter()
            .map(row)
            .filter(|row| !page.contains(row))
            .collect();
        assert!(missing.is_empty(), "not in {path}:\n{}", missing.join("\n"));
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len(), "two reasons have one name");
        let rows = page
            .lines()
            .filter(|l| l.starts_with("| `") && l.contains("_"))
            .filter(|line| {
                let name = line
                    .trim_start_matches("| `")
                    .split('`')
                    .next()
                    .unwrap_or_default();
                name.bytes().all(|c| c.is_ascii_uppercase() || c == b'_') && !names.contains(name)
            });
        assert_eq!(rows.collect::<Vec<_>>(), [""; 0], "reasons that there are not");
    }
}
