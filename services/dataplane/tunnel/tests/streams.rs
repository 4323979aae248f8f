//! What tunnels carry, for whom, and how much of it.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "streams/pool.rs"]
mod pool;
mod rig;
#[path = "streams/windows.rs"]
mod windows;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use proptest::{prelude::*, strategy::ValueTree};
use rig::{
    Rig, SOON, quick, rig, rig_with,
    support::{Ca, spiffe},
};
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_tls::{Expect, SvidCell, client_config};
use weft_tunnel::{Limits, Local, OpenError, SharedIdentities, TunnelStream, sni_of};

#[tokio::test]
async fn both_ends_know_each_other_and_each_direction_ends_by_itself() {
    let mut rig = rig(quick()).await;
    let (mut here, seen, mut there) = rig.open().await;
    assert_eq!((seen.peer, seen.node.as_deref()), (spiffe("shop"), Some("n1")));
    assert_eq!(
        (seen.local, seen.authority.as_str()),
        (spiffe("cart"), "cart.default:50002")
    );
    assert_eq!(seen.trace.as_deref(), Some("00-x"));

    here.write_all(b"question").await.unwrap();
    here.shutdown().await.unwrap();
    let mut question = Vec::new();
    there.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    // The other direction is still open.
    there.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    here.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    there.shutdown().await.unwrap();
    assert_eq!(here.read(&mut answer).await.unwrap(), 0);
    assert!(here.write_all(b"more").await.is_err());
}

#[tokio::test]
async fn large_transfers_arrive_whole_in_both_directions() {
    let mut rig = rig(quick()).await;
    let (here, _, there) = rig.open().await;
    let data: Vec<u8> = (0..20_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let send = |mut half: tokio::io::WriteHalf<TunnelStream>, data: Vec<u8>| async move {
        half.write_all(&data).await.unwrap();
        half.shutdown().await.unwrap();
    };
    let receive = |mut half: tokio::io::ReadHalf<TunnelStream>| async move {
        let mut all = Vec::new();
        half.read_to_end(&mut all).await.unwrap();
        all
    };
    let ((here_r, here_w), (there_r, there_w)) = (tokio::io::split(here), tokio::io::split(there));
    let (_, _, a, b) = tokio::join!(
        tokio::spawn(send(here_w, data.clone())),
        tokio::spawn(send(there_w, data.clone())),
        tokio::spawn(receive(here_r)),
        tokio::spawn(receive(there_r))
    );
    assert!(a.unwrap() == data && b.unwrap() == data);
}

#[tokio::test]
async fn the_wrong_identity_and_the_wrong_node_are_refused() {
    let mut rig = rig(quick()).await;
    assert!(rig.try_open().await.is_ok());
    rig.destination.node = "n3".into();
    assert!(matches!(rig.try_open().await, Err(OpenError::WrongNode { .. })));
    rig.destination.node = "n2".into();
    rig.destination.id = spiffe("other").parse().unwrap();
    let refused = rig.try_open().await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("expected spiffe://cluster.local/ns/default/other"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_workloads_own_certificate_opens_no_tunnel() {
    let mut rig = rig(quick()).await;
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), None));
    assert!(rig.try_open().await.is_err());
    // The twin: the same with the node in it.
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), Some("n1")));
    assert!(rig.try_open().await.is_ok());
    // One of another root.
    rig.source.svid.set(Ca::new().svid(&spiffe("shop"), Some("n1")));
    assert!(rig.try_open().await.is_err());
    rig.source.svid = SvidCell::new();
    assert!(matches!(rig.try_open().await, Err(OpenError::NoCertificate(_))));
}

#[tokio::test]
async fn a_refused_stream_leaves_its_connection_alone() {
    let mut rig = rig(quick()).await;
    let (mut here, _, mut there) = rig.open().await;
    let refused = rig.client.open(
        &rig.source,
        &rig.destination,
        "refused.default:50002",
        HeaderMap::new(),
    );
    assert!(matches!(
        refused.await,
        Err(OpenError::Refused(_, StatusCode::FORBIDDEN, _))
    ));
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    assert_eq!(rig.dials(), 1);
}

