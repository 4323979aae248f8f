//! Who may call what. A method that is missing here is closed, and a test fails.

use weft_rpc::{Admit, MethodRoles};

/// Methods of `weft.identity.v1` and of Dapr's certificate authority, and whom each admits.
pub const ROLES: MethodRoles = MethodRoles(&[
    // The token is the proof. A workload's certificate is refused in the handler.
    ("/weft.identity.v1.Bootstrap/Join", &[Admit::Anonymous]),
    // The evidence is the proof.
    ("/weft.identity.v1.Bootstrap/Attest", &[Admit::Anonymous]),
    // As for Dapr's Sentry: the token is the proof.
    ("/dapr.proto.sentry.v1.CA/SignCertificate", &[Admit::Anonymous]),
    // Operators ask anew, on the local socket.
    (
        "/weft.identity.v1.Certificates/Renew",
        &[Admit::AnyService, Admit::Node],
    ),
    ("/weft.identity.v1.Certificates/SignWorkload", &[Admit::Node]),
    ("/weft.identity.v1.Certificates/SignIngress", &[Admit::Node]),
    ("/weft.identity.v1.Certificates/SignJwt", &[Admit::Node]),
    (
        "/weft.identity.v1.Trust/WatchBundle",
        &[Admit::AnyService, Admit::Node, Admit::Admin, Admit::Local],
    ),
    (
        "/weft.identity.v1.Members/WatchNodes",
        &[Admit::Service("policy")],
    ),
    (
        "/weft.identity.v1.Trust/AckBundle",
        &[Admit::AnyService, Admit::Node],
    ),
    (
        "/weft.identity.v1.Admin/CreateJoinToken",
        &[Admit::Admin, Admit::Local],
    ),
    ("/weft.identity.v1.Admin/SignAdmin", &[Admit::Admin, Admit::Local]),
    ("/weft.identity.v1.Admin/ListAudit", &[Admit::Admin, Admit::Local]),
    (
        "/weft.identity.v1.Admin/GetAuthority",
        &[Admit::Admin, Admit::Local],
    ),
    ("/weft.identity.v1.Admin/Rotate", &[Admit::Admin, Admit::Local]),
    ("/weft.identity.v1.Admin/Revoke", &[Admit::Admin, Admit::Local]),
    ("/weft.identity.v1.Admin/Reinstate", &[Admit::Admin, Admit::Local]),
    (
        "/weft.identity.v1.Admin/ListRevocations",
        &[Admit::Admin, Admit::Local],
    ),
    // The authority's keys, even if encrypted, do not leave the machine by a certificate.
    ("/weft.identity.v1.Admin/Backup", &[Admit::Local]),
]);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_roles() {
        let mut methods = weft_rpc::methods("weft.identity.v1", weft_proto::WEFT_DESCRIPTORS).unwrap();
        methods.extend(weft_rpc::methods("dapr.proto.sentry.v1", weft_proto::DAPR_DESCRIPTORS).unwrap());
        assert_eq!(methods.len(), 19);
        for method in &methods {
            assert!(!ROLES.admits(method).is_empty(), "{method} admits nobody");
        }
        for (method, _) in ROLES.0 {
            assert!(
                methods.iter().any(|m| m == method),
                "{method} is in the table and not in the protocol"
            );
        }
    }
}
