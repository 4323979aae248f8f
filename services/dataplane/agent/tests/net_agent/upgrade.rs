//! Another build of the agent takes over on a node, under load: what is direct goes on and is judged as
//! before, and no request is lost.

use crate::{
    rig::{Rig, SOON, ask, ask_until},
    shared::Scene,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use weft_testnet::Namespace;

const POLICY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: cart}}
  ingress:
  - fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]
"#;
const PORT: u16 = 7000;
const CLIENTS: usize = 16;
/// So long a refused connect is waited for: a packet that is dropped is not answered.
const REFUSED_AFTER: Duration = Duration::from_millis(150);
/// The note that says which build a program is: its name's length, the id's, its kind, its name.
const NOTE: [u8; 16] = [4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0];

/// Where the id is in a program's file.
fn build_id(program: &[u8]) -> std::ops::Range<usize> {
    let at = program.windows(NOTE.len()).position(|w| w == NOTE);
    let start = at.expect("the program does not say which build it is") + NOTE.len();
    start..start + 20
}

/// What is done over and over until it is stopped; it panics when it goes wrong.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start<W: FnMut(u64) + Send + 'static>(
        from: &Namespace,
        many: usize,
        work: impl Fn(usize) -> W,
    ) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..many).map(|n| {
            let (from, halt, count, mut work) = (from.clone(), stop.clone(), done.clone(), work(n));
            std::thread::spawn(move || {
                let all = || {
                    let mut turn = 0;
                    while !halt.load(Ordering::Relaxed) {
                        work(turn);
                        turn += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                };
                from.run(all).unwrap();
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            done,
        }
    }

    /// Waits until `more` have been done from now on; fails as soon as one went wrong.
    fn goes_on(&self, more: u64) {
        let from = self.done.load(Ordering::Relaxed);
        let begun = Instant::now();
        while self.done.load(Ordering::Relaxed) < from + more {
            assert!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "the load went wrong"
            );
            assert!(begun.elapsed() < SOON, "the load does not go on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.done.load(Ordering::Relaxed)
    }
}

fn echo(at: &Namespace) {
    let listener: TcpListener = at.listen(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn exchange(stream: &mut TcpStream, text: &str) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text.as_bytes());
}

/// A request by the agent, with an id of its own.
fn request(client: usize, turn: u64) {
    let method = format!("item-{client}-{turn}");
    let mut stream = TcpStream::connect("127.0.0.1:3500").unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let text = crate::rig::request("cart", &method);
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("for /{method}")),
        "{method}: {answer:?}"
    );
}

fn build_of(pid: i32) -> Vec<u8> {
    let program = std::fs::read(format!("/proc/{pid}/exe")).unwrap();
    program[build_id(&program)].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_build_of_the_agent_takes_over_under_load() {
    let built = std::fs::read(env!("CARGO_BIN_EXE_weft-agent")).unwrap();
    let mut other = built.clone();
    for byte in &mut other[build_id(&built)] {
        *byte ^= 0xff;
    }
    let rig = Rig::new(&[("cart.yaml", POLICY)], &["n1"]);
    let node = &rig.nodes[0];
    let pods = ["shop", "cart", "thief"].map(|name| node.node.pod(name).unwrap());
    let [shop, cart, thief] = &pods;
    echo(cart.namespace());
    for pod in &pods {
        node.add_pod(pod).await;
    }
    ask_until("cart asked by shop", || ask(shop.namespace(), "cart", "hello")).await;
    let to = SocketAddr::new(cart.v4().into(), PORT);
    let direct = Load::start(shop.namespace(), 1, |_| {
        let mut stream = None;
        move |turn| {
            let stream = stream.get_or_insert_with(|| TcpStream::connect_timeout(&to, SOON).unwrap());
            exchange(stream, &format!("{turn:08}"));
        }
    });
    let opened = Load::start(shop.namespace(), 1, |_| {
        move |turn| {
            exchange(
                &mut TcpStream::connect_timeout(&to, SOON).unwrap(),
                &format!("{turn:08}"),
            )
        }
    });
    let refused = Load::start(thief.namespace(), 1, |_| {
        move |_| match TcpStream::connect_timeout(&to, REFUSED_AFTER) {
            Err(e) if e.kind() == ErrorKind::TimedOut => {}
            other => panic!("the thief connects: {other:?}"),
        }
    });
    let requests = Load::start(shop.namespace(), CLIENTS, |client| {
        move |turn| request(client, turn)
    });
    let go_on = || {
        direct.goes_on(50);
        opened.goes_on(20);
        refused.goes_on(2);
        requests.goes_on(300);
    };
    let begun = Instant::now();
    go_on();
    // There, back, and there again.
    for program in [&other, &built, &other] {
        let old = node.agent();
        let expected = program[build_id(program)].to_vec();
        assert_ne!(build_of(old), expected);
        node.install_agent(program);
        node.replace_agent();
        let deadline = Instant::now() + SOON;
        while node.agent_now().is_none_or(|now| now == old) || Path::new(&format!("/proc/{old}")).exists() {
            assert!(Instant::now() < deadline, "the old agent stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(
            build_of(node.agent()),
            expected,
            "another build than was installed"
        );
        go_on();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let counts = [direct.stop(), opened.stop(), refused.stop(), requests.stop()];
    println!(
        "exchanges on one connection, connects, refused connects, requests: {counts:?} in {seconds:.1} s"
    );
}

/// A request from outside, with an id of its own, on a connection of its own.
fn enter(gateway: SocketAddr, client: usize, turn: u64) {
    let path = format!("/{client}-{turn}");
    let mut stream = TcpStream::connect_timeout(&gateway, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("GET {path} HTTP/1.1")),
        "{path}: {answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_at_a_gateway_fails_while_agents_take_over() {
    // By the gateway, the runtime of one shared app and that of another to pods of both nodes.
    let scene = Scene::new(&[]).await;
    scene.ready().await;
    let node = &scene.rig.nodes[0];
    let gateway = SocketAddr::new(node.node.v4().into(), 80);
    let requests = Load::start(scene.outside.namespace(), CLIENTS, |client| {
        move |turn| enter(gateway, client, turn)
    });
    requests.goes_on(200);
    for _ in 0..4 {
        let old = node.agent();
        node.replace_agent();
        let deadline = Instant::now() + SOON;
        while node.agent_now().is_none_or(|now| now == old) || Path::new(&format!("/proc/{old}")).exists() {
            assert!(Instant::now() < deadline, "the old agent stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        requests.goes_on(200);
    }
    println!("{} requests", requests.stop());
}
