//! Every method and every role: who is let in, and who is not.

use crate::mesh::{Mesh, Raw, hello};
use tonic::Code;
use weft_placement::ROLES;
use weft_proto::weft::placement::v1::{self as pb, join_request::Message as Up};

const PEERS: [(&str, &str); 4] = [
    ("node", "/weft/node/n1"),
    ("admin", "/weft/admin/ops"),
    ("service", "/weft/service/policy"),
    ("workload", "/ns/default/cart"),
];

#[test]
fn every_method_is_in_the_table() {
    let methods = weft_rpc::methods("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS).unwrap();
    assert_eq!(methods.len(), ROLES.0.len());
    for method in methods {
        assert!(!ROLES.admits(&method).is_empty(), "{method} admits nobody");
    }
}

#[tokio::test]
async fn each_method_admits_its_roles_and_no_other() {
    let mesh = Mesh::new();
    let service = mesh.serve().await;
    for (role, path) in PEERS {
        let mut rpc = mesh.rpc(&service, path);
        let lookup = pb::LookupRequest {
            namespace: "default".into(),
            actor_type: "Cart".into(),
            actor_id: "1".into(),
        };
        // Let in, it finds that nobody runs the type.
        let code = rpc.lookup(lookup).await.unwrap_err().code();
        let admitted = matches!(role, "node" | "admin");
        assert_eq!(
            code,
            if admitted {
                Code::NotFound
            } else {
                Code::PermissionDenied
            },
            "Lookup by {role}"
        );

        let list = rpc
            .list_hosts(pb::ListHostsRequest::default())
            .await
            .map(drop)
            .map_err(|s| s.code());
        let expected = if role == "admin" {
            Ok(())
        } else {
            Err(Code::PermissionDenied)
        };
        assert_eq!(list, expected, "ListHosts by {role}");

        let join = Raw::open(rpc, Up::Hello(hello(&[])))
            .await
            .map(drop)
            .map_err(|s| s.code());
        let expected = if role == "node" {
            Ok(())
        } else {
            Err(Code::PermissionDenied)
        };
        assert_eq!(join, expected, "Join by {role}");
    }
    service.stop().await;
}
