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
