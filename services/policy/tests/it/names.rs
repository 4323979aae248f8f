//! What policies name beside labels: ports, namespaces' labels, groups of addresses, Services. What it is
//! may change after the policy was read.

use crate::rig::{Node, Rig};
use weft_model::NumericIdentity;
use weft_policy_engine::{Direction, PeerRef, PolicySet};
use weft_proto::weft::policy::v1::{self as pb, resource::Body};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{endpointSelector: {{matchLabels: {{app: cart}}}}, {spec}}}\n"
    )
}

/// The set that a workload is under now.
fn set(node: &Node, id: &str) -> Option<PolicySet> {
    let Body::Endpoint(endpoint) = node.state.get(&("endpoint".into(), id.into()))?.body.as_ref()? else {
        return None;
    };
    let key = ("policy-set".to_owned(), endpoint.policy_set.clone());
    let Body::PolicySet(set) = node.state.get(&key)?.body.as_ref()? else {
        return None;
    };
    PolicySet::try_from(set).ok()
}

/// Applies updates until the workload's set answers so.
async fn until(node: &mut Node, id: &str, wanted: impl Fn(&PolicySet) -> bool) {
    while !set(node, id).is_some_and(|set| wanted(&set)) {
        node.apply().await;
    }
}

fn allows(set: &PolicySet, direction: Direction, peer: u32, address: Option<&str>, port: u16) -> bool {
    let peer = PeerRef {
        identity: NumericIdentity(peer),
        address: address.map(|a| a.parse().unwrap()),
    };
    set.judge(direction, peer, 6, port).is_allowed()
}

fn named(mut workload: pb::Workload, name: &str, port: u32) -> pb::Workload {
    workload.named_ports = vec![pb::NamedPort {
        name: name.into(),
        port,
        protocol: 6,
    }];
    workload
}

#[tokio::test]
async fn a_port_by_name_is_the_one_of_who_is_called() {
    let text = policy("ingress: [{toPorts: [{ports: [{port: web}]}]}]");
    let rig = Rig::new(&[("p.yaml", &text)]).await;
    let mut node = rig.node("n1").await;
    // Alike but for their ports: one identity, two sets.
    let first = node
        .register(named(
            node.workload("shop", "cart", &[("app", "cart")]),
            "web",
            8080,
        ))
        .await;
    let mut second = named(node.workload("shop", "cart2", &[("app", "cart")]), "web", 9090);
    second.app_id = "cart".into();
    let second = node.register(second).await;
    assert_eq!(first.identity, second.identity);
    let anyone = |port| move |set: &PolicySet| allows(set, Direction::Ingress, 2, None, port);
    until(&mut node, &first.id, anyone(8080)).await;
    until(&mut node, &second.id, anyone(9090)).await;
    assert!(!anyone(9090)(&set(&node, &first.id).unwrap()));
    assert!(!anyone(8080)(&set(&node, &second.id).unwrap()));
    // The name is another port's now.
    let mut moved = first.clone();
    moved.named_ports[0].port = 8081;
    node.register(moved).await;
    until(&mut node, &first.id, anyone(8081)).await;
    assert!(!anyone(8080)(&set(&node, &first.id).unwrap()));
}

#[tokio::test]
async fn a_peers_port_by_name_is_each_peers_own() {
    let text =
        policy("egress: [{toEndpoints: [{matchLabels: {tier: back}}], toPorts: [{ports: [{port: web}]}]}]");
    let rig = Rig::new(&[("p.yaml", &text)]).await;
    let mut node = rig.node("n1").await;
    let cart = node
        .register(node.workload("shop", "cart", &[("app", "cart")]))
        .await;
    node.until("endpoint", &cart.id).await;
    let one = node
        .register(named(
            node.workload("shop", "one", &[("tier", "back")]),
            "web",
            8080,
        ))
        .await;
    let mut two = node.workload("shop", "two", &[("tier", "back")]);
    two.annotations
        .insert("weft.dev/named-ports".into(), "web=9090, other=1/UDP".into());
    let two = node.register(two).await;
    let to = |set: &PolicySet, peer, port| allows(set, Direction::Egress, peer, None, port);
    until(&mut node, &cart.id, |set| {
        to(set, one.identity, 8080) && to(set, two.identity, 9090)
    })
    .await;
    let now = set(&node, &cart.id).unwrap();
    assert!(!to(&now, one.identity, 9090) && !to(&now, two.identity, 8080));
}

