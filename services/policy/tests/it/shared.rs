//! Shared endpoints over the real protocol: from a Service's annotations to what nodes and the registry hold.

use crate::rig::{Node, Rig};
use weft_proto::weft::policy::v1::{self as pb, resource::Body};

fn service(app: &str, strategy: &str, remote: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {app}-dapr
  labels: {{app.kubernetes.io/instance: blue}}
  annotations:
    weft.dev/shared-app: {app}
    weft.dev/strategy: {strategy}
    weft.dev/remote: {remote}
spec:
  ports: [{{name: http, port: 3500}}]
"
    )
}

async fn node(rig: &Rig, name: &str, address: &str) -> Node {
    let hello = pb::Hello {
        addresses: vec![address.into()],
        ..Default::default()
    };
    rig.node_with(name, hello).await
}

fn workload(resource: &pb::Resource) -> &pb::Workload {
    match &resource.body {
        Some(Body::Endpoint(endpoint)) => endpoint.workload.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn endpoints_of(node: &mut Node, service: &str) -> Vec<String> {
    match node.until("service", service).await.body {
        Some(Body::Service(service)) => service.endpoints,
        other => panic!("{other:?}"),
    }
}

const HERE: &str = "n1/default/ingress-shared-n1/shared";
const THERE: &str = "n2/default/ingress-shared-n2/shared";

#[tokio::test]
async fn every_node_learns_of_those_of_all_nodes_and_who_is_behind_the_service() {
    let rig = Rig::new(&[("ingress.yaml", &service("ingress", "daemonset", "http://web"))]).await;
    let mut one = node(&rig, "n1", "192.0.2.1").await;
    let mut two = node(&rig, "n2", "192.0.2.2").await;
    for node in [&mut one, &mut two] {
        for id in [HERE, THERE] {
            let resource = node.until("endpoint", id).await;
            let found = workload(&resource);
            assert_eq!(
                (found.app_id.as_str(), found.kind()),
                ("ingress", pb::WorkloadKind::Pod)
            );
            assert_eq!(found.labels["app.kubernetes.io/instance"], "blue");
            assert!(found.identity != 0 && found.spiffe_id.ends_with("/ns/default/ingress"));
            assert!(found.addresses[0].starts_with("198.18."), "{found:?}");
        }
        while endpoints_of(node, "default/ingress-dapr").await.len() < 2 {
            node.apply().await;
        }
        let resource = node.until("node", "n1").await;
        let Some(Body::Node(told)) = resource.body else {
            panic!("no node")
        };
        assert_eq!(told.shared_cidrs, ["198.18.0.0/16", "fd00:10:97::/112"]);
    }
    // Who is whose is the registry's to tell, also to the identity service.
    let mut watch = rig
        .registry("/weft/service/identity")
        .watch(pb::WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    let all = watch.message().await.unwrap().unwrap().upserts;
    let nodes: Vec<(&str, &str)> = all.iter().map(|w| (w.id.as_str(), w.node.as_str())).collect();
    assert_eq!(nodes, [(HERE, "n1"), (THERE, "n2")]);
    assert!(all[0].shared.is_some());

    // A node neither takes one over nor takes it away.
    let taken = pb::RegisterRequest {
        workload: Some(pb::Workload {
            addresses: vec!["10.0.0.1".into()],
            ..all[0].clone()
        }),
        ..Default::default()
    };
    let refused = one.registry.register(taken).await.unwrap_err();
    assert!(refused.message().contains("shared endpoint"), "{refused}");
    let removal = |id: &str| pb::DeregisterRequest { id: id.into() };
    one.registry.deregister(removal(HERE)).await.unwrap();
    let other = one.registry.deregister(removal(THERE)).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::PermissionDenied);
    let one_more = one.workload("default", "app", &[]);
    one.register(one_more).await;
    let news = watch.message().await.unwrap().unwrap();
    assert_eq!(news.removed_ids, Vec::<String>::new());

    // Gone with the Service, and what stands in its place is a Service like others.
    rig.put(
        "ingress.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: ingress-dapr}\nspec: {ports: [{port: 80}]}\n",
    );
    let mut gone = watch.message().await.unwrap().unwrap().removed_ids;
    while gone.len() < 2 {
        gone.extend(watch.message().await.unwrap().unwrap().removed_ids);
    }
    assert_eq!(gone, [HERE, THERE]);
}

#[tokio::test]
async fn a_restart_keeps_them_and_a_mistake_keeps_what_was_good() {
    let rig = Rig::new(&[("whoami.yaml", &service("whoami", "deployment", "http://whoami"))]).await;
    let mut one = node(&rig, "n2", "192.0.2.2").await;
    let id = "n2/default/whoami-shared-n2/shared";
    let before = workload(&one.until("endpoint", id).await).clone();
    drop(one);
    let rig = rig.restart().await;
    let mut other = node(&rig, "n1", "192.0.2.1").await;
    let mut one = node(&rig, "n2", "192.0.2.2").await;
    assert_eq!(*workload(&one.until("endpoint", id).await), before);
    rig.put("whoami.yaml", &service("whoami", "statefulset", "http://whoami"));
    let list = rig
        .list_until(|l| l.resources.iter().any(|r| !r.errors.is_empty()))
        .await;
    let errors: Vec<&String> = list.resources.iter().flat_map(|r| &r.errors).collect();
    assert!(
        errors[0]
            .contains("whoami.yaml:8: metadata.annotations.weft.dev/strategy: \"statefulset\" is none of"),
        "{errors:?}"
    );
    // On one node for the cluster, still.
    let app = other.workload("default", "app", &[]);
    other.register(app).await;
    other.until("endpoint", id).await;
    let shared: Vec<&str> = other
        .names("endpoint")
        .into_iter()
        .filter(|n| n.contains("shared"))
        .collect();
    assert_eq!(shared, [id]);
}

#[tokio::test]
async fn it_moves_from_a_node_that_is_away_to_one_that_may_host_it() {
    let rig = Rig::configured(|config| config.shared_move_seconds = 1).await;
    rig.may_host("n3", &[("other", "*")]);
    rig.put("whoami.yaml", &service("whoami", "deployment", "http://whoami"));
    let mut gone = node(&rig, "n1", "192.0.2.1").await;
    gone.until("endpoint", "n1/default/whoami-shared-n1/shared").await;
    let mut never = node(&rig, "n3", "192.0.2.3").await;
    let mut next = node(&rig, "n2", "192.0.2.2").await;
    drop(gone);
    let moved = next.until("endpoint", "n2/default/whoami-shared-n2/shared").await;
    assert_eq!(
        workload(&moved).shared.as_ref().unwrap().node_addresses,
        ["192.0.2.2"]
    );
    let app = never.workload("other", "app", &[]);
    never.register(app).await;
    never.until("endpoint", "n3/other/app/1").await;
    assert!(
        never
            .names("endpoint")
            .iter()
            .all(|n| !n.contains("whoami-shared-n3"))
    );
}