#[tokio::test]
async fn a_refusal_by_policy_names_its_rule_within_bounds() {
    let rig = rig(quick()).await;
    for (authority, named) in [
        ("denied-40.default:50002", Some("r".repeat(40))),
        ("denied-512.default:50002", Some("r".repeat(512))),
        ("denied-513.default:50002", None),
        ("refused.default:50002", None),
    ] {
        let opened = rig
            .client
            .open(&rig.source, &rig.destination, authority, HeaderMap::new());
        match opened.await {
            Err(OpenError::Refused(_, StatusCode::FORBIDDEN, rule)) => {
                assert_eq!(rule.as_deref().map(str::to_owned), named, "{authority}");
            }
            other => panic!("{authority}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn sni_chooses_among_identities_of_one_address() {
    let ca = Ca::new();
    let shared = SharedIdentities::new();
    for app in ["cart", "pay"] {
        shared.insert(&spiffe(app).parse().unwrap(), ca.cell(app, "n2"));
    }
    let mut rig = rig_with(
        quick(),
        weft_tls::SystemClock::shared(),
        Some(Local::Shared(shared.clone())),
    )
    .await;
    ca.publish(&rig.trust, 2);
    ca.publish(&rig.server_trust, 2);
    rig.source.svid = ca.cell("shop", "n1");
    for app in ["cart", "pay"] {
        rig.destination.id = spiffe(app).parse().unwrap();
        let (_here, seen, _there) = rig.open().await;
        assert_eq!(seen.local, spiffe(app));
    }
    rig.destination.id = spiffe("nobody").parse().unwrap();
    assert!(rig.try_open().await.is_err());
    shared.remove(&spiffe("pay").parse().unwrap());
    rig.destination.id = spiffe("pay").parse().unwrap();
    rig.source.workload = "n1/default/shop/2".into();
    assert!(rig.try_open().await.is_err());
}

/// Writes until nothing more is taken for a while; says how much was.
async fn fill(stream: &mut TunnelStream) -> usize {
    let block = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_millis(300), stream.write(&block)).await {
        taken += n.unwrap();
        assert!(
            taken < 64 << 20,
            "no back-pressure: {taken} bytes were taken for a reader that does not read"
        );
    }
    taken
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_and_nobody_else() {
    let limits = quick();
    let bound = limits.stream_window as usize + limits.send_buffer + (1 << 20);
    let mut rig = rig(limits).await;
    let (mut stuck, _, mut stuck_there) = rig.open().await;
    let (mut other, _, mut other_there) = rig.open().await;
    assert_eq!(rig.dials(), 1);
    let taken = fill(&mut stuck).await;
    assert!(taken <= bound, "{taken} bytes were taken, the bound is {bound}");
    // Towards the opening side as well.
    let taken_back = fill(&mut stuck_there).await;
    assert!(
        taken_back <= bound,
        "{taken_back} bytes were taken, the bound is {bound}"
    );
    other.write_all(b"free").await.unwrap();
    let mut got = [0; 4];
    timeout(SOON, other_there.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    // What was held back arrives once it is read.
    stuck.shutdown().await.unwrap();
    let mut all = Vec::new();
    timeout(SOON, stuck_there.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all.len(), taken);
}

/// A TLS connection with a tunnel certificate, on which a test says what it likes.
async fn raw(rig: &Rig) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(rig.destination.address).await.unwrap();
    let config = client_config(Some(&rig.source.svid), &rig.trust, Expect::Member, &[b"h2"]).unwrap();
    let name = ServerName::try_from(sni_of(&rig.destination.id)).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap()
}

#[tokio::test]
async fn other_methods_than_connect_are_refused() {
    let rig = rig(quick()).await;
    let (sender, connection) = h2::client::handshake(raw(&rig).await).await.unwrap();
    tokio::spawn(connection);
    let ask = |method: Method, uri: &'static str| {
        let mut sender = sender.clone();
        async move {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            response.await.unwrap().status()
        }
    };
    assert_eq!(
        ask(Method::GET, "https://cart.default:50002/").await,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        ask(Method::CONNECT, "refused.default:50002").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(ask(Method::CONNECT, "cart.default:50002").await, StatusCode::OK);
}

#[tokio::test]
async fn more_streams_than_allowed_wait_or_are_refused() {
    let rig = rig(Limits {
        max_streams: 5,
        ..quick()
    })
    .await;
    let (sender, connection) = h2::client::handshake(raw(&rig).await).await.unwrap();
    tokio::spawn(connection);
    let mut open: Vec<h2::SendStream<Bytes>> = Vec::new();
    for _ in 0..5 {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("cart.default:1")
            .body(())
            .unwrap();
        let (response, send) = sender
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        open.push(send);
    }
    assert!(
        timeout(Duration::from_millis(200), sender.clone().ready())
            .await
            .is_ok()
    );
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("cart.default:1")
        .body(())
        .unwrap();
    let (sixth, _send) = sender.clone().send_request(request, false).unwrap();
    let answered = timeout(Duration::from_millis(200), sixth).await;
    assert!(!matches!(answered, Ok(Ok(_))), "a sixth stream was taken");
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let mut rig = rig(Limits {
        handshake_timeout: Duration::from_millis(500),
        ..quick()
    })
    .await;
    let any = (
        proptest::collection::vec(any::<u8>(), 0..400),
        any::<bool>(),
        any::<bool>(),
    );
    let mut cases = Vec::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        cases.push(any.new_tree(&mut runner).unwrap().current());
    }
    for (bytes, in_tls, preface) in cases {
        let mut message = if preface {
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
        } else {
            Vec::new()
        };
        message.extend_from_slice(&bytes);
        if in_tls {
            let mut tls = raw(&rig).await;
            tls.write_all(&message).await.ok();
            tls.shutdown().await.ok();
        } else {
            let mut tcp = TcpStream::connect(rig.destination.address).await.unwrap();
            tcp.write_all(&message).await.ok();
        }
    }
    let (mut here, _, mut there) = rig.open().await;
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn who_says_nothing_is_cut_off() {
    let rig = rig(Limits {
        handshake_timeout: Duration::from_millis(200),
        ..quick()
    })
    .await;
    let mut tcp = TcpStream::connect(rig.destination.address).await.unwrap();
    assert!(matches!(
        timeout(SOON, tcp.read(&mut [0; 1])).await.unwrap(),
        Ok(0) | Err(_)
    ));
}

/// Who only knocks takes its own share of the places, and keeps nobody out that knows the way in.
#[tokio::test]
async fn one_address_and_one_node_have_a_share_each() {
    let rig = rig(Limits {
        max_handshakes_per_address: 3,
        max_accepted_per_node: 2,
        streams_per_connection: 1,
        ..quick()
    })
    .await;
    let mut knocking = Vec::new();
    for _ in 0..3 {
        knocking.push(TcpStream::connect(rig.destination.address).await.unwrap());
    }
    // Accepted in turn, so the three are counted before this one is refused.
    let mut fourth = TcpStream::connect(rig.destination.address).await.unwrap();
    assert!(matches!(
        timeout(SOON, fourth.read(&mut [0; 1])).await.unwrap(),
        Ok(0) | Err(_)
    ));
    drop(knocking);
    // Its places are free again, if not at once.
    let first = loop {
        match rig.try_open().await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    // Each stream takes a connection; the node has two.
    let second = rig.try_open().await.unwrap();
    assert!(rig.try_open().await.is_err());
    drop((first, second));
}
