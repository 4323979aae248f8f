//! Roots, issuers and members' certificates replaced while members talk to each other. Lifetimes
//! are short and the clock runs fast; it waits for who is late, so that only what is wrong fails.

use crate::rig::{NOW, Rig, config, td};
use rustls_pki_types::ServerName;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_enroll::Member;
use weft_identity::{CaConfig, Config, Kind};
use weft_proto::weft::identity::v1::{
    AckBundleRequest, GetAuthorityRequest, GetAuthorityResponse, RotateRequest, RotateTarget,
    WatchBundleRequest, admin_client::AdminClient, trust_client::TrustClient,
};
use weft_tls::{ClientAuth, Expect, ManualClock, client_config, root_sha256, server_config};

const LEAF: u64 = 2000;

fn short_lived(dir: &TempDir) -> Config {
    Config {
        ca: CaConfig {
            root_ttl_seconds: 40 * LEAF,
            issuer_ttl_seconds: 6 * LEAF,
            service_ttl_seconds: LEAF,
            node_ttl_seconds: LEAF,
            workload_ttl_seconds: LEAF,
            ..CaConfig::default()
        },
        ..config(dir)
    }
}

async fn short_lived_rig() -> Rig {
    let dir = TempDir::new().unwrap();
    Rig::configured(short_lived(&dir), dir, ManualClock::at(NOW)).await
}

