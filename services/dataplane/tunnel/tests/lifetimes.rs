//! When tunnels end: with their peer, their certificate, their bundle, their agent.

#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::{
    Rig, SOON, ends, quick, rig, rig_with,
    support::{Ca, spiffe},
};
use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use weft_tls::{ManualClock, Revoked};
use weft_tunnel::{Limits, TunnelStream};

/// A TCP relay that can stop passing anything on, as a network that lost its way does.
async fn relay(to: SocketAddr) -> (SocketAddr, watch::Sender<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Connections with a number below this one are frozen.
    let (freeze, frozen) = watch::channel(0);
    tokio::spawn(async move {
        for number in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(to).await.unwrap();
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let (near, far) = (near.into_split(), far.into_split());
                let (mut a, mut b) = (near, far);
                tokio::select! {
                    _ = tokio::io::copy(&mut a.0, &mut b.1) => {}
                    _ = tokio::io::copy(&mut b.0, &mut a.1) => {}
                    () = async { drop(frozen.wait_for(|below| *below > number).await) } => {
                        // Nothing passes, nothing is closed.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (address, freeze)
}

#[tokio::test]
async fn a_dead_tunnel_is_noticed_before_it_is_used_again() {
    // Nobody asks by itself here, so it is the one who opens that must.
    let ping_interval = Duration::from_secs(3600);
    let mut rig = rig(Limits {
        fresh: Duration::ZERO,
        ping_interval,
        ..quick()
    })
    .await;
    let (address, freeze) = relay(rig.destination.address).await;
    rig.destination.address = address;
    let (mut old, _, mut old_there) = rig.open().await;
    old.write_all(b"x").await.unwrap();
    assert_eq!(old_there.read_u8().await.unwrap(), b'x');
    // Alive: it is used again.
    drop(rig.open().await);
    assert_eq!(rig.dials(), 1);

    freeze.send_replace(1);
    let (mut new, _, mut new_there) = rig.open().await;
    assert_eq!(rig.dials(), 2);
    new.write_all(b"y").await.unwrap();
    assert_eq!(new_there.read_u8().await.unwrap(), b'y');
    // What was on the dead one ends with an error instead of waiting for ever.
    assert!(timeout(SOON, old.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_dead_peer_ends_the_streams_of_both_sides_without_anyone_asking() {
    let mut rig = rig(quick()).await;
    let (address, freeze) = relay(rig.destination.address).await;
    rig.destination.address = address;
    let (here, _, there) = rig.open().await;
    freeze.send_replace(1);
    tokio::join!(ends(here), ends(there));
    assert_eq!(rig.client.connections(), 0);
}

/// Retired: what is under way is finished however long it takes, what is new goes elsewhere.
async fn goes_on_and_takes_nothing_new(rig: &mut Rig, mut pair: (TunnelStream, TunnelStream)) {
    let (here, there) = (&mut pair.0, &mut pair.1);
    let retired = here.retired();
    timeout(SOON, async {
        while !retired.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let new = rig.open().await;
    assert_eq!(rig.dials(), 2);
    // Well past the grace that a distrusted one has.
    tokio::time::sleep(Duration::from_millis(600)).await;
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    there.write_all(b"y").await.unwrap();
    assert_eq!(here.read_u8().await.unwrap(), b'y');
    assert_eq!(
        rig.client.connections(),
        1,
        "a retired one is not counted as open"
    );
    drop((pair, new));
}

fn short_grace() -> Limits {
    Limits {
        retire_grace: Duration::from_millis(200),
        ..quick()
    }
}

#[tokio::test]
async fn a_new_bundle_retires_connections_made_under_the_old_one() {
    let mut rig = rig(short_grace()).await;
    let (here, _, there) = rig.open().await;
    rig.ca.publish(&rig.trust, 2);
    goes_on_and_takes_nothing_new(&mut rig, (here, there)).await;
}

#[tokio::test]
async fn a_new_bundle_of_the_accepting_side_does_so_too() {
    let mut rig = rig(short_grace()).await;
    let (here, _, mut there) = rig.open().await;
    rig.ca.publish(&rig.server_trust, 2);
    let retired = there.retired();
    timeout(SOON, async {
        while !retired.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut here = here;
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    let _new = rig.open().await;
    assert_eq!(rig.dials(), 2);
}

#[tokio::test]
async fn a_new_certificate_retires_connections_made_with_the_old_one() {
    let mut rig = rig(short_grace()).await;
    let (here, _, there) = rig.open().await;
    rig.source.svid.set(rig.ca.svid(&spiffe("shop"), Some("n1")));
    goes_on_and_takes_nothing_new(&mut rig, (here, there)).await;
}

#[tokio::test]
async fn a_root_that_is_trusted_no_more_ends_what_was_made_under_it() {
    let mut rig = rig(Limits {
        retire_grace: Duration::from_millis(200),
        ..quick()
    })
    .await;
    let (here, _, there) = rig.open().await;
    Ca::new().publish(&rig.server_trust, 2);
    tokio::join!(ends(here), ends(there));
    assert!(rig.try_open().await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_ends_its_connections() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let clock = ManualClock::at(now);
    let mut rig = rig_with(quick(), clock.shared(), None).await;
    let until = SystemTime::now() + Duration::from_secs(600);
    rig.source
        .svid
        .set(rig.ca.svid_until(&spiffe("shop"), Some("n1"), until));
    let (here, _, there) = rig.open().await;
    clock.advance(Duration::from_secs(601));
    tokio::join!(ends(here), ends(there));
    assert!(rig.try_open().await.is_err());
    clock.set(now);
    assert!(rig.try_open().await.is_ok());
}

#[tokio::test]
async fn the_drain_lets_streams_finish_and_the_listener_is_closed() {
    let mut rig = rig(quick()).await;
    let (mut here, _, mut there) = rig.open().await;
    let draining = tokio::spawn(rig.trigger.drain(Duration::from_millis(500)));
    here.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, there.read_u8()).await.unwrap().unwrap(), b'x');
    // The handler never ends by itself here, so the deadline does it.
    assert_eq!(draining.await.unwrap(), weft_drain::Outcome::Forced);
    timeout(SOON, rig.server).await.unwrap().unwrap();
    assert!(TcpStream::connect(rig.destination.address).await.is_err());
}

/// A TCP relay that passes 32 KiB each 10 ms on.
async fn slow_relay(to: SocketAddr) -> SocketAddr {
    async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
        let mut block = vec![0; 32 * 1024];
        while let Ok(n) = from.read(&mut block).await {
            if n == 0 || to.write_all(&block[..n]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let (near_r, near_w) = near.into_split();
            let (far_r, far_w) = TcpStream::connect(to).await.unwrap().into_split();
            tokio::spawn(pass(near_r, far_w));
            tokio::spawn(pass(far_r, near_w));
        }
    });
    address
}

#[tokio::test]
async fn a_slow_link_that_moves_data_is_not_taken_for_dead() {
    let limits = Limits {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(200),
        ..quick()
    };
    let mut rig = rig(limits).await;
    rig.destination.address = slow_relay(rig.destination.address).await;
    let (mut here, _, mut there) = rig.open().await;
    let data = vec![5; 6 << 20];
    let receiving = tokio::spawn(async move {
        let mut all = Vec::new();
        there.read_to_end(&mut all).await.map(|_| all.len())
    });
    here.write_all(&data).await.unwrap();
    here.shutdown().await.unwrap();
    assert_eq!(
        timeout(SOON, receiving).await.unwrap().unwrap().unwrap(),
        data.len()
    );
}

/// Told to one side only, each way a certificate can be named.
#[tokio::test]
async fn a_revocation_ends_live_tunnels_and_lets_no_new_one_begin() {
    let far = spiffe("cart");
    let by_serial = |rig: &Rig| {
        let mut revoked = Revoked::new();
        revoked.serial(&rig.source.svid.get().unwrap().identity().serial);
        revoked
    };
    let by_name = |_: &Rig| {
        let mut revoked = Revoked::new();
        revoked.identity(far.parse().unwrap(), u64::MAX);
        revoked
    };
    let by_node = |_: &Rig| {
        let mut revoked = Revoked::new();
        revoked.node("n1", u64::MAX);
        revoked
    };
    let ways: [&dyn Fn(&Rig) -> Revoked; 3] = [&by_serial, &by_name, &by_node];
    for (number, revoke) in ways.into_iter().enumerate() {
        for told in ["the opening side", "the accepting side"] {
            let mut rig = rig(quick()).await;
            let (here, _, there) = rig.open().await;
            let trust = if told == "the opening side" {
                &rig.trust
            } else {
                &rig.server_trust
            };
            let mut other = Revoked::new();
            other.serial("00");
            trust.set_revoked(other);
            assert!(rig.try_open().await.is_ok(), "something else was revoked");
            trust.set_revoked(revoke(&rig));
            let since = std::time::Instant::now();
            tokio::join!(ends(here), ends(there));
            let took = since.elapsed();
            assert!(took < Duration::from_secs(2), "{number}, {told}: {took:?}");
            assert!(rig.try_open().await.is_err(), "{number}, {told}: a new one began");
            // Lifted again.
            trust.set_revoked(Revoked::new());
            assert!(rig.try_open().await.is_ok(), "{number}, {told}");
        }
    }
}
