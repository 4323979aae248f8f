//! Each node gets what concerns it, once, in order, and knows where it was.

use crate::rig::{Rig, keys, service};
use weft_policy_engine::{Direction, PeerRef, PolicySet};
use weft_proto::weft::policy::v1::{self as pb, resource::Body, subscribe_request::Message};

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: cart}}
  ingress:
    - fromEndpoints: [{matchLabels: {role: front}}]
      toPorts: [{ports: [{port: '50002', protocol: TCP}]}]
";

fn policy_set(resource: &pb::Resource) -> PolicySet {
    let Some(Body::PolicySet(set)) = &resource.body else {
        panic!("{resource:?}")
    };
    PolicySet::try_from(set).unwrap()
}

fn endpoint(resource: &pb::Resource) -> pb::Endpoint {
    let Some(Body::Endpoint(endpoint)) = &resource.body else {
        panic!("{resource:?}")
    };
    endpoint.clone()
}

#[tokio::test]
async fn one_label_change_is_one_delta_to_the_nodes_concerned_and_none_to_others() {
    let rig = Rig::new(&[("policy.yaml", POLICY)]).await;
    let (mut n1, mut n2, mut n3) = (rig.node("n1").await, rig.node("n2").await, rig.node("n3").await);
    for node in [&mut n1, &mut n2, &mut n3] {
        assert!(node.apply().await.snapshot);
    }
    let cart = n1.register(n1.workload("shop", "cart", &[("app", "cart")])).await;
    n1.until("endpoint", &cart.id).await;
    let front = n2
        .register(n2.workload("shop", "front", &[("role", "none")]))
        .await;
    n2.until("endpoint", &front.id).await;
    n2.until("endpoint", &cart.id).await;
    n1.until("endpoint", &front.id).await;
    let far = n3.register(n3.workload("elsewhere", "far", &[])).await;
    n3.until("endpoint", &far.id).await;
    let (before1, before2, before3) = (
        version(&rig, "n1").await,
        version(&rig, "n2").await,
        version(&rig, "n3").await,
    );

    // One label of the caller: it may call the cart now.
    let front = n2
        .register(n2.workload("shop", "front", &[("role", "front")]))
        .await;

    let delta = n1.apply().await;
    assert!(!delta.snapshot);
    let kinds: Vec<String> = keys(&delta).into_iter().map(|(kind, _)| kind).collect();
    // The new identity, the set that names it, the endpoints, and last what nobody needs any more.
    assert_eq!(
        kinds,
        ["identity", "policy-set", "endpoint", "endpoint", "policy-set"],
        "{delta:#?}"
    );
    let set = endpoint(&n1.state[&("endpoint".into(), cart.id.clone())]).policy_set;
    let set = policy_set(&n1.state[&("policy-set".into(), set)]);
    let from_front = PeerRef {
        identity: weft_model::NumericIdentity(front.identity),
        address: None,
    };
    assert!(set.judge(Direction::Ingress, from_front, 6, 50_002).is_allowed());
    assert!(!set.judge(Direction::Ingress, from_front, 6, 50_003).is_allowed());
    let delta2 = n2.apply().await;
    assert_eq!(delta2.version, before2 + 1);

    // Something that concerns all three: it is the next thing that each of them hears.
    rig.put(
        "all.yaml",
        &format!("{}---\n{}", service("shop", "all"), service("elsewhere", "all")),
    );
    for (node, namespace, expected) in [
        (&mut n1, "shop", before1 + 2),
        (&mut n2, "shop", before2 + 2),
        (&mut n3, "elsewhere", before3 + 1),
    ] {
        let next = node.apply().await;
        assert_eq!(keys(&next), [("service".to_owned(), format!("{namespace}/all"))]);
        assert_eq!(next.version, expected, "{} got more than one delta", node.name);
    }
}

async fn version(rig: &Rig, node: &str) -> u64 {
    let acked = |list: &pb::ListResponse| {
        let status = list.nodes.iter().find(|n| n.node == node).cloned();
        status
            .filter(|s| s.sent_version == s.acked_version)
            .map(|s| s.acked_version)
    };
    let list = rig.list_until(|list| acked(list).is_some()).await;
    acked(&list).unwrap()
}

