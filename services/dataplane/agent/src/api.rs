//! The agent's own gRPC services, on the local socket and (for operators) over mTLS.
//!
//! Owns which caller may use which method, and what the services answer. What they answer from is
//! owned elsewhere.

mod status;
mod workloads;

use crate::agent::Shared;
use crate::table::Table;
use std::sync::Arc;
use weft_proto::{
    WEFT_DESCRIPTORS,
    weft::dataplane::v1::{status_server::StatusServer, workloads_server::WorkloadsServer},
};
use weft_rpc::{Admit, BuiltServer, GrpcServer, MethodRoles, RpcError};

pub use status::Facts;

const PACKAGE: &str = "weft.dataplane.v1";
/// Launchers of workloads use the local socket: who may open it may start processes here anyway.
const LAUNCHER: &[Admit] = &[Admit::Local];
/// Looking is also for operators elsewhere.
const OPERATOR: &[Admit] = &[Admit::Local, Admit::Admin];

/// Who may call what.
pub const ROLES: MethodRoles = MethodRoles(&[
    ("/weft.dataplane.v1.Workloads/Add", LAUNCHER),
    ("/weft.dataplane.v1.Workloads/Remove", LAUNCHER),
    ("/weft.dataplane.v1.Workloads/List", LAUNCHER),
    ("/weft.dataplane.v1.Workloads/Attach", LAUNCHER),
    ("/weft.dataplane.v1.Status/Get", OPERATOR),
]);

/// The server with all services.
pub fn server(shared: &Arc<Shared>, table: &Table, facts: Facts) -> Result<BuiltServer, RpcError> {
    let workloads = workloads::Service {
        shared: shared.clone(),
        table: table.clone(),
    };
    let status = status::Service {
        shared: shared.clone(),
        facts,
    };
    Ok(GrpcServer::new(PACKAGE, WEFT_DESCRIPTORS, ROLES)?
        .add_service(WorkloadsServer::new(workloads))
        .add_service(StatusServer::new(status))
        .build())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_rpc::Caller;
    use weft_tls::PeerIdentity;

    fn tls(path: &str) -> Caller {
        Caller::Tls(PeerIdentity {
            id: format!("spiffe://cluster.local{path}").parse().unwrap(),
            serial: "1".into(),
            node: None,
            not_before: 0,
            not_after: 1,
        })
    }

    #[test]
    fn every_method_has_its_roles_and_admits_no_other() {
        let methods = weft_rpc::methods(PACKAGE, WEFT_DESCRIPTORS).unwrap();
        assert_eq!(
            methods.len(),
            ROLES.0.len(),
            "a method without roles, or roles without a method"
        );
        let local = Caller::Local { uid: 0 };
        let admin = tls("/weft/admin/ops");
        let others = [
            tls("/ns/default/cart"),
            tls("/weft/node/n2"),
            tls("/weft/service/policy"),
            Caller::Anonymous,
        ];
        for method in &methods {
            assert!(ROLES.check(method, &local).is_ok(), "{method}");
            let for_operators = !method.contains(".Workloads/");
            assert_eq!(ROLES.check(method, &admin).is_ok(), for_operators, "{method}");
            for other in &others {
                assert!(ROLES.check(method, other).is_err(), "{method} admits {other}");
            }
        }
    }
}
