//! A real server on real sockets: who gets in, who does not, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod ca;

use ca::{Ca, NOW, ROLES};
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weft_rpc::{GrpcServer, channel, channel_pinned};
use weft_tls::{ClientAuth, Expect, ManualClock, SvidCell, root_sha256};

async fn health(channel: tonic::transport::Channel) -> Result<i32, tonic::Status> {
    let mut client = HealthClient::new(channel);
    let reply = tokio::time::timeout(
        Duration::from_secs(20),
        client.check(HealthCheckRequest {
            service: String::new(),
        }),
    );
    reply.await.unwrap().map(|r| r.into_inner().status)
}

#[tokio::test]
async fn a_role_gets_in_and_others_do_not() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let expect = || Expect::Id(ca.td.service("placement").unwrap());
    let call = |svid: Option<SvidCell>, expect: Expect| {
        health(channel(&server.address, svid.as_ref(), &trust, expect).unwrap())
    };

    assert_eq!(call(Some(ca.cell("/weft/admin/ops")), expect()).await.unwrap(), 1);
    let workload = call(Some(ca.cell("/ns/default/cart")), expect())
        .await
        .unwrap_err();
    assert_eq!(workload.code(), Code::PermissionDenied, "{workload}");
    // No certificate: the handshake itself fails.
    assert!(call(None, expect()).await.is_err());
    // A stranger's certificate, same name.
    assert!(
        call(Some(Ca::new().cell("/weft/admin/ops")), expect())
            .await
            .is_err()
    );
    // The client refuses a server that is not whom it expects.
    let wrong = Expect::Id(ca.td.service("policy").unwrap());
    assert!(call(Some(ca.cell("/weft/admin/ops")), wrong).await.is_err());
}

#[tokio::test]
async fn certificates_are_judged_by_the_clock() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let call = || {
        health(
            channel(
                &server.address,
                Some(&ca.cell("/weft/admin/ops")),
                &trust,
                Expect::Member,
            )
            .unwrap(),
        )
    };
    assert!(call().await.is_ok());
    clock.advance(Duration::from_secs(4000));
    assert!(call().await.is_err(), "an expired certificate was taken");
    clock.set(NOW - 1000);
    assert!(call().await.is_err(), "a certificate of the future was taken");
    clock.set(NOW);
    assert!(call().await.is_ok());
}

#[tokio::test]
async fn a_pinned_root_is_the_only_one_taken() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Optional).await;
    let expect = ca.td.service("placement").unwrap();
    let pinned = |sha| health(channel_pinned(&server.address, sha, expect.clone(), clock.shared()).unwrap());
    // In, but without a certificate nothing is admitted: the refusal is gRPC's, not TLS'.
    let refused = pinned(root_sha256(&ca.root)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let other = pinned(root_sha256(&Ca::new().root)).await.unwrap_err();
    assert_ne!(other.code(), Code::Unauthenticated, "{other}");
}

#[tokio::test]
async fn a_drain_ends_the_server() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let live = channel(
        &server.address,
        Some(&ca.cell("/weft/admin/ops")),
        &trust,
        Expect::Member,
    )
    .unwrap();
    assert!(health(live.clone()).await.is_ok());
    assert_eq!(
        server.trigger.drain(Duration::from_secs(5)).await,
        weft_drain::Outcome::Drained
    );
    server.task.await.unwrap().unwrap();
    assert!(health(live).await.is_err());
}

#[tokio::test]
async fn the_local_socket_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/x.sock");
    let listener = weft_rpc::bind_local(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (_trigger, watcher) = weft_drain::channel();
    let server = GrpcServer::new("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS, ROLES)
        .unwrap()
        .build();
    tokio::spawn(server.serve_local(listener, watcher));
    assert!(
        health(weft_rpc::channel_local(path.clone()).unwrap())
            .await
            .is_ok()
    );
    // A second server on a socket that is served is refused; on a left-over one it is not.
    assert!(weft_rpc::bind_local(&path).is_err());
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(weft_rpc::bind_local(&stale).is_ok());
}
