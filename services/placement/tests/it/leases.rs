//! A node that falls silent, by a clock that the test moves.

use crate::mesh::{Mesh, hello, host, message};
use std::time::Duration;
use weft_placement::Clock;
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message as Up, join_response::Message as Down,
};

async fn hosts(mesh: &Mesh, service: &crate::mesh::Service) -> Vec<(String, String, u32)> {
    let mut rpc = mesh.rpc(service, "/weft/admin/ops");
    let list = rpc
        .list_hosts(pb::ListHostsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .hosts;
    list.into_iter()
        .map(|share| {
            let host = share.host.unwrap();
            (host.node, host.id, share.slots)
        })
        .collect()
}

fn shares(list: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
    list.iter()
        .map(|(n, h, s)| ((*n).into(), (*h).into(), *s))
        .collect()
}

#[tokio::test]
async fn a_cut_nodes_slots_move_when_its_lease_is_over_and_not_before() {
    let clock = Clock::manual();
    let mesh = Mesh::with_clock(clock.clone());
    let service = mesh.serve().await;
    let mut one = mesh.raw(&service, "n1", hello(&["a"])).await;
    one.renew().await;
    let mut two = mesh.raw(&service, "n2", hello(&["b"])).await;
    two.renew().await;
    assert_eq!(
        hosts(&mesh, &service).await,
        shares(&[("n1", "a", 2048), ("n2", "b", 2048)])
    );

    drop(two);
    for second in 1..10 {
        clock.advance(Duration::from_secs(1)).await;
        one.renew().await;
        let now = hosts(&mesh, &service).await;
        assert_eq!(
            now,
            shares(&[("n1", "a", 2048), ("n2", "b", 2048)]),
            "after {second} s"
        );
    }
    clock.advance(Duration::from_secs(1)).await;
    assert_eq!(hosts(&mesh, &service).await, shares(&[("n1", "a", 4096)]));
    let delta = one.renew().await.into_iter().find_map(|m| match m {
        Down::Delta(delta) => Some(delta),
        _ => None,
    });
    let delta = delta.unwrap();
    assert_eq!(
        (&delta.hosts_down[..], delta.moves.len()),
        (&["b".to_owned()][..], 2048)
    );

    // It comes back as anybody who joins.
    let mut two = mesh.raw(&service, "n2", hello(&["b"])).await;
    two.renew().await;
    assert_eq!(
        hosts(&mesh, &service).await,
        shares(&[("n1", "a", 2048), ("n2", "b", 2048)])
    );
    service.stop().await;
}

#[tokio::test]
async fn a_stream_whose_lease_is_over_ends() {
    let clock = Clock::manual();
    let mesh = Mesh::with_clock(clock.clone());
    let service = mesh.serve().await;
    // It reads, but does not renew: stopped, and going on too late.
    let mut node = mesh.raw(&service, "n1", hello(&["a"])).await;
    clock.advance(Duration::from_secs(11)).await;
    let end = loop {
        match node.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), tonic::Code::Aborted);
    assert!(end.message().contains("lease is over"), "{end}");
    assert_eq!(hosts(&mesh, &service).await, []);
    service.stop().await;
}

#[tokio::test]
async fn after_a_restart_nodes_have_a_lease_to_come_back_in() {
    let clock = Clock::manual();
    let mesh = Mesh::with_clock(clock.clone());
    let service = mesh.serve().await;
    let mut one = mesh.raw(&service, "n1", hello(&["a"])).await;
    one.send(Up::HostUp(message(&host("c")))).await;
    one.renew().await;
    let mut two = mesh.raw(&service, "n2", hello(&["b"])).await;
    two.renew().await;
    let before = hosts(&mesh, &service).await;
    assert_eq!(before.len(), 3);
    drop((one, two));
    service.stop().await;

    let service = mesh.serve().await;
    assert_eq!(hosts(&mesh, &service).await, before);
    clock.advance(Duration::from_secs(9)).await;
    assert_eq!(hosts(&mesh, &service).await, before);
    let mut one = mesh.raw(&service, "n1", hello(&["a", "c"])).await;
    one.renew().await;
    assert_eq!(
        hosts(&mesh, &service).await,
        before,
        "coming back moved something"
    );
    clock.advance(Duration::from_secs(1)).await;
    let after = hosts(&mesh, &service).await;
    assert_eq!(
        after,
        shares(&[("n1", "a", 2048), ("n1", "c", 2048)]),
        "n2 did not come back"
    );
    service.stop().await;
}