#[tokio::test]
async fn identities_and_sets_come_before_the_endpoints_that_need_them() {
    let rig = Rig::new(&[("policy.yaml", POLICY)]).await;
    let mut n1 = rig.node("n1").await;
    n1.apply().await;
    let cart = n1.register(n1.workload("shop", "cart", &[("app", "cart")])).await;
    let delta = n1.apply().await;
    let kinds: Vec<String> = keys(&delta).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["identity", "policy-set", "endpoint"]);
    let set = policy_set(&delta.upserts[1]);
    assert_eq!(endpoint(&delta.upserts[2]).policy_set, set.id());
    assert!(set.ingress().default_deny && !set.egress().default_deny);
    // Peers need no policy of it, and not its annotations.
    let mut n2 = rig.node("n2").await;
    n2.register(n2.workload("shop", "web", &[])).await;
    let seen = endpoint(&n2.until("endpoint", &cart.id).await);
    assert_eq!(seen.policy_set, "");
    assert!(n2.names("policy-set").iter().all(|id| *id != set.id()));
}

#[tokio::test]
async fn acks_and_nacks_are_visible() {
    let rig = Rig::new(&[]).await;
    let mut node = rig
        .node_with(
            "n1",
            pb::Hello {
                software: "weft-agent 0.1.0".into(),
                ..Default::default()
            },
        )
        .await;
    node.apply().await;
    let list = rig
        .list_until(|l| l.nodes.iter().any(|n| n.acked_version == 1))
        .await;
    assert_eq!(list.nodes[0].software, "weft-agent 0.1.0");
    assert!(list.nodes[0].connected_at.is_some());
    node.register(node.workload("shop", "cart", &[])).await;
    let update = node.update().await;
    let reasons = vec!["policy map is full".to_owned()];
    node.say(Message::Nack(pb::Nack {
        version: update.version,
        reasons: reasons.clone(),
    }))
    .await;
    let list = rig
        .list_until(|l| l.nodes.iter().any(|n| n.nack_reasons == reasons))
        .await;
    assert_eq!((list.nodes[0].sent_version, list.nodes[0].acked_version), (2, 1));
    // The next change brings what was refused along.
    rig.put("s.yaml", &service("shop", "cart"));
    let update = node.apply().await;
    let kinds: Vec<String> = keys(&update).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["identity", "policy-set", "endpoint", "service"]);
    rig.list_until(|l| {
        l.nodes
            .iter()
            .any(|n| n.acked_version == 3 && n.nack_reasons.is_empty())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_comes_back_gets_what_it_missed() {
    let rig = Rig::new(&[]).await;
    let mut node = rig.node("n1").await;
    node.apply().await;
    node.register(node.workload("shop", "cart", &[])).await;
    let last = node.apply().await;
    version(&rig, "n1").await;
    drop(node);
    rig.list_until(|l| l.nodes.iter().all(|n| n.connected_at.is_none()))
        .await;
    rig.put("s.yaml", &service("shop", "cart"));
    rig.list_until(|l| l.resources.len() == 1).await;
    let hello = pb::Hello {
        held_version: last.version,
        held_epoch: last.epoch.clone(),
        ..Default::default()
    };
    let mut node = rig.node_with("n1", hello).await;
    let update = node.apply().await;
    assert!(!update.snapshot);
    assert_eq!(keys(&update), [("service".to_owned(), "shop/cart".to_owned())]);
    // Its twin that says it holds nothing gets everything.
    let mut node = rig.node("n1").await;
    let update = node.apply().await;
    assert!(update.snapshot && update.upserts.len() == 4);
}

#[tokio::test]
async fn a_restart_changes_the_epoch_and_no_verdict() {
    let rig = Rig::new(&[("policy.yaml", POLICY)]).await;
    let mut node = rig.node("n1").await;
    node.apply().await;
    node.register(node.workload("shop", "front", &[("role", "front")]))
        .await;
    let cart = node
        .register(node.workload("shop", "cart", &[("app", "cart")]))
        .await;
    node.until("endpoint", &cart.id).await;
    let last = version(&rig, "n1").await;
    let before = node.state.clone();
    let rig = rig.restart().await;
    let hello = pb::Hello {
        held_version: last,
        held_epoch: "another".into(),
        ..Default::default()
    };
    let mut node = rig.node_with("n1", hello).await;
    let update = node.apply().await;
    assert!(update.snapshot, "versions of another epoch mean nothing");
    assert_eq!(node.state, before);
}

#[tokio::test]
async fn components_go_where_their_scopes_say() {
    let component = |name: &str, scopes: &str| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{type: state.in-memory, version: v1}}\nscopes: {scopes}\n"
        )
    };
    let subscription = "---\napiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: orders, namespace: shop}\nspec: {pubsubname: bus, topic: t, routes: {default: /t}}\nscopes: [cart]\n";
    let all = component("open", "[]") + "---\n" + &component("narrow", "[cart]") + subscription;
    let rig = Rig::new(&[("c.yaml", &all)]).await;
    let (mut n1, mut n2, mut n3) = (rig.node("n1").await, rig.node("n2").await, rig.node("n3").await);
    n1.register(n1.workload("shop", "cart", &[])).await;
    n2.register(n2.workload("shop", "web", &[])).await;
    n3.register(n3.workload("elsewhere", "cart", &[])).await;
    n1.until("component", "shop/narrow").await;
    n2.until("endpoint", "n1/shop/cart/1").await;
    n3.until("endpoint", "n3/elsewhere/cart/1").await;
    assert_eq!(n1.names("component"), ["shop/narrow", "shop/open"]);
    assert_eq!(n2.names("component"), ["shop/open"]);
    assert!(n3.names("component").is_empty());
    let Some(Body::Component(sent)) = &n1.state[&("component".into(), "shop/narrow".into())].body else {
        panic!()
    };
    assert_eq!(sent.scopes, ["cart"]);
    assert!(String::from_utf8_lossy(&sent.json).contains("state.in-memory"));
    n1.until("subscription", "shop/orders").await;
    assert!(n2.names("subscription").is_empty() && n3.names("subscription").is_empty());
    let Some(Body::Subscription(sent)) = &n1.state[&("subscription".into(), "shop/orders".into())].body
    else {
        panic!()
    };
    assert!(String::from_utf8_lossy(&sent.json).contains("\"default\":\"/t\""));
}

