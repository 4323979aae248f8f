//! What readers that do not read cost an agent. Alone in its process, whose memory it looks at.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use weft_tunnel::Limits;
use world::{World, accept, all};

const CONNECTIONS: usize = 24;

/// Resident memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn small() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket
}

/// Writes until nothing more is taken for a while.
async fn fill(mut stream: TcpStream) -> (TcpStream, usize) {
    let block = vec![7; 64 * 1024];
    let mut taken = 0;
    while let Ok(n) = timeout(Duration::from_secs(1), stream.write(&block)).await {
        taken += n.unwrap();
    }
    (stream, taken)
}

#[tokio::test]
async fn readers_that_do_not_read_cost_no_more_than_the_connections_window() {
    let world = World::new();
    let (here, there) = (world.node("n1"), world.node("n2"));
    let shop = world.workload(&here, "shop", &[]).await;
    let listen = small();
    listen.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listen.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    world.workload(&there, "far", &[address]).await;
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        let near = here.connect_by(small(), &shop, address, None).await;
        pairs.push((near, accept(&listener).await));
    }
    assert_eq!(here.dials(), 1);
    let before = resident();
    let filling = pairs.into_iter().map(|(near, far)| {
        let filling = tokio::spawn(fill(near));
        async move { (filling.await.unwrap(), far) }
    });
    let filled = futures::future::join_all(filling).await;
    let grown = resident().saturating_sub(before);
    let taken: usize = filled.iter().map(|((_, taken), _)| taken).sum();
    let window = Limits::default().connection_window as usize;
    assert!(taken > window, "only {taken} bytes were taken: nothing was stuck");
    // Both agents are in this process. What one has queued the other has not received, so the window
    // counts once; as much again for the allocator and for records half written.
    assert!(
        grown <= 2 * window + (8 << 20),
        "{grown} bytes more for {taken} taken"
    );
    // All of it comes through once all are read. One alone would not do: what is stuck has the whole
    // window of the connection.
    let reading = filled.into_iter().map(|((mut near, taken), mut far)| async move {
        near.shutdown().await.unwrap();
        assert_eq!(all(&mut far).await.unwrap().len(), taken);
    });
    futures::future::join_all(reading).await;
}
