//! Nodes are known to all nodes, and Services have addresses: also after a restart.

use crate::rig::{Rig, keys, service};
use std::net::IpAddr;
use weft_proto::weft::policy::v1::{self as pb, resource::Body};

fn hello(address: &str, pod_cidr: &str) -> pb::Hello {
    pb::Hello {
        addresses: vec![address.into()],
        pod_cidrs: vec![pod_cidr.into()],
        ..Default::default()
    }
}

fn node(resource: &pb::Resource) -> &pb::Node {
    match &resource.body {
        Some(Body::Node(node)) => node,
        _ => panic!("{resource:?}"),
    }
}

#[tokio::test]
async fn every_node_knows_every_other_one_before_it_is_back() {
    let rig = Rig::new(&[]).await;
    let mut n1 = rig.node_with("n1", hello("192.0.2.1", "10.1.0.0/24")).await;
    n1.apply().await;
    let mut n2 = rig.node_with("n2", hello("192.0.2.2", "10.2.0.0/24")).await;
    n2.apply().await;
    assert_eq!(n2.names("node"), ["n1", "n2"]);
    let delta = n1.apply().await;
    assert!(!delta.snapshot);
    assert_eq!(keys(&delta), [("node".to_owned(), "n2".to_owned())]);
    let seen = &n1.state[&("node".to_owned(), "n2".to_owned())];
    assert_eq!(node(seen).addresses, ["192.0.2.2"]);
    assert_eq!(node(seen).pod_cidrs, ["10.2.0.0/24"]);

    let rig = rig.restart().await;
    let mut n1 = rig.node_with("n1", hello("192.0.2.1", "10.1.0.0/24")).await;
    n1.apply().await;
    assert_eq!(n1.names("node"), ["n1", "n2"], "n2 has not come back yet");
}

fn addresses(resource: &pb::Resource) -> Vec<IpAddr> {
    let Some(Body::Service(service)) = &resource.body else {
        panic!("{resource:?}")
    };
    service.cluster_ips.iter().map(|a| a.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_service_keeps_the_addresses_it_was_given() {
    let fixed = "apiVersion: v1\nkind: Service\nmetadata: {name: fixed, namespace: shop}\nspec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}\n";
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 80}]}\n";
    let rig = Rig::new(&[
        ("cart.yaml", &service("shop", "cart")),
        ("fixed.yaml", fixed),
        ("headless.yaml", headless),
    ])
    .await;
    let mut node = rig.node("n1").await;
    node.register(node.workload("shop", "web", &[])).await;
    let given = addresses(&node.until("service", "shop/cart").await);
    let range: ipnet::IpNet = "10.96.0.0/12".parse().unwrap();
    assert_eq!(given.len(), 2, "{given:?}");
    assert!(range.contains(&given[0]) && given[1].is_ipv6(), "{given:?}");
    let named = addresses(&node.until("service", "shop/fixed").await);
    assert_eq!(named, ["10.96.7.7".parse::<IpAddr>().unwrap()]);
    assert!(addresses(&node.until("service", "shop/headless").await).is_empty());

    let rig = rig.restart().await;
    let mut node = rig.node("n1").await;
    assert_eq!(addresses(&node.until("service", "shop/cart").await), given);
}
