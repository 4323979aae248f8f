//! Who may connect, and when what is open ends.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use http::{HeaderMap, StatusCode};
use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use weft_capture::CaptureLimits;
use weft_flows::{Direction, DropReason, Kind, Verdict};
use weft_tls::Revoked;
use weft_tunnel::{DESTINATION_HEADER, Destination, Limits, OpenError, Source};
use world::{Known, Node, World, accept, all, app, certs::spiffe, ping, until};

/// App shop and near on n1, far on n2; all apps listen.
struct Mesh {
    world: World,
    here: Node,
    there: Node,
    shop: Known,
    near: (Known, TcpListener),
    far: (Known, TcpListener),
}

async fn mesh() -> Mesh {
    mesh_with(CaptureLimits::default()).await
}

async fn mesh_with(limits: CaptureLimits) -> Mesh {
    let world = World::new();
    let here = world.node_with("n1", Limits::default(), limits.clone());
    let there = world.node_with("n2", Limits::default(), limits);
    let shop = world.workload(&here, "shop", &[]).await;
    let (near_address, near) = app("127.0.0.1:0").await;
    let near = (world.workload(&here, "near", &[near_address]).await, near);
    let (far_address, far) = app("127.0.0.1:0").await;
    let far = (world.workload(&there, "far", &[far_address]).await, far);
    Mesh {
        world,
        here,
        there,
        shop,
        near,
        far,
    }
}

impl Mesh {
    async fn open(&self, to: &(Known, TcpListener)) -> (TcpStream, TcpStream) {
        let near = self.here.connect(&self.shop, to.0.addresses[0]).await;
        (near, accept(&to.1).await)
    }
}

async fn both_break_off(mut one: TcpStream, mut other: TcpStream, what: &str) {
    assert!(all(&mut one).await.is_err(), "{what}: it looked like an end");
    assert!(all(&mut other).await.is_err(), "{what}: it looked like an end");
}

#[tokio::test]
async fn each_side_refuses_by_its_own_policy() {
    let mesh = mesh().await;
    let cases = [
        (Direction::Egress, "near"),
        (Direction::Egress, "far"),
        (Direction::Ingress, "near"),
        (Direction::Ingress, "far"),
    ];
    for (direction, name) in cases {
        let to = if name == "near" { &mesh.near } else { &mesh.far };
        let (mut a, mut b) = mesh.open(to).await;
        ping(&mut a, &mut b).await;
        drop((a, b));
        mesh.world.deny(direction, "shop", name);
        let mut refused = mesh.here.connect(&mesh.shop, to.0.addresses[0]).await;
        assert!(all(&mut refused).await.is_err());
        let judge = if (direction, name) == (Direction::Ingress, "far") {
            &mesh.there
        } else {
            &mesh.here
        };
        let flow = judge.flow(Kind::Connection, direction).await;
        assert_eq!(
            (flow.verdict, flow.drop_reason),
            (Verdict::Dropped, Some(DropReason::PolicyDenied))
        );
        assert_eq!((&*flow.source.app_id, &*flow.destination.app_id), ("shop", name));
        assert_eq!(flow.destination_port, to.0.addresses[0].port());
        mesh.world.registry.denied.lock().clear();
    }
    // Outside, by its address.
    let (address, listener) = app("127.0.0.1:0").await;
    let (mut a, mut b) = (
        mesh.here.connect(&mesh.shop, address).await,
        accept(&listener).await,
    );
    ping(&mut a, &mut b).await;
    mesh.world.deny(Direction::Egress, "shop", "127.0.0.1");
    both_break_off(a, b, "outside").await;
    let mut refused = mesh.here.connect(&mesh.shop, address).await;
    assert!(all(&mut refused).await.is_err());
}

