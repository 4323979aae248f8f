//! Source addresses that are not the sender's.

use crate::{
    cases::EGRESS,
    scene::{PATIENCE, flows_of, scene},
};
use std::net::SocketAddr;
use weft_demo::stage::Target;

/// A pod that speaks from another's address, or answers for it, does not get through; with its own it does.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_from_anothers_address() {
    let scene = scene().await;
    let (wrong, _) = scene.settled().await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let stage = &scene.stage;
    let (peer, subject) = (&scene.peers[0], &scene.subjects[0]);
    let pod = stage.pod("subject-pod").unwrap().net.namespace().clone();
    let stolen = peer.addresses[0];
    pod.ip(&format!("address add {stolen}/32 dev lo\n")).unwrap();
    let target = SocketAddr::new(scene.peers[2].addresses[0], EGRESS + 6);
    let own = stage
        .ask_echo(
            &subject.seat,
            PATIENCE,
            &[Target::Tcp(target), Target::Udp(target)],
        )
        .await
        .unwrap();
    assert!(own.iter().all(weft_demo::stage::Answer::is_ok), "{own:?}");
    let link = stage.pod("subject-pod").unwrap().net.link().name().to_owned();
    pod.ip(&format!(
        "route replace {}/32 dev {link} src {stolen}\n",
        target.ip()
    ))
    .unwrap();
    let forged = stage
        .ask_echo(
            &subject.seat,
            PATIENCE,
            &[Target::Tcp(target), Target::Udp(target)],
        )
        .await
        .unwrap();
    assert!(!forged.iter().any(weft_demo::stage::Answer::is_ok), "{forged:?}");
    let flows = flows_of(stage).await;
    let told = flows.iter().any(|f| {
        f["drop_reason"] == "INVALID_SOURCE_IP"
            && f["verdict"] == "DROPPED"
            && f["source"]["app_id"] == "subject-pod"
    });
    assert!(told, "{:#?}", flows.last());
}
