//! Which streams share a connection: those of one source, one certificate, one destination, one bundle.

use crate::rig::{quick, rig, support::spiffe};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use weft_tunnel::Limits;

#[tokio::test]
async fn streams_share_a_connection_until_it_is_full() {
    let mut rig = rig(Limits {
        streams_per_connection: 3,
        ..quick()
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(rig.open().await);
    }
    assert_eq!(rig.dials(), 1);
    open.push(rig.open().await);
    assert_eq!(rig.dials(), 2);
    // Room on the first again.
    open.truncate(2);
    open.push(rig.open().await);
    assert_eq!(rig.dials(), 2);
}

#[tokio::test]
async fn many_first_callers_make_one_connection() {
    let rig = rig(quick()).await;
    let opened = futures::future::join_all((0..20).map(|_| rig.try_open())).await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(rig.dials(), 1);
}

#[tokio::test]
async fn another_source_or_certificate_never_shares_a_connection() {
    let mut rig = rig(quick()).await;
    let _first = rig.open().await;
    rig.source.workload = "n1/default/shop/2".into();
    let _second = rig.open().await;
    assert_eq!(rig.dials(), 2);
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), Some("n1")));
    let _third = rig.open().await;
    assert_eq!(rig.dials(), 3);
}

#[tokio::test]
async fn another_address_of_the_destination_has_connections_of_its_own() {
    let mut rig = rig(quick()).await;
    let own = rig.destination.address;
    rig.destination.address = way_to(own).await;
    let _first = rig.open().await;
    let _again = rig.open().await;
    assert_eq!(rig.dials(), 1);
    rig.destination.address = own;
    let _other = rig.open().await;
    assert_eq!(rig.dials(), 2);
}

/// Another address that leads to the same listener.
async fn way_to(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

/// Nothing runs in between on this thread: what is open has not even been told of the new bundle.
#[tokio::test]
async fn what_is_opened_right_after_a_new_bundle_is_on_a_connection_made_under_it() {
    let mut rig = rig(quick()).await;
    let _first = rig.open().await;
    let _same = rig.open().await;
    assert_eq!(rig.dials(), 1, "the bundle is the one it was");
    rig.ca.publish(&rig.trust, 2);
    let _second = rig.open().await;
    assert_eq!(rig.dials(), 2);
}
