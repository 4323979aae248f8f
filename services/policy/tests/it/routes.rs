//! Gateways and routes over the real protocol: read from files, attached, sent, confirmed, listed.

use crate::rig::{Node, Rig, keys, service};
use serde_json::Value;
use weft_proto::weft::policy::v1::{self as pb, resource::Body, resources_client::ResourcesClient};

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: default-gateway}
spec:
  gatewayClassName: cilium
  listeners: [{name: web-gw, port: 80, protocol: HTTP}]
";

fn route(weight: u32) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: whoami}}
spec:
  parentRefs: [{{name: default-gateway}}]
  rules: [{{backendRefs: [{{name: whoami, port: 80, weight: {weight}}}]}}]
"
    )
}

async fn objects(rig: &Rig, kind: &str) -> Vec<Value> {
    let mut client = ResourcesClient::new(rig.channel("/weft/admin/ops"));
    let request = pb::ListRequest {
        kind: kind.into(),
        objects: true,
        ..Default::default()
    };
    let list = client.list(request).await.unwrap().into_inner();
    assert_eq!(list.next, "");
    let all = list.resources.iter().filter(|r| r.kind == kind);
    all.map(|r| serde_json::from_slice(&r.object_json).unwrap())
        .collect()
}

fn condition(of: &Value, kind: &str) -> (String, String) {
    let all = of["conditions"].as_array().unwrap();
    let one = all.iter().find(|c| c["type"] == kind).unwrap();
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    (text("status"), text("reason"))
}

async fn programmed(rig: &Rig) -> (String, String) {
    condition(&objects(rig, "Gateway").await[0]["status"], "Programmed")
}

/// Until the service took what the node confirmed last.
async fn settled(rig: &Rig, node: &Node) {
    rig.list_until(|list| {
        let status = list.nodes.iter().find(|n| n.node == node.name);
        status.is_some_and(|s| s.sent_version == s.acked_version)
    })
    .await;
}

#[tokio::test]
async fn a_gateway_with_its_route_from_file_to_node_and_back_as_status() {
    let rig = Rig::new(&[
        ("gateway.yaml", GATEWAY),
        ("route.yaml", &route(1)),
        ("service.yaml", &service("default", "whoami")),
    ])
    .await;
    assert_eq!(programmed(&rig).await, ("False".into(), "Pending".into()));
    let mut node = rig.node("n1").await;
    let snapshot = node.update().await;
    assert_eq!(
        programmed(&rig).await,
        ("False".into(), "Pending".into()),
        "sent, and not confirmed"
    );
    let kinds: Vec<String> = keys(&snapshot).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["service", "service", "gateway", "route"]);
    let Some(Body::Gateway(gateway)) = &snapshot.upserts[2].body else {
        panic!("{snapshot:?}")
    };
    assert_eq!(
        (gateway.service.as_str(), gateway.spiffe_id.as_str()),
        (
            "cilium-gateway-default-gateway",
            "spiffe://cluster.local/ns/default/cilium-gateway-default-gateway"
        )
    );
    let Some(Body::Service(made)) = &snapshot.upserts[0].body else {
        panic!("{snapshot:?}")
    };
    assert_eq!(
        (made.name.as_str(), made.ports[0].port),
        ("cilium-gateway-default-gateway", 80)
    );
    assert!(!made.cluster_ips.is_empty() && made.endpoints.is_empty());
    let ack = pb::Ack {
        version: snapshot.version,
    };
    node.say(pb::subscribe_request::Message::Ack(ack)).await;
    settled(&rig, &node).await;
    assert_eq!(programmed(&rig).await, ("True".into(), "Programmed".into()));

    let routes = objects(&rig, "HTTPRoute").await;
    let parent = &routes[0]["status"]["parents"][0];
    assert_eq!(condition(parent, "Accepted").0, "True");
    assert_eq!(parent["controllerName"], "io.cilium/gateway-controller");
    let created = routes[0]["metadata"]["creationTimestamp"].clone();
    assert_eq!(routes[0]["metadata"]["generation"], 1);
    let services = objects(&rig, "Service").await;
    let names: Vec<&Value> = services.iter().map(|s| &s["metadata"]["name"]).collect();
    assert_eq!(names, ["cilium-gateway-default-gateway", "whoami"]);
    assert_eq!(services[0]["spec"]["clusterIP"], made.cluster_ips[0].as_str());

    // Another weight is one resource.
    rig.put("route.yaml", &route(2));
    let delta = node.apply().await;
    assert_eq!(
        keys(&delta),
        [("route".to_owned(), "HTTPRoute/default/whoami".to_owned())]
    );
    let Some(Body::Route(before)) = delta.upserts[0].body.clone() else {
        panic!("{delta:?}")
    };

    // A restart changes neither the address nor the time that decides between routes.
    let rig = rig.restart().await;
    let mut node = rig.node("n1").await;
    let resource = node.until("route", "HTTPRoute/default/whoami").await;
    assert_eq!(resource.body, Some(Body::Route(before)));
    let resource = node
        .until("service", "default/cilium-gateway-default-gateway")
        .await;
    assert_eq!(resource.body, Some(Body::Service(made.clone())));
    let routes = objects(&rig, "HTTPRoute").await;
    assert_eq!(routes[0]["metadata"]["creationTimestamp"], created);
    assert_eq!(routes[0]["metadata"]["generation"], 2);

    // Without its Service the route stays, and says so.
    std::fs::remove_file(rig.dir.path().join("resources/service.yaml")).unwrap();
    let delta = node.apply().await;
    let removed = ("service".to_owned(), "default/whoami".to_owned());
    assert_eq!(keys(&delta)[1..], [removed]);
    let routes = objects(&rig, "HTTPRoute").await;
    let parent = &routes[0]["status"]["parents"][0];
    assert_eq!(
        condition(parent, "ResolvedRefs"),
        ("False".into(), "BackendNotFound".into())
    );
}

#[tokio::test]
async fn many_objects_come_page_by_page_each_once() {
    let all: String = (0..1001)
        .map(|n| format!("{}---\n", service("default", &format!("s{n}"))))
        .collect();
    let (one, two) =
        all.split_at(all.find("kind: Service\nmetadata: {name: s600,").unwrap() - "apiVersion: v1\n".len());
    let rig = Rig::new(&[("one.yaml", one), ("two.yaml", two), ("bad.yaml", "kind: x\n")]).await;
    let mut client = ResourcesClient::new(rig.channel("/weft/admin/ops"));
    let (mut names, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let request = pb::ListRequest {
            objects: true,
            after: after.clone(),
            ..Default::default()
        };
        let list = client.list(request).await.unwrap().into_inner();
        pages += 1;
        let files = list.resources.iter().filter(|r| r.kind == "File").count();
        assert_eq!(files, usize::from(list.next.is_empty()), "bad files come last");
        let here = list.resources.into_iter().filter(|r| r.kind == "Service");
        names.extend(here.map(|r| r.name));
        if list.next.is_empty() {
            break;
        }
        after = list.next;
    }
    assert!(pages > 1);
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), count), (1001, 1001));
}

#[tokio::test]
async fn an_operator_on_the_machine_asks_over_the_local_socket() {
    let rig = Rig::new(&[("gateway.yaml", GATEWAY)]).await;
    let socket = rig.dir.path().join("run/policy.sock");
    let channel = weft_rpc::channel_local(socket).unwrap();
    let list = ResourcesClient::new(channel.clone())
        .list(pb::ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.resources.len(), 1);
    // It is for this question only.
    let refused = pb::registry_client::RegistryClient::new(channel)
        .watch(pb::WatchRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}