async fn shown(rig: &Rig) -> GetAuthorityResponse {
    AdminClient::new(rig.local())
        .get_authority(GetAuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
}

async fn rotate(rig: &Rig, target: RotateTarget) -> String {
    let request = RotateRequest {
        target: target.into(),
    };
    let reply = AdminClient::new(rig.local()).rotate(request).await.unwrap();
    reply.into_inner().phase
}

/// Lets time pass while `going` says so, never so fast that a certificate runs out.
async fn run_clock(clock: &ManualClock, members: &[&Member], mut going: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(240);
    while going().await {
        assert!(tokio::time::Instant::now() < deadline, "it takes too long");
        let now = weft_tls::Now::unix_seconds(clock);
        let ends = members
            .iter()
            .filter_map(|m| m.svid.get())
            .map(|s| s.identity().not_after);
        if ends.min().is_none_or(|end| end > now + LEAF / 4) {
            clock.advance(Duration::from_secs(20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Echoes eight bytes at a time to members.
pub async fn serve(member: &Member) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = server_config(
        Arc::new(member.svid.clone()),
        &member.trust,
        ClientAuth::Required,
        &[],
    );
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                let mut bytes = [0u8; 8];
                while tls.read_exact(&mut bytes).await.is_ok() {
                    if tls.write_all(&bytes).await.is_err() || tls.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// One connection with so many requests, each answered with its own number.
pub async fn talk(from: &Member, to: std::net::SocketAddr, requests: u64) -> std::io::Result<()> {
    let config = client_config(Some(&from.svid), &from.trust, Expect::Member, &[]).unwrap();
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::try_from("weft").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    for _ in 0..requests {
        let sent: [u8; 8] = rand::random();
        tls.write_all(&sent).await?;
        tls.flush().await?;
        let mut answered = [0u8; 8];
        tls.read_exact(&mut answered).await?;
        assert_eq!(answered, sent);
    }
    tls.shutdown().await
}

/// Members that talk all the time, and what became of it.
struct Load {
    stop: Arc<AtomicBool>,
    handshakes: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

const REQUESTS: u64 = 20;

impl Load {
    async fn start(members: &[Member]) -> Self {
        let (stop, handshakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let addresses = futures::future::join_all(members.iter().map(serve)).await;
        for (i, member) in members.iter().enumerate() {
            for k in 0..8 {
                let (member, stop, handshakes) = (member.clone(), stop.clone(), handshakes.clone());
                let to = addresses[(i + 1 + k % (members.len() - 1)) % members.len()];
                tasks.spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        talk(&member, to, REQUESTS).await.unwrap();
                        handshakes.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        }
        Self {
            stop,
            handshakes,
            tasks,
        }
    }

    fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::SeqCst)
    }

    /// How many handshakes there were; every task's failure is a panic.
    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.handshakes.load(Ordering::SeqCst)
    }
}

fn issuer(member: &Member) -> Vec<u8> {
    member.svid.get().unwrap().chain()[1].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_and_issuer_change_under_load_and_no_handshake_fails() {
    let rig = short_lived_rig().await;
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[]).await;
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let (policy, _d3) = rig.join(Kind::Service, "policy", &[]).await;
    let members = [n1.clone(), n2.clone()];
    let first_root = rig.handle.root_sha256();
    let load = Load::start(&members).await;
    let (started, all) = (tokio::time::Instant::now(), [&n1, &n2, &policy]);
    let mut seen = BTreeSet::from([issuer(&n1)]);

    assert_eq!(rotate(&rig, RotateTarget::Root).await, "distributing");
    let mut phases = BTreeSet::new();
    run_clock(&rig.clock, &all, async || {
        let phase = shown(&rig).await.phase;
        let over = phase == "none" && rig.handle.root_sha256() != first_root;
        phases.insert(phase);
        seen.insert(issuer(&n1));
        !over
    })
    .await;
    assert!(phases.contains("retiring"));
    let roots = |m: &Member| m.trust.bundle().roots.iter().map(root_sha256).collect::<Vec<_>>();
    let heard = async {
        while roots(&n1) != [rig.handle.root_sha256()] || roots(&n2) != [rig.handle.root_sha256()] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heard)
        .await
        .unwrap();

    // The issuer by itself at half of its life, and once more by order.
    let before = issuer(&n1);
    run_clock(&rig.clock, &all, async || {
        seen.insert(issuer(&n1));
        issuer(&n1) == before || issuer(&n2) == before
    })
    .await;
    rotate(&rig, RotateTarget::Issuer).await;
    let before = issuer(&n1);
    // Everything at once, without waiting for half of a life.
    rotate(&rig, RotateTarget::Leaves).await;
    let renewed = async {
        while issuer(&n1) == before || issuer(&n2) == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed)
        .await
        .unwrap();
    seen.insert(issuer(&n1));
    let enough = load.handshakes() + 50;
    let more = async {
        while load.handshakes() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), more).await.unwrap();
    let handshakes = load.end().await;
    let per_second = (handshakes * REQUESTS) as f64 / started.elapsed().as_secs_f64();
    println!(
        "{handshakes} handshakes, {per_second:.0} requests/s, {} issuers",
        seen.len()
    );
    assert!(seen.len() >= 4, "{} issuers", seen.len());
    assert!(handshakes > 200, "{handshakes}");
}

#[tokio::test]
async fn nothing_is_signed_under_a_root_that_a_connected_member_does_not_know() {
    let rig = short_lived_rig().await;
    let (slow, drain) = rig.join(Kind::Node, "slow", &[]).await;
    drain.drain(Duration::from_secs(5)).await;
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[]).await;
    // A member that follows the bundle and does not say that it took it over.
    let mut trust = TrustClient::new(rig.channel(Some(&slow.svid)));
    let request = WatchBundleRequest { held_version: 1 };
    let mut stream = trust.watch_bundle(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let before = rig.handle.root_sha256();
    assert_eq!(rotate(&rig, RotateTarget::Root).await, "distributing");
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.bundle.as_ref().unwrap().roots_der.len(), 2);
    let mut version = n1.trust.subscribe();
    tokio::time::timeout(Duration::from_secs(20), version.wait_for(|v| *v == 2))
        .await
        .unwrap()
        .unwrap();
    // However long it takes. What is made meanwhile is under the old root.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(rig.handle.root_sha256(), before);
    }
    let status = shown(&rig).await;
    assert_eq!((status.phase.as_str(), status.members), ("distributing", 2));
    assert_eq!(status.waiting_for, td().node("slow").unwrap().to_string());
    let (late, _d2) = rig.join(Kind::Node, "late", &[]).await;
    assert_eq!(issuer(&late), issuer(&n1));

    // Somebody else can not say it in its place.
    let ack = AckBundleRequest {
        watch_id: first.watch_id,
        version: 2,
    };
    let forged = TrustClient::new(rig.channel(Some(&n1.svid)))
        .ack_bundle(ack)
        .await;
    assert_eq!(forged.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(shown(&rig).await.phase, "distributing");
    trust.ack_bundle(ack).await.unwrap();
    let active = async {
        while rig.handle.root_sha256() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), active)
        .await
        .unwrap();
    assert_eq!(shown(&rig).await.phase, "retiring");
}

#[tokio::test]
async fn who_was_away_during_a_rotation_still_talks_to_everybody() {
    let rig = short_lived_rig().await;
    let (away, drain) = rig.join(Kind::Node, "away", &[]).await;
    let ttl = Duration::from_secs(2 * LEAF);
    let old_token = rig
        .handle
        .create_join_token(Kind::Node, "newcomer", vec![], ttl)
        .await
        .unwrap();
    drain.drain(Duration::from_secs(5)).await;
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[]).await;
    rotate(&rig, RotateTarget::Root).await;
    let old = issuer(&n1);
    run_clock(&rig.clock, &[&n1], async || issuer(&n1) == old).await;
    assert_eq!(away.trust.bundle().roots.len(), 1);
    assert_ne!(
        root_sha256(&away.trust.bundle().roots[0]),
        rig.handle.root_sha256()
    );
    // It knows the old root alone, the other has a certificate under the new one.
    talk(&away, serve(&n1).await, 1).await.unwrap();
    talk(&n1, serve(&away).await, 1).await.unwrap();
    // A token that pins the old root is good for as long as it says.
    let (_t, drain) = weft_drain::channel();
    let source = weft_enroll::TokenSource::Given(old_token);
    let newcomer = rig
        .enrollment(td().node("newcomer").unwrap(), "newcomer")
        .token(source);
    newcomer.enroll(drain).await.unwrap();
    // Back again, it learns the new root before the old one goes.
    let (_trigger, drain) = weft_drain::channel();
    let back = rig
        .enrollment(td().node("away").unwrap(), "node-away")
        .enroll(drain)
        .await
        .unwrap();
    let mut version = back.trust.subscribe();
    tokio::time::timeout(Duration::from_secs(20), version.wait_for(|v| *v == 2))
        .await
        .unwrap()
        .unwrap();
    run_clock(&rig.clock, &[&n1, &back], async || {
        shown(&rig).await.phase != "none"
    })
    .await;
    let (own, _) = rig.handle.credentials();
    assert_eq!(
        root_sha256(own.get().unwrap().chain().last().unwrap()),
        rig.handle.root_sha256()
    );
    talk(&back, serve(&n1).await, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_goes_on_wherever_the_service_dies() {
    let dir = TempDir::new().unwrap();
    let rig = Rig::configured(short_lived(&dir), dir, ManualClock::at(NOW)).await;
    let first_root = rig.handle.root_sha256();
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[]).await;
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let load = Load::start(&[n1.clone(), n2.clone()]).await;
    rotate(&rig, RotateTarget::Root).await;
    let (mut rig, mut crashes, mut phases) = (rig, 0, BTreeSet::new());
    loop {
        let phase = shown(&rig).await.phase;
        if phase == "none" {
            break;
        }
        // Dies at any moment of what it does within this time, or of what it does at its start.
        let life = Duration::from_millis(rand::random_range(0..600));
        let born = tokio::time::Instant::now();
        run_clock(&rig.clock, &[&n1, &n2], async || born.elapsed() < life).await;
        phases.insert(phase);
        crashes += 1;
        rig = rig.crash(short_lived).await;
        let status = shown(&rig).await;
        let active = |all: &[weft_proto::weft::identity::v1::Authority]| {
            all.iter().filter(|a| a.state == "active").count()
        };
        assert_eq!(
            (active(&status.roots), active(&status.issuers)),
            (1, 1),
            "{status:?}"
        );
        // What was given out before the crash is good after it.
        talk(&n1, serve(&n2).await, 1).await.unwrap();
    }
    println!("{crashes} crashes in {phases:?}, {} handshakes", load.end().await);
    assert_ne!(rig.handle.root_sha256(), first_root);
    assert_eq!(shown(&rig).await.roots.len(), 1);
    assert!(
        crashes >= 3 && phases.contains("retiring"),
        "{crashes} in {phases:?}"
    );
}