#[tokio::test]
async fn a_node_may_ask_for_a_namespace_it_hosts_nothing_in() {
    let rig = Rig::new(&[("s.yaml", &service("shop", "cart"))]).await;
    let (mut n1, mut n2) = (rig.node("n1").await, rig.node("n2").await);
    n1.register(n1.workload("shop", "cart", &[])).await;
    n2.register(n2.workload("elsewhere", "web", &[])).await;
    n2.until("endpoint", "n2/elsewhere/web/1").await;
    assert_eq!(n2.names("endpoint"), ["n2/elsewhere/web/1"]);
    n2.say(Message::Interest(pb::Interest {
        namespaces: vec!["shop".into()],
    }))
    .await;
    n2.until("endpoint", "n1/shop/cart/1").await;
    assert_eq!(n2.names("service"), ["shop/cart"]);
    // What it does not name any more goes.
    n2.say(Message::Interest(pb::Interest {
        namespaces: vec!["other".into()],
    }))
    .await;
    while n2.names("endpoint") != ["n2/elsewhere/web/1"] {
        n2.apply().await;
    }
}

#[tokio::test]
async fn a_stream_must_begin_with_hello_and_the_newest_one_wins() {
    let rig = Rig::new(&[]).await;
    let channel = rig.channel("/weft/node/n1");
    let mut client = pb::distribution_client::DistributionClient::new(channel);
    let ack = pb::SubscribeRequest {
        message: Some(Message::Ack(pb::Ack { version: 1 })),
    };
    let mut answers = client
        .subscribe(tokio_stream::iter([ack]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answers.message().await.unwrap_err().code(),
        tonic::Code::InvalidArgument
    );

    let mut old = rig.node("n1").await;
    old.apply().await;
    let mut new = rig.node("n1").await;
    assert!(new.apply().await.snapshot);
    assert_eq!(
        old.updates.message().await.unwrap_err().code(),
        tonic::Code::Aborted
    );
    new.register(new.workload("shop", "cart", &[])).await;
    new.until("endpoint", "n1/shop/cart/1").await;
}
