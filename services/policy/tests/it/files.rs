//! A bad file never stops good ones, and says what is wrong with it.

use crate::rig::{Rig, service};
use weft_proto::weft::policy::v1::{self as pb, resources_client::ResourcesClient};

const BAD: &str = "apiVersion: v1
kind: Service
metadata: {name: bad}
spec:
  ports:
    - port: 80
      targetport: 8080
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad}
spec:
  endpointSelector: {}
  ingress:
    - fromEntities: [clutser]
";

fn accepted(list: &pb::ListResponse) -> Vec<String> {
    list.resources
        .iter()
        .filter(|r| r.accepted)
        .map(|r| format!("{} {}/{}", r.kind, r.namespace, r.name))
        .collect()
}

fn errors(list: &pb::ListResponse) -> Vec<String> {
    list.resources.iter().flat_map(|r| r.errors.clone()).collect()
}

#[tokio::test]
async fn a_bad_file_beside_good_ones() {
    let rig = Rig::new(&[
        ("a.yaml", &service("default", "a")),
        ("bad.yaml", BAD),
        ("z.json", "{}"),
    ])
    .await;
    rig.put(
        "z.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "z"}, "spec": {}}"#,
    );
    let list = rig.list_until(|l| accepted(l).len() == 2).await;
    assert_eq!(accepted(&list), ["Service default/a", "Service default/z"]);
    let folder = rig.dir.path().join("resources").display().to_string();
    assert_eq!(
        errors(&list),
        [
            format!("{folder}/bad.yaml:7: spec.ports[0].targetport: unknown field"),
            format!(
                "{folder}/bad.yaml:15: spec.ingress[0].fromEntities[0]: unknown entity \"clutser\"; one of all, world, world-ipv4, world-ipv6, cluster, host, remote-node, init, ingress, unmanaged, health, kube-apiserver, none"
            ),
        ]
    );
    let file = list.resources.iter().find(|r| !r.accepted).unwrap();
    assert_eq!(
        (file.kind.as_str(), file.origin.clone()),
        ("File", format!("{folder}/bad.yaml:7"))
    );
    // Its node can show it.
    let mut resources = ResourcesClient::new(rig.channel("/weft/node/n1"));
    let rejected = resources
        .rejected(pb::RejectedRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((rejected.total, rejected.files.len()), (1, 1));
    assert!(!rejected.files[0].earlier_in_force && rejected.files[0].errors == errors(&list));
    // Mended, it takes part.
    rig.put("bad.yaml", &service("default", "bad"));
    let list = rig.list_until(|l| accepted(l).len() == 3).await;
    assert!(errors(&list).is_empty());
}

#[tokio::test]
async fn the_last_good_state_of_a_file_stays_also_over_a_restart() {
    let rig = Rig::new(&[("a.yaml", &service("shop", "a"))]).await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "cart", &[])).await;
    node.until("service", "shop/a").await;
    rig.put("a.yaml", "kind: [\n");
    let list = rig.list_until(|l| !errors(l).is_empty()).await;
    assert_eq!(accepted(&list), ["Service shop/a"]);
    let rig = rig.restart().await;
    let list = rig.list().await;
    assert_eq!(
        (accepted(&list), errors(&list).len()),
        (vec!["Service shop/a".to_owned()], 1)
    );
    let mut node = rig.node("n1").await;
    node.until("service", "shop/a").await;
    // Removing a file is a wish, not a mistake: its objects go.
    let rig = rig
        .restart_after(|folder| std::fs::remove_file(folder.join("a.yaml")).unwrap())
        .await;
    assert!(rig.list().await.resources.is_empty());
}

#[tokio::test]
async fn a_removed_file_takes_its_objects_along() {
    let rig = Rig::new(&[
        ("a.yaml", &service("shop", "a")),
        ("b.yaml", &service("shop", "b")),
    ])
    .await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "cart", &[])).await;
    node.until("service", "shop/a").await;
    std::fs::remove_file(rig.dir.path().join("resources/a.yaml")).unwrap();
    while node.names("service") != ["shop/b"] {
        node.apply().await;
    }
}