#[tokio::test]
async fn a_change_of_policy_closes_what_is_open_and_nothing_else() {
    let cases = [
        (Direction::Egress, "near"),
        (Direction::Egress, "far"),
        (Direction::Ingress, "near"),
        (Direction::Ingress, "far"),
    ];
    for (direction, name) in cases {
        let mesh = mesh().await;
        let (to, other) = if name == "near" {
            (&mesh.near, &mesh.far)
        } else {
            (&mesh.far, &mesh.near)
        };
        let (a, b) = mesh.open(to).await;
        let (mut twin_a, mut twin_b) = mesh.open(other).await;
        mesh.world.deny(direction, "shop", name);
        both_break_off(a, b, name).await;
        ping(&mut twin_a, &mut twin_b).await;
        let judge = if (direction, name) == (Direction::Ingress, "far") {
            &mesh.there
        } else {
            &mesh.here
        };
        let dropped = until("the closing is written down", || {
            judge.flows().into_iter().find(|f| f.verdict == Verdict::Dropped)
        })
        .await;
        assert_eq!(
            (dropped.direction, dropped.drop_reason),
            (direction, Some(DropReason::PolicyDenied))
        );
        assert_eq!(judge.capture.refused().closed.load(Ordering::SeqCst), 1);
        until("its end too", || {
            judge.flows().into_iter().find(|f| f.kind == Kind::Closed)
        })
        .await;
    }
}

#[tokio::test]
async fn a_workload_takes_its_connections_with_it() {
    let mesh = mesh().await;
    for to in [&mesh.near, &mesh.far] {
        let (mut a, mut b) = mesh.open(to).await;
        ping(&mut a, &mut b).await;
        mesh.world.remove(&to.0);
        both_break_off(a, b, &to.0.id).await;
    }
    let (address, listener) = app("127.0.0.1:0").await;
    let (mut a, mut b) = (
        mesh.here.connect(&mesh.shop, address).await,
        accept(&listener).await,
    );
    ping(&mut a, &mut b).await;
    mesh.world.remove(&mesh.shop);
    both_break_off(a, b, "the caller").await;
}

#[tokio::test]
async fn a_new_certificate_or_bundle_ends_no_connection() {
    let mesh = mesh().await;
    let (mut a, mut b) = mesh.open(&mesh.far).await;
    mesh.shop
        .svid
        .set(mesh.world.ca.svid(&spiffe("shop"), Some("n1")));
    mesh.far
        .0
        .svid
        .set(mesh.world.ca.svid(&spiffe("far"), Some("n2")));
    ping(&mut a, &mut b).await;
    for node in [&mesh.here, &mesh.there] {
        mesh.world.ca.publish(&node.trust, 2);
    }
    let (mut new_a, mut new_b) = mesh.open(&mesh.far).await;
    assert_eq!(mesh.here.dials(), 2, "a new one travels with the new certificate");
    tokio::time::sleep(Duration::from_millis(200)).await;
    ping(&mut a, &mut b).await;
    ping(&mut new_a, &mut new_b).await;
}

#[tokio::test]
async fn a_revocation_closes_connections_within_two_seconds() {
    let mesh = mesh().await;
    for told in [&mesh.here, &mesh.there] {
        let (a, b) = mesh.open(&mesh.far).await;
        let (mut twin_a, mut twin_b) = mesh.open(&mesh.near).await;
        let mut revoked = Revoked::new();
        revoked.serial(&mesh.shop.svid.get().unwrap().identity().serial);
        let since = Instant::now();
        told.trust.set_revoked(revoked);
        both_break_off(a, b, &told.name).await;
        assert!(since.elapsed() < Duration::from_secs(2));
        let mut refused = mesh.here.connect(&mesh.shop, mesh.far.0.addresses[0]).await;
        assert!(all(&mut refused).await.is_err());
        ping(&mut twin_a, &mut twin_b).await;
        told.trust.set_revoked(Revoked::new());
    }
    let (mut a, mut b) = mesh.open(&mesh.far).await;
    ping(&mut a, &mut b).await;
}

