//! Root, issuer and all certificates replaced while two nodes are busy: each with both processes,
//! their pods' requests through tunnels.

use crate::rig::{Rig, Running, SOON, ask, ask_until};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use weft_demo::load::{Outcome, Plan};
use weft_identity::CaConfig;
use weft_proto::weft::identity::v1::{
    Authority, GetAuthorityRequest, GetAuthorityResponse, RotateRequest, RotateTarget,
    admin_client::AdminClient,
};
use weft_testnet::Pod;
use weft_tls::{PeerIdentity, root_sha256};

/// Offered all the time; what comes about depends on the machine.
const RATE: u32 = 1300;
/// Requests for each second that the rotation takes: on a machine that is too busy for so many in that
/// time, issuers and certificates are replaced again and again until there were as many.
const PER_SECOND: f64 = 1000.0;
/// Between two of these.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest that a busy machine is waited for.
const BUSY: Duration = Duration::from_secs(600);
/// Until nothing needs the old root: certificates of a minute, and what is kept beyond.
const ROTATED: Duration = Duration::from_secs(300);

/// Requests of a pod to an app on another node.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Outcome>,
}

impl Load {
    fn start(from: &Pod, app: &str) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let plan = Plan {
            address: ([127, 0, 0, 1], 3500).into(),
            path: format!("/v1.0/invoke/{app}/method/echo?id="),
            expect: vec![format!("{app}askedby{}ofdefault", from.name())],
            connections: 24,
            rate: RATE,
            reconnect: false,
            answerers: Vec::new(),
        };
        let (namespace, stopped, counted) = (from.namespace().clone(), stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let run = || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(weft_demo::load::run_counted(plan, stopped, counted))
            };
            namespace.run(run).unwrap()
        });
        Self { stop, done, thread }
    }

    /// How many requests are done.
    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn end(self) -> Outcome {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// What the authority says of itself.
pub async fn shown(rig: &Rig) -> GetAuthorityResponse {
    let mut admin = AdminClient::new(rig.identity());
    admin
        .get_authority(GetAuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
}

/// An order to the authority.
pub async fn rotate(rig: &Rig, target: RotateTarget) {
    let target = target.into();
    let mut admin = AdminClient::new(rig.identity());
    admin.rotate(RotateRequest { target }).await.unwrap();
}

fn active(all: &[Authority]) -> &Authority {
    all.iter().find(|a| a.state == "active").unwrap()
}

/// Waits for what others bring about.
pub async fn until(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The roots that a node verifies by, as it keeps them.
fn roots(node: &Running) -> Vec<String> {
    let text = std::fs::read(node.data_dir().join("identity/bundle.pem")).unwrap();
    let roots = CertificateDer::pem_slice_iter(&text).map(|root| hex(&root_sha256(&root.unwrap())));
    roots.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The chain of a workload's tunnel certificate, as its node keeps it.
pub fn tunnel_chain(node: &Running, app: &str) -> Vec<CertificateDer<'static>> {
    let id = format!("spiffe://cluster.local/ns/default/{app}");
    let files = std::fs::read_dir(node.data_dir().join("svids")).unwrap();
    // A magic line and a checksum come before the content.
    const HEAD: usize = 8 + 32;
    let chains = files.filter_map(|file| {
        let content = std::fs::read(file.unwrap().path()).ok()?;
        let stored: Value = serde_json::from_slice(content.get(HEAD..)?).ok()?;
        let chain = stored["chain"].as_array()?.iter();
        let chain = chain.map(|der| Some(CertificateDer::from(STANDARD.decode(der.as_str()?).ok()?)));
        chain.collect::<Option<Vec<_>>>()
    });
    let named = |chain: &Vec<CertificateDer<'static>>| leaf(chain).id.as_str() == id;
    chains.into_iter().find(named).expect("it has a certificate")
}

pub fn leaf(chain: &[CertificateDer<'static>]) -> PeerIdentity {
    PeerIdentity::from_leaf(&chain[0]).unwrap()
}

/// How many tunnels an agent opened, and how many attempts failed.
pub fn tunnels(node: &Running) -> (u64, u64) {
    let mut stream = node.node.namespace().connect("127.0.0.1:7314").unwrap();
    let get = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(get).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let count = |outcome: &str| {
        let line = format!("weft_dataplane_tunnels_opened_total{{outcome=\"{outcome}\"}} ");
        let count = text.lines().find_map(|l| l.strip_prefix(&line));
        count
            .unwrap_or_else(|| panic!("no {line} in {text}"))
            .parse()
            .unwrap()
    };
    (count("done"), count("failed"))
}

/// A new issuer, and by it the certificates of all; answers which issuer it is.
async fn renew(rig: &Rig, ends: &[(&Running, &str)]) -> String {
    rotate(rig, RotateTarget::Issuer).await;
    rotate(rig, RotateTarget::Leaves).await;
    let shown = shown(rig).await;
    let issuer = active(&shown.issuers);
    until("both ends' certificates by the new issuer", SOON, async || {
        let by = |(node, app): &(&Running, &str)| tunnel_chain(node, app)[1].to_vec();
        ends.iter().all(|end| by(end) == issuer.certificate_der)
    })
    .await;
    issuer.sha256.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_and_issuer_change_under_load_and_no_request_fails() {
    let ca = CaConfig {
        root_ttl_seconds: 3600,
        // Replaced at half of its life, by itself.
        issuer_ttl_seconds: 180,
        service_ttl_seconds: 60,
        node_ttl_seconds: 60,
        workload_ttl_seconds: 60,
        ..CaConfig::default()
    };
    let rig = Rig::with_authority(&[], &["n1", "n2"], ca);
    let (near, far) = (&rig.nodes[0], &rig.nodes[1]);
    let (shop, cart) = (near.node.pod("shop").unwrap(), far.node.pod("cart").unwrap());
    near.add_pod(&shop).await;
    far.add_pod(&cart).await;
    ask_until("cart asked by shop", || ask(shop.namespace(), "cart", "first")).await;

    let first = shown(&rig).await;
    let old_root = active(&first.roots).sha256.clone();
    let ends = [(near, "shop"), (far, "cart")];
    let serials = || ends.map(|(node, app)| leaf(&tunnel_chain(node, app)).serial);
    let before = serials();
    assert!(ends.iter().all(|(node, _)| roots(node) == [old_root.clone()]));
    let begun = tunnels(near);
    let load = Load::start(&shop, "cart");

    let rotating = Instant::now();
    rotate(&rig, RotateTarget::Root).await;
    let (mut phases, mut issuers) = (BTreeSet::new(), BTreeSet::new());
    until("the old root to be needed no more", ROTATED, async || {
        let now = shown(&rig).await;
        issuers.insert(active(&now.issuers).sha256.clone());
        let done = now.phase == "none" && active(&now.roots).sha256 != old_root;
        phases.insert(now.phase);
        done
    })
    .await;
    assert!(phases.contains("retiring"), "{phases:?}");
    // The issuer once more by order, and then everything that it or others signed.
    issuers.insert(renew(&rig, &ends).await);
    let last = shown(&rig).await;
    let new_root = active(&last.roots);
    until("the old root to be gone from both nodes", SOON, async || {
        ends.iter()
            .all(|(node, _)| roots(node) == [new_root.sha256.clone()])
    })
    .await;
    let took = rotating.elapsed();
    let enough = (took.as_secs_f64() * PER_SECOND) as u64;
    let mut next = Instant::now();
    until("as many requests as there are to be", BUSY, async || {
        if load.done() < enough && next <= Instant::now() {
            issuers.insert(renew(&rig, &ends).await);
            next = Instant::now() + PAUSE;
        }
        load.done() >= enough
    })
    .await;
    // And some more on what is new alone.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let outcome = load.end();
    let (done, failed) = tunnels(near);
    println!(
        "{} in {} s, {} of them rotation; {} tunnels opened meanwhile, {} issuers",
        outcome.line(),
        outcome.ran.as_secs(),
        took.as_secs(),
        done - begun.0,
        issuers.len()
    );
    assert_eq!((outcome.good, outcome.failures), (outcome.sent, vec![]));
    assert!(outcome.sent >= enough, "{} of {enough}", outcome.sent);
    assert_eq!(failed, begun.1, "handshakes failed");
    // At least one for each certificate that replaced another at one of the ends.
    assert!(done - begun.0 >= 3, "{done} tunnels");
    assert!(issuers.len() >= 3, "{issuers:?}");
    let after = serials();
    assert!(
        before.iter().zip(&after).all(|(a, b)| a != b),
        "{before:?} {after:?}"
    );
    assert_ne!(new_root.sha256, old_root);
}
