//! What is carried, unchanged, whatever the path.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use sha2::{Digest, Sha256};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use weft_capture::CaptureLimits;
use weft_flows::{Direction, Kind, Traffic, Verdict, Via};
use weft_tunnel::Limits;
use world::{Known, Node, SOON, World, accept, all, app, echo, ping, until};

/// App shop on n1; a path each to an app on the same node, on another, and outside the mesh.
struct Paths {
    world: World,
    here: Node,
    there: Node,
    shop: Known,
}

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

async fn paths() -> Paths {
    let world = World::new();
    let (here, there) = (world.node("n1"), world.node("n2"));
    let shop = world.workload(&here, "shop", &[]).await;
    Paths {
        world,
        here,
        there,
        shop,
    }
}

impl Paths {
    /// Makes an app at `address` part of the mesh, or not, by the number of the path.
    async fn place(&self, path: usize, address: SocketAddr) {
        match path {
            0 => drop(self.world.workload(&self.here, "near", &[address]).await),
            1 => drop(self.world.workload(&self.there, "far", &[address]).await),
            _ => {}
        }
    }

    /// Both ends of a connection over a path.
    async fn pair(&self, path: usize, family: &str) -> (TcpStream, TcpStream, TcpListener) {
        let (address, listener) = app(family).await;
        self.place(path, address).await;
        let near = self.here.connect(&self.shop, address).await;
        let far = accept(&listener).await;
        (near, far, listener)
    }
}

#[tokio::test]
async fn a_megabyte_comes_back_as_it_went_over_every_path() {
    let paths = paths().await;
    let data: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for (path, via) in [(0, Some(Via::SameNode)), (1, Some(Via::Tunnel)), (2, None)] {
        for family in [V4, V6] {
            let address = echo(family).await;
            paths.place(path, address).await;
            let stream = paths.here.connect(&paths.shop, address).await;
            let (mut read, mut write) = stream.into_split();
            let sent = data.clone();
            let sending = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut back = Vec::new();
            timeout(SOON, read.read_to_end(&mut back)).await.unwrap().unwrap();
            sending.await.unwrap();
            assert_eq!(Sha256::digest(&back), Sha256::digest(&data), "{path} {family}");

            let closed = until("the end is written down", || {
                let flows = paths.here.flows().into_iter();
                flows.rev().find(|f| {
                    f.kind == Kind::Closed
                        && f.destination_port == address.port()
                        && f.direction == Direction::Egress
                })
            })
            .await;
            let megabyte = Traffic {
                sent: 1 << 20,
                received: 1 << 20,
            };
            assert_eq!(
                (closed.traffic, closed.via),
                (Some(megabyte), via),
                "{path} {family}"
            );
            assert_eq!(
                (closed.verdict, &*closed.source.app_id),
                (Verdict::Forwarded, "shop")
            );
        }
    }
    let into = paths.there.flow(Kind::Connection, Direction::Ingress).await;
    assert_eq!((&*into.source.app_id, &*into.destination.app_id), ("shop", "far"));
    assert_eq!(into.rule.as_deref(), Some("allowed, authenticated"));
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let paths = paths().await;
    for path in 0..3 {
        let (mut near, mut far, _listener) = paths.pair(path, V4).await;
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(all(&mut far).await.unwrap(), b"question", "{path}");
        // Long after the one direction has ended.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        far.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        timeout(SOON, near.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(all(&mut near).await.unwrap(), b"", "{path}");

        // The one who was asked ends first.
        let (mut near, mut far, _listener) = paths.pair(path, V4).await;
        far.write_all(b"hello").await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(all(&mut near).await.unwrap(), b"hello", "{path}");
        near.write_all(b"bye").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(all(&mut far).await.unwrap(), b"bye", "{path}");
    }
    until("all have ended", || {
        (paths.here.capture.open() == 0).then_some(())
    })
    .await;
    assert_eq!(paths.there.capture.open(), 0);
}

#[tokio::test]
async fn who_is_asked_may_speak_first() {
    let paths = paths().await;
    for path in 0..3 {
        let (mut near, mut far, _listener) = paths.pair(path, V6).await;
        far.write_all(b"220 ready\r\n").await.unwrap();
        let mut greeting = [0; 11];
        timeout(SOON, near.read_exact(&mut greeting))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&greeting, b"220 ready\r\n", "{path}");
        ping(&mut near, &mut far).await;
    }
}