#[tokio::test]
async fn each_workload_has_a_share() {
    let mesh = mesh_with(CaptureLimits {
        opened_per_workload: 3,
        accepted_per_workload: 2,
        ..CaptureLimits::default()
    })
    .await;
    let (_a, _b) = (mesh.open(&mesh.far).await, mesh.open(&mesh.far).await);
    // The third is one too many for who is called.
    let mut refused = mesh.here.connect(&mesh.shop, mesh.far.0.addresses[0]).await;
    assert!(all(&mut refused).await.is_err());
    assert_eq!(mesh.there.capture.refused().too_many.load(Ordering::SeqCst), 1);
    let _c = mesh.open(&mesh.near).await;
    // The fourth for who calls, wherever it goes; another's place is its own.
    let mut refused = mesh.here.connect(&mesh.shop, mesh.near.0.addresses[0]).await;
    assert!(all(&mut refused).await.is_err());
    assert_eq!(mesh.here.capture.refused().too_many.load(Ordering::SeqCst), 1);
    let flow = mesh.here.flow(Kind::Connection, Direction::Ingress).await;
    assert_eq!(flow.drop_reason, Some(DropReason::Overloaded));
    let other = mesh.world.workload(&mesh.here, "other", &[]).await;
    let mut a = mesh.here.connect(&other, mesh.near.0.addresses[0]).await;
    ping(&mut a, &mut accept(&mesh.near.1).await).await;
    // A place is free again when its connection has ended.
    drop(_c);
    until("a free place", || (mesh.here.capture.open() == 3).then_some(())).await;
    let (mut a, mut b) = mesh.open(&mesh.near).await;
    ping(&mut a, &mut b).await;
}

#[tokio::test]
async fn the_drain_gives_connections_its_time() {
    for far in [false, true] {
        let mut mesh = mesh().await;
        let (mut a, mut b) = mesh.open(&mesh.far).await;
        let (c, d) = mesh.open(&mesh.far).await;
        let trigger = if far {
            &mut mesh.there.trigger
        } else {
            &mut mesh.here.trigger
        };
        let draining = tokio::spawn(trigger.take().unwrap().drain(Duration::from_millis(700)));
        tokio::time::sleep(Duration::from_millis(200)).await;
        ping(&mut a, &mut b).await;
        a.shutdown().await.unwrap();
        assert!(all(&mut b).await.unwrap().is_empty());
        b.shutdown().await.unwrap();
        assert!(all(&mut a).await.unwrap().is_empty());
        // What has not ended by then breaks off.
        both_break_off(c, d, "drain").await;
        draining.await.unwrap();
    }
}

/// A node with a sound certificate asks for what its destination does not own.
#[tokio::test]
async fn a_tunnel_leads_to_its_destination_only() {
    let mesh = mesh().await;
    let (elsewhere, _listener) = app("127.0.0.1:0").await;
    let other = mesh.world.workload(&mesh.there, "other", &[elsewhere]).await;
    let ask = async |named: &Known, certificate: &Known, address: SocketAddr| {
        let source = Source {
            workload: mesh.shop.id.clone(),
            svid: mesh.shop.svid.clone(),
        };
        let destination = Destination {
            address: certificate.tunnel,
            id: certificate.party.spiffe_id.parse().unwrap(),
            node: "n2".into(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(DESTINATION_HEADER, named.id.parse().unwrap());
        let opened = mesh
            .here
            .tunnels
            .open(&source, &destination, &address.to_string(), headers)
            .await;
        match opened {
            Ok(_) => StatusCode::OK,
            Err(OpenError::Refused(_, status, _)) => status,
            Err(e) => panic!("{e}"),
        }
    };
    let far = &mesh.far.0;
    let own = far.addresses[0];
    assert_eq!(ask(far, far, own).await, StatusCode::OK);
    assert_eq!(ask(&other, &other, elsewhere).await, StatusCode::OK);
    assert_eq!(
        ask(far, far, elsewhere).await,
        StatusCode::FORBIDDEN,
        "another's address"
    );
    assert_eq!(
        ask(&other, far, elsewhere).await,
        StatusCode::FORBIDDEN,
        "another's name"
    );
    assert_eq!(
        ask(&mesh.near.0, far, own).await,
        StatusCode::NOT_FOUND,
        "another node's"
    );
    let outside: SocketAddr = "127.0.0.1:1".parse().unwrap();
    assert_eq!(
        ask(far, far, outside).await,
        StatusCode::FORBIDDEN,
        "nobody's address"
    );
}
