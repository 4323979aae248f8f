//! What a request costs that crosses a tunnel as plain TCP: an app, the two agents and a load
//! generator on threads of their own, and the CPU time of both agents' threads per request.
//!
//! ```text
//! cargo run --release -p weft-capture --example tunnel -- [connections] [seconds]
//! ```
//!
//! A request has 128 bytes, its answer 1 KiB; connections stay open. Printed per path: requests per
//! second, p50 and p99, and CPU per request; the last line is `cpu-us-per-request <number>` of the
//! path through the tunnel.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/world/mod.rs"]
mod world;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use world::World;

const REQUEST: usize = 128;
const ANSWER: usize = 1024;

/// A thread with a runtime of its own: what it reports, and its CPU time.
struct Thread {
    cpu: Arc<AtomicU64>,
    address: SocketAddr,
}

fn thread<F, R, K>(name: &str, start: F) -> Thread
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = (SocketAddr, K)>,
{
    let cpu = Arc::new(AtomicU64::new(0));
    let (report, reported) = mpsc::channel();
    let used = cpu.clone();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let (address, _kept) = start().await;
            report.send(address).unwrap();
            loop {
                used.store(cpu_microseconds(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    };
    std::thread::Builder::new().name(name.into()).spawn(run).unwrap();
    Thread {
        cpu,
        address: reported.recv().unwrap(),
    }
}

/// Of this thread, user and system (schedstat counts it in nanoseconds).
fn cpu_microseconds() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1000
}

fn app() -> Thread {
    thread("app", || async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let mut request = [0; REQUEST];
                    while socket.read_exact(&mut request).await.is_ok() {
                        if socket.write_all(&[b'x'; ANSWER]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (address, ())
    })
}

/// Requests on so many connections for so long: their latencies, in order.
fn load(to: SocketAddr, connections: usize, time: Duration) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let worker = |stop: Arc<AtomicBool>| async move {
            let mut socket = TcpStream::connect(to).await.unwrap();
            socket.set_nodelay(true).unwrap();
            let (mut answer, mut taken) = ([0; ANSWER], Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                socket.write_all(&[b'q'; REQUEST]).await.unwrap();
                socket.read_exact(&mut answer).await.unwrap();
                taken.push(since.elapsed());
            }
            taken
        };
        let workers: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(worker(stop.clone())))
            .collect();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await.unwrap());
        }
        all.sort_unstable();
        all
    })
}

fn measure(name: &str, to: SocketAddr, agents: &[&Thread], connections: usize, time: Duration) -> f64 {
    load(to, connections, Duration::from_millis(300));
    std::thread::sleep(Duration::from_millis(50));
    let cpu = || -> u64 { agents.iter().map(|a| a.cpu.load(Ordering::Relaxed)).sum() };
    let before = cpu();
    let latencies = load(to, connections, time);
    std::thread::sleep(Duration::from_millis(50));
    let used = (cpu() - before) as f64 / latencies.len() as f64;
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_micros();
    println!(
        "{name:10} {connections:4} connections {:8.0} requests/s  p50 {:5} µs  p99 {:6} µs  {used:6.1} CPU µs per request",
        latencies.len() as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99),
    );
    used
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let connections = arguments.next().unwrap_or(16) as usize;
    let time = Duration::from_secs(arguments.next().unwrap_or(5));
    let world = Arc::new(World::new());
    let app = app();
    let at = app.address;
    let there = world.clone();
    let far = thread("far", move || async move {
        let node = there.node("n2");
        there.workload(&node, "far", &[at]).await;
        (at, node)
    });
    let near = thread("near", move || async move {
        let node = world.node("n1");
        let shop = world.workload(&node, "shop", &[]).await;
        (node.listen(&shop, at).await, node)
    });
    measure("direct", at, &[], connections, time);
    let used = measure("two agents", near.address, &[&near, &far], connections, time);
    println!("cpu-us-per-request {used:.1}");
}