#[tokio::test]
async fn a_reset_stays_a_reset() {
    let paths = paths().await;
    for path in 0..3 {
        for far_resets in [false, true] {
            let (mut near, mut far, _listener) = paths.pair(path, V4).await;
            ping(&mut near, &mut far).await;
            let (resets, mut sees) = if far_resets { (far, near) } else { (near, far) };
            resets.set_zero_linger().unwrap();
            drop(resets);
            let seen = all(&mut sees).await.unwrap_err();
            assert_eq!(
                seen.kind(),
                std::io::ErrorKind::ConnectionReset,
                "{path} {far_resets}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_is_read_whole_although_the_question_was_not() {
    let paths = paths().await;
    for path in 0..3 {
        let (near, mut far, _listener) = paths.pair(path, V4).await;
        let (mut near_read, mut near_write) = near.into_split();
        // It never stops talking; the other answers and goes.
        let talking = tokio::spawn(async move { while near_write.write_all(&[1; 4096]).await.is_ok() {} });
        far.read_u8().await.unwrap();
        let answer = vec![7; 300_000];
        far.write_all(&answer).await.unwrap();
        far.shutdown().await.unwrap();
        // Reads on for a moment: closing at once would be a reset by its own kernel.
        let mut got = vec![0; answer.len()];
        timeout(SOON, near_read.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert!(got == answer, "{path}");
        drop(far);
        timeout(SOON, talking).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_can_not_be_reached_is_reset() {
    let paths = paths().await;
    for path in 0..3 {
        let (address, listener) = app(V4).await;
        drop(listener);
        paths.place(path, address).await;
        let mut stream = paths.here.connect(&paths.shop, address).await;
        assert!(all(&mut stream).await.is_err(), "{path}");
    }
}

fn small(socket: &TcpSocket) {
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
}

/// Writes until nothing more is taken for a while.
async fn fill(stream: &mut TcpStream) -> usize {
    let block = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_millis(500), stream.write(&block)).await {
        taken += n.unwrap();
        assert!(taken < 128 << 20, "no back-pressure");
    }
    taken
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_end_to_end() {
    let paths = paths().await;
    let window = Limits::default().stream_window as usize;
    let most = |file: &str| -> usize {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap();
        text.split_whitespace().last().unwrap().parse().unwrap()
    };
    let listen = TcpSocket::new_v4().unwrap();
    small(&listen);
    listen.bind(V4.parse().unwrap()).unwrap();
    let listener = listen.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    paths.place(1, address).await;
    let mut pairs = Vec::new();
    for _ in 0..2 {
        let socket = TcpSocket::new_v4().unwrap();
        small(&socket);
        let near = paths.here.connect_by(socket, &paths.shop, address, None).await;
        pairs.push((near, accept(&listener).await));
    }
    // One window, the kernel's buffers at the far agent's socket, and the small ones of all others.
    let bound = window + most("tcp_wmem") + (1 << 20);
    let (mut other_near, mut other_far) = pairs.pop().unwrap();
    let (mut near, mut far) = pairs.pop().unwrap();
    let taken = fill(&mut near).await;
    assert!(taken >= window, "only {taken}");
    assert!(taken <= bound, "{taken} bytes were taken, the bound is {bound}");
    let bound = bound + most("tcp_rmem");
    let back = fill(&mut far).await;
    assert!(back <= bound, "{back} bytes were taken, the bound is {bound}");
    // On the same tunnel, and not in its way.
    ping(&mut other_near, &mut other_far).await;
    assert_eq!(paths.here.dials(), 1);
    // All of it arrives once it is read.
    near.shutdown().await.unwrap();
    assert_eq!(all(&mut far).await.unwrap().len(), taken);
    far.shutdown().await.unwrap();
    assert_eq!(all(&mut near).await.unwrap().len(), back);
}

/// Four that are stuck have the whole window of their connection.
#[tokio::test]
async fn who_comes_after_many_that_are_stuck_is_not() {
    for near_reads in [false, true] {
        let paths = paths().await;
        let (address, listener) = app(V4).await;
        paths.place(1, address).await;
        let mut stuck = Vec::new();
        for _ in 0..6 {
            let near = paths.here.connect(&paths.shop, address).await;
            let far = accept(&listener).await;
            let (mut writes, keeps) = if near_reads { (far, near) } else { (near, far) };
            let filling = tokio::spawn(async move {
                fill(&mut writes).await;
                writes
            });
            stuck.push((filling, keeps));
        }
        let mut kept = Vec::new();
        for (filling, keeps) in stuck {
            kept.push((filling.await.unwrap(), keeps));
        }
        let mut near = paths.here.connect(&paths.shop, address).await;
        let mut far = accept(&listener).await;
        ping(&mut near, &mut far).await;
        assert_eq!(paths.here.dials(), 2, "{near_reads}");
    }
}

#[tokio::test]
async fn when_streams_run_out_there_is_a_second_connection() {
    let world = World::new();
    let limits = Limits {
        streams_per_connection: 2,
        ..Limits::default()
    };
    let here = world.node_with("n1", limits, CaptureLimits::default());
    let there = world.node("n2");
    let shop = world.workload(&here, "shop", &[]).await;
    let (address, listener) = app(V4).await;
    world.workload(&there, "far", &[address]).await;
    let mut open = Vec::new();
    for wanted in [1, 1, 2, 2, 3] {
        let near = here.connect(&shop, address).await;
        open.push((near, accept(&listener).await));
        assert_eq!(here.dials(), wanted);
    }
    for (near, far) in &mut open {
        ping(near, far).await;
    }
}

#[tokio::test]
async fn a_service_is_reached_at_the_backend_that_was_chosen() {
    let paths = paths().await;
    let (address, listener) = app(V4).await;
    paths.place(1, address).await;
    let (service, empty): (SocketAddr, SocketAddr) =
        ("10.96.0.1:80".parse().unwrap(), "10.96.0.2:80".parse().unwrap());
    paths
        .world
        .registry
        .services
        .lock()
        .insert(service, vec![address]);
    paths.world.registry.services.lock().insert(empty, Vec::new());
    // By the kernel, and by the agent.
    for target in [Some(address), None] {
        let socket = TcpSocket::new_v4().unwrap();
        let mut near = paths.here.connect_by(socket, &paths.shop, service, target).await;
        let mut far = accept(&listener).await;
        ping(&mut near, &mut far).await;
    }
    let flow = paths.here.flow(Kind::Connection, Direction::Egress).await;
    assert_eq!(
        (&*flow.destination.app_id, flow.destination_port),
        ("far", address.port())
    );
    let mut nobody = paths.here.connect(&paths.shop, empty).await;
    assert!(all(&mut nobody).await.is_err());
    let flow = paths.here.flow(Kind::Connection, Direction::Egress).await;
    assert_eq!(flow.drop_reason, Some(weft_flows::DropReason::NoEndpoint));
}
