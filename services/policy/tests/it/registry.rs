//! Who is there: nodes speak for themselves only, and followers hear of it.

use crate::rig::{Rig, td};
use tonic::Code;
use weft_proto::weft::policy::v1 as pb;

fn workload(node: &str, name: &str) -> pb::Workload {
    pb::Workload {
        id: format!("{node}/default/{name}/1"),
        node: node.into(),
        namespace: "default".into(),
        name: name.into(),
        kind: pb::WorkloadKind::Pod.into(),
        app_id: name.into(),
        addresses: vec!["10.0.0.1".into()],
        ..Default::default()
    }
}

fn register(workload: pb::Workload) -> pb::RegisterRequest {
    pb::RegisterRequest {
        workload: Some(workload),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_node_speaks_for_its_own_workloads_only() {
    let rig = Rig::new(&[]).await;
    let (mut n1, mut n2) = (rig.registry("/weft/node/n1"), rig.registry("/weft/node/n2"));
    let cart = n1
        .register(register(workload("n1", "cart")))
        .await
        .unwrap()
        .into_inner()
        .workload
        .unwrap();
    assert_eq!(
        cart.spiffe_id,
        td().workload("default", "cart").unwrap().to_string()
    );
    assert_eq!(cart.identity, 256);
    // The same words from another node.
    let refused = n2.register(register(workload("n1", "cart"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("n1/default/cart/1 is of node n1"),
        "{}",
        refused.message()
    );
    let refused = n2
        .deregister(pb::DeregisterRequest { id: cart.id.clone() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // An address that is taken, and its twin that is not.
    let refused = n2.register(register(workload("n2", "web"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let other = pb::Workload {
        addresses: vec!["10.0.0.2".into()],
        ..workload("n2", "web")
    };
    n2.register(register(other)).await.unwrap();
    // Its own node may remove it, twice.
    n1.deregister(pb::DeregisterRequest { id: cart.id.clone() })
        .await
        .unwrap();
    n1.deregister(pb::DeregisterRequest { id: cart.id })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_node_registers_what_its_host_patterns_name() {
    let rig = Rig::new(&[]).await;
    rig.may_host("edge", &[("default", "cart*")]);
    let mut edge = rig.registry("/weft/node/edge");
    edge.register(register(workload("edge", "cart-2"))).await.unwrap();
    // Differs in the name, then in the namespace.
    let elsewhere = pb::Workload {
        id: "edge/bank/cart-2/1".into(),
        namespace: "bank".into(),
        ..workload("edge", "cart-2")
    };
    for (asked, named) in [
        (workload("edge", "pay"), "default/pay"),
        (elsewhere, "bank/cart-2"),
    ] {
        let refused = edge.register(register(asked)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let wanted = format!("node \"edge\" may not host {named}: none of its 1 host patterns matches");
        assert!(refused.message().contains(&wanted), "{}", refused.message());
    }
    // A token that permits it.
    rig.may_host("edge", &[("default", "cart*"), ("default", "pay")]);
    edge.register(register(workload("edge", "pay"))).await.unwrap();
    // A node that never joined hosts nothing.
    let refused = rig
        .registry("/weft/node/stranger")
        .register(register(workload("stranger", "cart")))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn loopback_is_for_nodes_without_root_on_one_machine() {
    let on = |address: &str, rootless| pb::RegisterRequest {
        workload: Some(pb::Workload {
            addresses: vec![address.into()],
            ..workload("n1", "cart")
        }),
        rootless,
    };
    let refused = async |rig: &Rig, request| {
        let refused = rig.registry("/weft/node/n1").register(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        refused.message().to_owned()
    };
    let rig = Rig::new(&[]).await;
    for address in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"] {
        let why = refused(&rig, on(address, true)).await;
        assert!(why.contains("--insecure-loopback"), "{why}");
    }
    rig.registry("/weft/node/n1")
        .register(on("10.0.0.1", true))
        .await
        .unwrap();
    let rig = Rig::configured(|c| c.insecure_loopback = true).await;
    let why = refused(&rig, on("127.0.0.1", false)).await;
    assert!(why.contains("--rootless"), "{why}");
    // No host has them, with root or without.
    for address in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
        let why = refused(&rig, on(address, true)).await;
        assert!(why.contains("no host's"), "{why}");
    }
    rig.registry("/weft/node/n1")
        .register(on("127.0.0.1", true))
        .await
        .unwrap();
}

#[tokio::test]
async fn certificates_of_workloads_and_operators_register_nothing() {
    let rig = Rig::new(&[]).await;
    for path in ["/ns/default/cart", "/weft/admin/ops", "/weft/service/identity"] {
        let mut client = rig.registry(path);
        let refused = client
            .register(register(workload("n1", "cart")))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{path}");
    }
    let refused = rig
        .registry("/ns/default/cart")
        .watch(pb::WatchRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    rig.registry("/weft/node/n1")
        .register(register(workload("n1", "cart")))
        .await
        .unwrap();
}

#[tokio::test]
async fn followers_hear_of_all_workloads_then_of_each_change() {
    let rig = Rig::new(&[]).await;
    let mut n1 = rig.registry("/weft/node/n1");
    n1.register(register(workload("n1", "cart"))).await.unwrap();
    let mut news = rig
        .registry("/weft/service/identity")
        .watch(pb::WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = news.message().await.unwrap().unwrap();
    assert!(first.snapshot);
    assert_eq!(first.upserts.len(), 1);
    n1.register(register(workload("n1", "web"))).await.unwrap();
    let next = news.message().await.unwrap().unwrap();
    assert!(!next.snapshot);
    assert_eq!(next.upserts[0].id, "n1/default/web/1");
    n1.deregister(pb::DeregisterRequest {
        id: "n1/default/cart/1".into(),
    })
    .await
    .unwrap();
    assert_eq!(
        news.message().await.unwrap().unwrap().removed_ids,
        ["n1/default/cart/1"]
    );
    // An empty registry is said, too.
    let rig = Rig::new(&[]).await;
    let mut news = rig
        .registry("/weft/node/n2")
        .watch(pb::WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(news.message().await.unwrap().unwrap().snapshot);
}

#[tokio::test]
async fn numbers_outlive_a_restart() {
    let rig = Rig::new(&[]).await;
    let mut n1 = rig.registry("/weft/node/n1");
    let mut numbers = Vec::new();
    for name in ["a", "b"] {
        let workload = n1
            .register(register(workload("n1", name)))
            .await
            .unwrap()
            .into_inner()
            .workload
            .unwrap();
        numbers.push(workload.identity);
    }
    drop(n1);
    let rig = rig.restart().await;
    let mut n1 = rig.registry("/weft/node/n1");
    let mut news = n1.watch(pb::WatchRequest {}).await.unwrap().into_inner();
    let first = news.message().await.unwrap().unwrap();
    assert_eq!(
        first.upserts.iter().map(|w| w.identity).collect::<Vec<_>>(),
        numbers
    );
    let c = n1
        .register(register(workload("n1", "c")))
        .await
        .unwrap()
        .into_inner()
        .workload
        .unwrap();
    assert!(!numbers.contains(&c.identity));
}

#[tokio::test]
async fn a_number_that_nobody_has_is_taken_back_after_the_grace_period() {
    let rig = Rig::configured(|c| c.identity_grace_seconds = 0).await;
    let mut node = rig.node("n1").await;
    let old = node
        .register(node.workload("default", "cart", &[("v", "1")]))
        .await;
    node.until("endpoint", &old.id).await;
    let new = node
        .register(node.workload("default", "cart", &[("v", "2")]))
        .await;
    assert_ne!(new.identity, old.identity);
    while node.names("identity") != [new.identity.to_string()] {
        node.apply().await;
    }
}

#[tokio::test]
async fn workloads_of_a_node_that_stays_away_are_removed() {
    let rig = Rig::configured(|c| c.node_timeout_seconds = 1).await;
    let lost = rig.node("n1").await;
    let mut stays = rig.node("n2").await;
    let mut registry = lost.registry.clone();
    registry
        .register(register(lost.workload("default", "cart", &[])))
        .await
        .unwrap();
    stays.register(stays.workload("default", "web", &[])).await;
    stays.until("endpoint", "n1/default/cart/1").await;
    drop(lost);
    while stays.names("endpoint") != ["n2/default/web/1"] {
        stays.apply().await;
    }
}
