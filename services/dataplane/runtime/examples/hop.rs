//! What one hop costs: an app, the runtime and a load generator on threads of their own, and the
//! CPU time of the runtime's threads per request.
//!
//! ```text
//! cargo run --release -p weft-runtime --example hop -- [connections] [seconds]
//! ```
//!
//! Three paths: to the app without us, through one agent, through two agents and a tunnel between.

#![allow(clippy::unwrap_used)]

#[path = "../../tunnel/tests/support/mod.rs"]
mod certs;

use certs::{Ca, spiffe};
use futures::{FutureExt, future::BoxFuture};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_drain::Watcher;
use weft_flows::{FlowLog, Party, Proof};
use weft_model::NumericIdentity;
use weft_runtime::{
    AppChannel, AppContext, AppDialer, AppSpec, Decision, Directory, Endpoint, Environment, Judge, Place,
    Question, Runtime, RuntimeLimits, Target, Tunnels,
};
use weft_tls::PeerIdentity;
use weft_tunnel::{Client, Dialer, Limits, Local, serve};

struct Everybody {
    cart: OnceLock<Arc<Endpoint>>,
    target: OnceLock<Arc<Target>>,
    shop: Arc<Party>,
}

impl Directory for Everybody {
    fn resolve(&self, _: &str, _: &str, app_id: &str) -> Option<Arc<Target>> {
        (app_id == "cart").then(|| self.target.get().cloned()).flatten()
    }
    fn local(&self, _: &str) -> Option<Arc<Endpoint>> {
        self.cart.get().cloned()
    }
    fn tunnel_peer(&self, _: &PeerIdentity, _: Option<&str>) -> Option<Arc<Party>> {
        Some(self.shop.clone())
    }
}

struct Allow(Arc<str>);

impl Judge for Allow {
    fn judge(&self, _: &Question<'_>) -> Decision {
        Decision::allow(Some(self.0.clone()))
    }
}

struct Loopback;

impl AppDialer for Loopback {
    fn connect(&self, endpoint: Arc<Endpoint>) -> BoxFuture<'static, io::Result<TcpStream>> {
        let Place::Local { app_port } = *endpoint.place() else {
            return futures::future::pending().boxed();
        };
        TcpStream::connect(("127.0.0.1", app_port)).boxed()
    }
}

impl Dialer for Loopback {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(to).boxed()
    }
}

fn party(app_id: &str, node: &str) -> Arc<Party> {
    Arc::new(Party {
        namespace: "default".into(),
        workload: format!("{app_id}-1").into(),
        app_id: app_id.into(),
        identity: NumericIdentity(300),
        spiffe_id: spiffe(app_id).into(),
        address: Some([10, 0, 0, 1].into()),
        node: node.into(),
    })
}

/// A thread with a runtime of its own. Returns what it reports and a way to read its CPU time.
struct Thread {
    cpu: Arc<AtomicU64>,
    address: SocketAddr,
}

