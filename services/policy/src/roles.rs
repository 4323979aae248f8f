//! Who may call what. A method that is missing here is closed, and a test fails.

use weft_rpc::{Admit, MethodRoles};

/// Methods of `weft.policy.v1` and whom each admits.
pub const ROLES: MethodRoles = MethodRoles(&[
    ("/weft.policy.v1.Registry/Register", &[Admit::Node]),
    ("/weft.policy.v1.Registry/Deregister", &[Admit::Node]),
    (
        "/weft.policy.v1.Registry/Watch",
        &[Admit::Service("identity"), Admit::Node, Admit::Admin],
    ),
    ("/weft.policy.v1.Distribution/Subscribe", &[Admit::Node]),
    ("/weft.policy.v1.Explain/Explain", &[Admit::Admin, Admit::Local]),
    ("/weft.policy.v1.Resources/List", &[Admit::Admin, Admit::Local]),
    ("/weft.policy.v1.Resources/Apply", &[Admit::Admin, Admit::Local]),
    ("/weft.policy.v1.Resources/Delete", &[Admit::Admin, Admit::Local]),
    ("/weft.policy.v1.Resources/Rejected", &[Admit::Node, Admit::Admin]),
]);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_rpc::Caller;
    use weft_tls::PeerIdentity;

    fn caller(path: &str) -> Caller {
        let id = format!("spiffe://cluster.local{path}").parse().unwrap();
        Caller::Tls(PeerIdentity {
            id,
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        })
    }

    #[test]
    fn every_method_has_its_roles_and_admits_no_workload() {
        let methods = weft_rpc::methods("weft.policy.v1", weft_proto::WEFT_DESCRIPTORS).unwrap();
        assert_eq!(methods.len(), 9);
        for method in &methods {
            assert!(!ROLES.admits(method).is_empty(), "{method} admits nobody");
            for refused in [
                caller("/ns/default/cart"),
                caller("/weft/service/placement"),
                Caller::Anonymous,
            ] {
                assert!(
                    ROLES.check(method, &refused).is_err(),
                    "{method} admits {refused}"
                );
            }
        }
        for (method, _) in ROLES.0 {
            assert!(
                methods.iter().any(|m| m == method),
                "{method} is in the table and not in the protocol"
            );
        }
        let (node, admin) = (caller("/weft/node/n1"), caller("/weft/admin/ops"));
        let ok = |method: &str, caller| ROLES.check(&format!("/weft.policy.v1.{method}"), caller).is_ok();
        assert!(ok("Registry/Register", &node) && !ok("Registry/Register", &admin));
        assert!(ok("Distribution/Subscribe", &node) && !ok("Distribution/Subscribe", &admin));
        assert!(ok("Resources/List", &admin) && !ok("Resources/List", &node));
        let (identity, local) = (caller("/weft/service/identity"), Caller::Local { uid: 0 });
        assert!(ok("Registry/Watch", &identity));
        assert!(ok("Resources/List", &local) && !ok("Registry/Watch", &local));
        for order in ["Resources/Apply", "Resources/Delete"] {
            assert!(ok(order, &admin) && ok(order, &local), "{order}");
            assert!(!ok(order, &node) && !ok(order, &identity), "{order}");
        }
        assert!(ok("Explain/Explain", &admin) && ok("Explain/Explain", &local));
        assert!(!ok("Explain/Explain", &node));
    }
}
