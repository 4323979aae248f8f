//! An identity, and then one certificate, that are revoked while their tunnels are in use between two
//! whole nodes: whoever holds them is cut off within two seconds, and nobody else is.

use crate::{
    rig::{Rig, ask, ask_until},
    rotation::{leaf, tunnel_chain, tunnels},
};
use std::time::{Duration, Instant};
use weft_proto::weft::identity::v1::{ReinstateRequest, RevokeRequest, admin_client::AdminClient};
use weft_testnet::Pod;

const LIMIT: Duration = Duration::from_secs(2);

async fn revoke(rig: &Rig, target: &str) -> Instant {
    let request = RevokeRequest {
        target: target.into(),
        reason: "its key was copied".into(),
    };
    let asked = Instant::now();
    AdminClient::new(rig.identity()).revoke(request).await.unwrap();
    asked
}

fn is_answered(from: &Pod, app: &str) -> bool {
    let answer = ask(from.namespace(), app, "echo");
    answer.contains("200 OK") && answer.contains(&format!("{app} asked by {}", from.name()))
}

/// Asks on and on, by the tunnel that is open; how long after the order it was answered last.
fn cut_off(from: &Pod, app: &str, asked: Instant) -> Duration {
    let mut last = Duration::ZERO;
    // Longer than it may take: what fails once and works again is not cut off.
    while asked.elapsed() < LIMIT + Duration::from_secs(1) {
        if is_answered(from, app) {
            last = asked.elapsed();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_revoked_is_cut_off_within_two_seconds_and_nobody_else() {
    let rig = Rig::new(&[], &["n1", "n2"]);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let pods = ["shop", "till"].map(|name| near.node.pod(name).unwrap());
    let [shop, till] = &pods;
    let cart = far.node.pod("cart").unwrap();
    for pod in &pods {
        near.add_pod(pod).await;
    }
    far.add_pod(&cart).await;
    for pod in &pods {
        let wanted = format!("cart asked by {}", pod.name());
        ask_until(&wanted, || ask(pod.namespace(), "cart", "first")).await;
    }

    let id = "spiffe://cluster.local/ns/default/shop";
    let asked = revoke(&rig, id).await;
    let last = cut_off(shop, "cart", asked);
    println!("an identity: answered last {last:?} after the order");
    assert!(last < LIMIT, "{last:?}");
    assert!(is_answered(till, "cart"), "another identity of the same node");

    // One certificate, by its serial number: the tunnels with it end, and the next one is good.
    let serial = || leaf(&tunnel_chain(far, "cart")).serial;
    let (copied, (opened, _)) = (serial(), tunnels(near));
    let asked = revoke(&rig, &copied).await;
    while tunnels(near).0 == opened {
        assert!(asked.elapsed() < LIMIT, "the tunnel goes on");
        // It is asked for again as soon as somebody needs it.
        is_answered(till, "cart");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "a certificate: a new tunnel {:?} after the order",
        asked.elapsed()
    );
    ask_until("cart asked by till", || ask(till.namespace(), "cart", "again")).await;
    assert_ne!(serial(), copied);
    assert!(!is_answered(shop, "cart"), "it is still revoked");

    // Reinstated, with another certificate.
    let spiffe_id = id.to_owned();
    let reinstate = ReinstateRequest { spiffe_id };
    AdminClient::new(rig.identity())
        .reinstate(reinstate)
        .await
        .unwrap();
    ask_until("cart asked by shop", || ask(shop.namespace(), "cart", "again")).await;
}