fn thread<F, R>(name: &str, start: F) -> Thread
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = SocketAddr>,
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
            report.send(start().await).unwrap();
            loop {
                let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
                let total = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
                used.store(total as u64, Ordering::Relaxed);
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

fn app() -> Thread {
    thread("app", || async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                let service = service_fn(|_| async {
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(&[b'x'; 1024]));
                    Ok::<_, io::Error>(hyper::Response::new(body))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        address
    })
}

/// An agent with shop as its caller; cart is at `place`. Returns the HTTP API's address, or the
/// tunnel's when it is the callee's.
fn agent(node: &'static str, place: Place, ca: Arc<Ca>, callee: bool, drain: Watcher) -> Thread {
    thread(node, move || async move {
        let cart_node = if matches!(place, Place::Local { .. }) {
            node
        } else {
            "n2"
        };
        let cart = Endpoint::new("cart/1".into(), party("cart", cart_node), place);
        let everybody = Everybody {
            cart: OnceLock::new(),
            target: OnceLock::new(),
            shop: party("shop", "n1"),
        };
        everybody.cart.set(cart.clone()).unwrap();
        everybody.target.set(Target::new(vec![cart])).unwrap();
        let trust = ca.trust_with(weft_tls::SystemClock::shared());
        let client = Client::new(trust.clone(), Arc::new(Loopback), Limits::default());
        let runtime = Runtime::new(
            Environment {
                directory: Arc::new(everybody),
                judge: Arc::new(Allow("CiliumNetworkPolicy default/cart ingress[0]".into())),
                apps: Arc::new(Loopback),
                tunnels: Arc::new(Tunnels::new(client)),
                flows: FlowLog::new(node),
            },
            RuntimeLimits::default(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        if callee {
            let (handler, local) = (
                runtime.tunnel_handler(drain.clone()),
                Local::One(ca.cell("cart", node)),
            );
            tokio::spawn(serve(listener, local, trust, Limits::default(), handler, drain));
        } else {
            let context = AppContext::new(AppSpec {
                workload: "shop/1".into(),
                party: party("shop", node),
                proof: Proof::PodListener,
                token: None,
                svid: Some(ca.cell("shop", node)),
                channel: AppChannel::default(),
                health: Arc::default(),
            });
            tokio::spawn(runtime.serve_listener(context, listener, drain));
        }
        address
    })
}

/// Keep-alive requests on so many connections for so long: how many, and their latencies.
fn load(to: SocketAddr, target: &str, connections: usize, time: Duration) -> (u64, Vec<Duration>) {
    let request: Arc<str> =
        format!("GET {target} HTTP/1.1\r\nhost: localhost:3500\r\nuser-agent: hop\r\naccept: */*\r\n\r\n")
            .into();
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let workers: Vec<_> = (0..connections)
            .map(|_| {
                let (request, stop) = (request.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut socket = TcpStream::connect(to).await.unwrap();
                    socket.set_nodelay(true).unwrap();
                    let (mut buffer, mut taken) = (vec![0; 8192], Vec::new());
                    while !stop.load(Ordering::Relaxed) {
                        let since = Instant::now();
                        socket.write_all(request.as_bytes()).await.unwrap();
                        let mut got = 0;
                        loop {
                            got += socket.read(&mut buffer[got..]).await.unwrap();
                            let head = buffer[..got].windows(4).position(|w| w == b"\r\n\r\n");
                            if head.is_some_and(|head| got >= head + 4 + 1024) {
                                break;
                            }
                        }
                        assert!(buffer.starts_with(b"HTTP/1.1 200"));
                        taken.push(since.elapsed());
                    }
                    taken
                })
            })
            .collect();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await.unwrap());
        }
        all.sort_unstable();
        (all.len() as u64, all)
    })
}

fn measure(name: &str, to: SocketAddr, target: &str, agents: &[&Thread], connections: usize, time: Duration) {
    load(to, target, connections, Duration::from_millis(300));
    std::thread::sleep(Duration::from_millis(50));
    let cpu = || -> u64 { agents.iter().map(|a| a.cpu.load(Ordering::Relaxed)).sum() };
    let before = cpu();
    let (count, latencies) = load(to, target, connections, time);
    std::thread::sleep(Duration::from_millis(50));
    let used = cpu() - before;
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_micros();
    println!(
        "{name:12} {connections:4} connections {:8.0} requests/s  p50 {:5} µs  p99 {:6} µs  {:6.1} CPU µs per request",
        count as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99),
        used as f64 / count as f64,
    );
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let connections = arguments.next().unwrap_or(16) as usize;
    let time = Duration::from_secs(arguments.next().unwrap_or(5));
    let ca = Arc::new(Ca::new());
    let (_trigger, drain) = weft_drain::channel();
    let app = app();
    let here = Place::Local {
        app_port: app.address.port(),
    };
    let one = agent("n0", here.clone(), ca.clone(), false, drain.clone());
    let far = agent("n2", here, ca.clone(), true, drain.clone());
    let near = agent("n1", Place::Remote { tunnel: far.address }, ca, false, drain);
    let target = "/v1.0/invoke/cart/method/checkout";
    measure("direct", app.address, "/checkout", &[], connections, time);
    measure("one agent", one.address, target, &[&one], connections, time);
    measure(
        "two agents",
        near.address,
        target,
        &[&near, &far],
        connections,
        time,
    );
}