#[tokio::test]
async fn labels_of_namespaces_count_as_long_as_an_object_says_them() {
    let namespace = |team: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: other, labels: {{team: {team}}}}}\n")
    };
    let text =
        policy("ingress: [{fromEndpoints: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': x}}]}]");
    let rig = Rig::new(&[("p.yaml", &text)]).await;
    let mut node = rig.node("n1").await;
    let cart = node
        .register(node.workload("shop", "cart", &[("app", "cart")]))
        .await;
    // What a workload says of its namespace itself is not believed.
    let forged = [("io.cilium.k8s.namespace.labels.team", "x")];
    let peer = node.register(node.workload("other", "peer", &forged)).await;
    let from = |set: &PolicySet| allows(set, Direction::Ingress, peer.identity, None, 80);
    node.until("endpoint", &cart.id).await;
    assert!(!from(&set(&node, &cart.id).unwrap()));
    rig.put("ns.yaml", &namespace("x"));
    until(&mut node, &cart.id, from).await;
    rig.put("ns.yaml", &namespace("z"));
    until(&mut node, &cart.id, |set| !from(set)).await;
}

#[tokio::test]
async fn groups_of_addresses_are_those_of_now() {
    let group = |cidr: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {{name: g}}\nspec: {{externalCIDRs: ['{cidr}']}}\n"
        )
    };
    let text = policy("ingress: [{fromCIDRSet: [{cidrGroupRef: g}]}]");
    let rig = Rig::new(&[("p.yaml", &text)]).await;
    let mut node = rig.node("n1").await;
    let cart = node
        .register(node.workload("shop", "cart", &[("app", "cart")]))
        .await;
    let from = |address| move |set: &PolicySet| allows(set, Direction::Ingress, 2, Some(address), 80);
    node.until("endpoint", &cart.id).await;
    // A group that is not there yet means nobody.
    assert!(!from("192.0.2.1")(&set(&node, &cart.id).unwrap()));
    rig.put("g.yaml", &group("192.0.2.0/24"));
    until(&mut node, &cart.id, from("192.0.2.1")).await;
    rig.put("g.yaml", &group("198.51.100.0/24"));
    until(&mut node, &cart.id, from("198.51.100.1")).await;
    assert!(!from("192.0.2.1")(&set(&node, &cart.id).unwrap()));
}

#[tokio::test]
async fn a_service_means_who_is_behind_it() {
    let service = |app: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: other}}\nspec: {{selector: {{app: {app}}}, ports: [{{port: 80}}]}}\n"
        )
    };
    let text = policy("egress: [{toServices: [{k8sService: {serviceName: s, namespace: other}}]}]");
    let rig = Rig::new(&[("p.yaml", &text)]).await;
    let mut node = rig.node("n1").await;
    let cart = node
        .register(node.workload("shop", "cart", &[("app", "cart")]))
        .await;
    let one = node
        .register(node.workload("other", "one", &[("app", "one")]))
        .await;
    let two = node
        .register(node.workload("other", "two", &[("app", "two")]))
        .await;
    let to = |peer: u32| move |set: &PolicySet| allows(set, Direction::Egress, peer, None, 80);
    rig.put("s.yaml", &service("one"));
    until(&mut node, &cart.id, to(one.identity)).await;
    assert!(!to(two.identity)(&set(&node, &cart.id).unwrap()));
    rig.put("s.yaml", &service("two"));
    until(&mut node, &cart.id, to(two.identity)).await;
    assert!(!to(one.identity)(&set(&node, &cart.id).unwrap()));
}
