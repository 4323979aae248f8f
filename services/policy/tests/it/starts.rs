//! A workload's registration is answered when the nodes whose policies name it know it.

use crate::rig::Rig;
use std::time::Duration;
use tokio::time::timeout;
use weft_proto::weft::policy::v1::{self as pb, subscribe_request::Message};

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: cart}}
  ingress: [{fromEndpoints: [{matchLabels: {role: front}}]}]
";

/// Longer than anything but the wait itself takes.
const LIMIT: Duration = Duration::from_secs(20);

async fn rig(wait: u64) -> Rig {
    let rig = Rig::configured(|config| config.start_wait_milliseconds = wait).await;
    rig.put("policy.yaml", POLICY);
    rig.list_until(|list| !list.resources.is_empty()).await;
    rig
}

#[tokio::test]
async fn a_start_waits_for_the_node_whose_policy_names_it() {
    // The longest that is taken: what is answered before is not answered by the limit.
    let rig = rig(3_000).await;
    let (mut n1, n2) = (rig.node("n1").await, rig.node("n2").await);
    n1.apply().await;
    n1.register(n1.workload("shop", "cart", &[("app", "cart")])).await;
    n1.apply().await;
    let named = n2.workload("shop", "front", &[("role", "front")]);
    let other = n2.workload("shop", "back", &[("role", "back")]);

    // Nobody names this one: its start waits for nobody, though n1 is told of it and does not answer.
    let mut registry = n2.registry.clone();
    let request = |workload| pb::RegisterRequest {
        workload: Some(workload),
        ..Default::default()
    };
    timeout(Duration::from_secs(2), registry.register(request(other)))
        .await
        .unwrap()
        .unwrap();

    let started = std::time::Instant::now();
    let mut registry = n2.registry.clone();
    let start = tokio::spawn(async move { registry.register(request(named)).await });
    let id = "n2/shop/front/1";
    loop {
        let update = n1.update().await;
        let there = update.upserts.iter().any(|r| {
            r.key
                .as_ref()
                .is_some_and(|k| k.kind == "endpoint" && k.name == id)
        });
        if there {
            assert!(!start.is_finished(), "answered before n1 has it");
            n1.say(Message::Ack(pb::Ack {
                version: update.version,
            }))
            .await;
            break;
        }
        n1.say(Message::Ack(pb::Ack {
            version: update.version,
        }))
        .await;
    }
    let answer = timeout(LIMIT, start).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_inner().workload.unwrap().id, id);
    assert!(
        started.elapsed() < Duration::from_millis(3_000),
        "the ack did not end the wait"
    );
}

/// A pod of a node that has no stream.
fn pod(node: &str, name: &str, role: &str, address: &str) -> pb::Workload {
    pb::Workload {
        id: format!("{node}/shop/{name}/1"),
        node: node.into(),
        namespace: "shop".into(),
        name: name.into(),
        kind: pb::WorkloadKind::Pod.into(),
        app_id: name.into(),
        labels: [("role".to_owned(), role.to_owned())].into(),
        addresses: vec![address.into()],
        ..Default::default()
    }
}

type Answer = Result<tonic::Response<pb::RegisterResponse>, tonic::Status>;

/// Registers, on a task of its own.
fn begin(rig: &Rig, workload: &pb::Workload) -> tokio::task::JoinHandle<Answer> {
    let mut registry = rig.registry(&format!("/weft/node/{}", workload.node));
    let request = pb::RegisterRequest {
        workload: Some(workload.clone()),
        ..Default::default()
    };
    tokio::spawn(async move { registry.register(request).await })
}

fn is_about(update: &pb::SubscribeResponse, id: &str) -> bool {
    let keys = crate::rig::keys(update);
    keys.iter().any(|(kind, name)| kind == "endpoint" && name == id)
}

#[tokio::test]
async fn a_start_waits_for_the_node_that_takes_its_address_for_anothers() {
    let rig = rig(3_000).await;
    let mut n1 = rig.node("n1").await;
    n1.apply().await;
    n1.register(n1.workload("shop", "cart", &[("app", "cart")])).await;
    n1.apply().await;
    let front = pod("n2", "front", "front", "10.1.0.5");
    let start = begin(&rig, &front);
    n1.until("endpoint", &front.id).await;
    timeout(LIMIT, start).await.unwrap().unwrap().unwrap();
    let leaves = pb::DeregisterRequest { id: front.id.clone() };
    rig.registry("/weft/node/n2").deregister(leaves).await.unwrap();
    loop {
        let update = n1.update().await;
        if is_about(&update, &front.id) {
            break;
        }
        let version = update.version;
        n1.say(Message::Ack(pb::Ack { version })).await;
    }

    // The policy of n1 names neither of these. For n1, which has not answered, the address of the
    // second one is that of somebody who is let in.
    let start = begin(&rig, &pod("n3", "elsewhere", "back", "10.1.0.6"));
    timeout(Duration::from_secs(2), start)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let started = std::time::Instant::now();
    let back = pod("n3", "back", "back", "10.1.0.5");
    let start = begin(&rig, &back);
    let version = loop {
        let update = n1.update().await;
        if is_about(&update, &back.id) {
            break update.version;
        }
    };
    assert!(
        !start.is_finished(),
        "answered while n1 knows the address as front's"
    );
    n1.say(Message::Ack(pb::Ack { version })).await;
    timeout(LIMIT, start).await.unwrap().unwrap().unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(3_000),
        "the ack did not end the wait"
    );
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_node_that_says_nothing() {
    let rig = rig(200).await;
    let (mut n1, n2) = (rig.node("n1").await, rig.node("n2").await);
    n1.apply().await;
    n1.register(n1.workload("shop", "cart", &[("app", "cart")])).await;
    let named = n2.workload("shop", "front", &[("role", "front")]);
    let mut registry = n2.registry.clone();
    let request = pb::RegisterRequest {
        workload: Some(named.clone()),
        ..Default::default()
    };
    timeout(LIMIT, registry.register(request.clone()))
        .await
        .unwrap()
        .unwrap();
    // A node whose stream ended keeps nobody waiting either.
    drop(n1);
    rig.list_until(|l| l.nodes.iter().any(|n| n.connected_at.is_none()))
        .await;
    timeout(LIMIT, registry.register(request)).await.unwrap().unwrap();
}
