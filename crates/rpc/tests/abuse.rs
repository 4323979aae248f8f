//! Callers that want to stay longer, or take more, than is theirs.
#![allow(clippy::unwrap_used, missing_docs)]

mod ca;

use ca::{Ca, NOW};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weft_rpc::channel;
use weft_tls::{ClientAuth, Expect, ManualClock};

const PATIENCE: Duration = Duration::from_secs(20);

fn request() -> HealthCheckRequest {
    HealthCheckRequest {
        service: String::new(),
    }
}

#[tokio::test]
async fn a_stream_does_not_outlive_the_certificate_it_was_opened_with() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let cell = ca.cell("/weft/admin/ops");
    let live = channel(&server.address, Some(&cell), &ca.trust(&clock), Expect::Member).unwrap();
    let mut client = HealthClient::new(live);
    let mut stream = client.watch(request()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    // Nearly at its end: all goes on.
    clock.set(NOW + 3600);
    assert!(client.check(request()).await.is_ok());
    assert!(
        timeout(Duration::from_millis(200), stream.message())
            .await
            .is_err(),
        "the stream ended early"
    );
    // One second later, with a certificate that was renewed meanwhile: new connections are
    // good, the old one is not.
    clock.set(NOW + 3601);
    cell.set(ca.svid("/weft/admin/ops", 7200));
    let _ = client.check(request()).await;
    let end = timeout(PATIENCE, stream.message())
        .await
        .expect("the stream goes on");
    assert!(end.is_err(), "{end:?}");
    // The channel connects anew by itself.
    let again = async { while client.check(request()).await.is_err() {} };
    timeout(PATIENCE, again).await.expect("no new connection");
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_connections_and_no_others() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let open = async |path: &str| {
        let cell = ca.cell(path);
        let live = channel(&server.address, Some(&cell), &ca.trust(&clock), Expect::Member).unwrap();
        let mut client = HealthClient::new(live);
        let mut stream = client.watch(request()).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        (cell, client, stream)
    };
    let (bad, mut bad_client, mut bad_stream) = open("/weft/admin/bad").await;
    let (_good, mut good_client, mut good_stream) = open("/weft/admin/good").await;
    let mut revoked = weft_tls::Revoked::new();
    revoked.serial(&bad.get().unwrap().identity().serial);
    server.trust.set_revoked(revoked);
    // Idle as it is, at once: keep-alive pings would take twenty seconds.
    let end = timeout(Duration::from_secs(5), bad_stream.message())
        .await
        .unwrap();
    assert!(end.is_err(), "{end:?}");
    assert!(bad_client.check(request()).await.is_err());
    assert!(good_client.check(request()).await.is_ok());
    assert!(
        timeout(Duration::from_millis(200), good_stream.message())
            .await
            .is_err()
    );
}

/// A connection from 127.0.0.2, so that the flood and the others have different addresses.
async fn stalled(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn stalled_handshakes_keep_nobody_out_and_end() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(stalled(&server.address).await);
    }
    let begun = Instant::now();
    let cell = ca.cell("/weft/admin/ops");
    let live = channel(&server.address, Some(&cell), &ca.trust(&clock), Expect::Member).unwrap();
    assert!(HealthClient::new(live).check(request()).await.is_ok());
    // Before the flood's own handshakes time out, which would make room anyway.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // The last of the flood were over the limit and closed at once, the first after a while.
    for (i, within) in [(299, Duration::from_secs(2)), (0, Duration::from_secs(8))] {
        let end = timeout(within, flood[i].read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "connection {i} is still open");
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_is_closed() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    for garbage in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = stalled(&server.address).await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("still open");
        // At most an alert, in clear.
        assert!(answer.len() < 16, "{answer:?}");
    }
}

#[tokio::test]
async fn one_workload_can_hold_only_so_many_connections() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = ca.serve(&clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let connect = async |path: &str| {
        let channel = channel(&server.address, Some(&ca.cell(path)), &trust, Expect::Member).unwrap();
        let code = HealthClient::new(channel.clone())
            .check(request())
            .await
            .map(drop)
            .map_err(|s| s.code());
        (channel, code)
    };
    let mut held = Vec::new();
    for i in 0..40 {
        let (channel, code) = connect("/ns/default/greedy").await;
        // Refused by its role while it has places, by the connection itself after that.
        let expected = if i < 32 {
            tonic::Code::PermissionDenied
        } else {
            tonic::Code::Unavailable
        };
        let code = code.unwrap_err();
        assert!(
            code == expected || (i >= 32 && code == tonic::Code::Unknown),
            "connection {i}: {code:?}"
        );
        held.push(channel);
    }
    assert_eq!(
        connect("/ns/default/modest").await.1,
        Err(tonic::Code::PermissionDenied)
    );
    assert_eq!(connect("/weft/node/n1").await.1, Ok(()));
}
