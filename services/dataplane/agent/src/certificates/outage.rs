//! An hour without the identity service, in simulated time: tokio's clock and the certificates'
//! move together, as far as the test says. Service, memberships, certificates and tunnels are the
//! real ones, over loopback.
#![allow(clippy::unwrap_used)]

use super::{AT_ONCE, Certificates};
use crate::upstream::Upstream;
use futures::{FutureExt, future::BoxFuture};
use http::HeaderMap;
use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, mpsc},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use weft_drain::Trigger;
use weft_enroll::{Enrollment, Member, TokenSource};
use weft_identity::{CaConfig, Config, Env, HostPattern, Kind};
use weft_model::TrustDomain;
use weft_proto::weft::policy::v1::{WatchResponse, Workload};
use weft_tls::{Expect, ManualClock, Now, SvidCell};
use weft_tunnel::{
    Client, Destination, Dialer, Handler, Incoming, Limits, Local, OpenError, Source, TunnelStream,
};

const START: u64 = 1_800_000_000;
const NODES: [&str; 2] = ["n1", "n2"];
/// Workloads of each node.
const EACH: usize = 40;
const MINUTE: Duration = Duration::from_secs(60);
/// So long a request of this process's may really take before time goes on without it.
const STUCK: Duration = Duration::from_secs(5);

/// Time that passes when the test says so.
struct Sim {
    begun: Instant,
    clock: ManualClock,
    /// tokio's paused clock stands still while a blocking task runs; this one runs until the end.
    _hold: mpsc::Sender<()>,
}

impl Sim {
    fn new() -> Self {
        tokio::time::pause();
        let (hold, held) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || held.recv().is_ok());
        Self {
            begun: Instant::now(),
            clock: ManualClock::at(START),
            _hold: hold,
        }
    }

    /// Lets time pass, and then what is ready run.
    async fn pass(&self, by: Duration) {
        self.clock.set(START + (self.begun.elapsed() + by).as_secs());
        tokio::time::advance(by).await;
        // Real time, for the database's threads.
        let real = || std::thread::sleep(Duration::from_millis(1));
        tokio::task::spawn_blocking(real).await.unwrap();
    }

    /// Lets time pass, about as fast as it does, until `work` is done.
    async fn finish<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.pass(Duration::from_millis(1)) => {}
            }
        }
    }
}

struct App {
    id: String,
    spiffe_id: String,
    cell: SvidCell,
}

impl App {
    fn serial(&self) -> String {
        self.cell.get().unwrap().identity().serial.clone()
    }
}

struct Node {
    member: Member,
    certificates: Certificates,
    apps: Vec<App>,
    _trigger: Trigger,
}

/// Answers what it reads.
struct Echo;

impl Handler for Echo {
    async fn handle(self: Arc<Self>, incoming: Incoming) {
        let Ok(mut stream) = incoming.accept() else { return };
        let mut bytes = [0; 8];
        while stream.read_exact(&mut bytes).await.is_ok() {
            if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

struct Direct;

impl Dialer for Direct {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(to).boxed()
    }
}

struct World {
    sim: Sim,
    settings: Config,
    service: Option<(weft_identity::Handle, Trigger)>,
    nodes: Vec<Node>,
    tunnels: Client,
    destination: Destination,
    _served: Trigger,
    _dir: TempDir,
}

fn workload(node: &str, n: usize) -> Workload {
    let app_id = format!("app-{n}");
    Workload {
        id: format!("{node}/default/{app_id}/1"),
        node: node.into(),
        namespace: "default".into(),
        spiffe_id: format!("spiffe://cluster.local/ns/default/{app_id}"),
        app_id,
        ..Default::default()
    }
}

async fn serve(sim: &Sim, settings: &Config) -> (weft_identity::Handle, Trigger) {
    let (trigger, drain) = weft_drain::channel();
    let env = Env::new(drain).clock(sim.clock.shared());
    let handle = sim.finish(weft_identity::start_with(settings.clone(), env)).await;
    let handle = handle.unwrap();
    let all = NODES.iter().flat_map(|node| (0..EACH).map(|n| workload(node, n)));
    let snapshot = WatchResponse {
        snapshot: true,
        upserts: all.collect(),
        removed_ids: vec![],
    };
    handle.registry().apply(snapshot).unwrap();
    (handle, trigger)
}

async fn node(sim: &Sim, dir: &TempDir, service: &weft_identity::Handle, name: &str) -> Node {
    let any = HostPattern {
        namespace: "*".into(),
        app_id: "*".into(),
    };
    let token = service.create_join_token(Kind::Node, name, vec![any], MINUTE);
    let token = sim.finish(token).await.unwrap();
    let (trigger, drain) = weft_drain::channel();
    let address = service.address().to_string();
    let domain = TrustDomain::default();
    let enrollment = Enrollment::new(domain.node(name).unwrap(), dir.path().join(name), address.clone())
        .clock(sim.clock.shared())
        .token(TokenSource::Given(token));
    let member = sim.finish(enrollment.enroll(drain)).await.unwrap();
    let expect = Expect::Id(domain.service("identity").unwrap());
    let channel = weft_rpc::channel(&address, Some(&member.svid), &member.trust, expect).unwrap();
    let folder = dir.path().join(name).join("svids");
    std::fs::create_dir(&folder).unwrap();
    let upstream = Upstream::new("identity", &address);
    let certificates = Certificates::new(channel, upstream, member.trust.clone(), name, &folder);
    let mut apps = Vec::new();
    for n in 0..EACH {
        let known = workload(name, n);
        let app = App {
            id: known.id,
            spiffe_id: known.spiffe_id,
            cell: SvidCell::new(),
        };
        let (certificates, id) = (certificates.clone(), app.id.clone());
        let (spiffe_id, cell) = (app.spiffe_id.clone(), app.cell.clone());
        tokio::spawn(async move {
            let refused = watch::Sender::new(None);
            certificates.keep(&id, &spiffe_id, &cell, &refused).await;
        });
        apps.push(app);
    }
    Node {
        member,
        certificates,
        apps,
        _trigger: trigger,
    }
}

impl World {
    /// Two nodes whose workloads have certificates of this lifetime, and a tunnel's listener.
    async fn new(workload_ttl_seconds: u64) -> Self {
        let sim = Sim::new();
        let dir = TempDir::new().unwrap();
        let mut settings = Config {
            // Nothing else listens at this address, so that its port is free after the hour.
            listen: ([127, 0, 71, 1], 0).into(),
            state_dir: dir.path().join("state"),
            run_dir: None,
            ca: CaConfig {
                workload_ttl_seconds,
                ..CaConfig::default()
            },
            ..Config::default()
        };
        let service = serve(&sim, &settings).await;
        settings.listen = service.0.address();
        let mut nodes = Vec::new();
        for name in NODES {
            nodes.push(node(&sim, &dir, &service.0, name).await);
        }
        let (near, far) = (&nodes[0], &nodes[1]);
        let listener = TcpListener::bind("127.0.71.2:0").await.unwrap();
        let destination = Destination {
            address: listener.local_addr().unwrap(),
            id: far.apps[0].spiffe_id.parse().unwrap(),
            node: NODES[1].into(),
        };
        let (served, drain) = weft_drain::channel();
        let local = Local::One(far.apps[0].cell.clone());
        let trust = far.member.trust.clone();
        tokio::spawn(async move {
            let limits = Limits::default();
            weft_tunnel::serve(listener, local, trust, limits, Arc::new(Echo), drain).await
        });
        let tunnels = Client::new(near.member.trust.clone(), Arc::new(Direct), Limits::default());
        let world = Self {
            sim,
            settings,
            service: Some(service),
            nodes,
            tunnels,
            destination,
            _served: served,
            _dir: dir,
        };
        while world.apps().any(|app| app.cell.get().is_none()) {
            world.pass(Duration::from_millis(20)).await;
        }
        world
    }

    fn apps(&self) -> impl Iterator<Item = &App> {
        self.nodes.iter().flat_map(|node| &node.apps)
    }

    /// Lets time pass; it stands still while a request for a certificate is under way.
    async fn pass(&self, by: Duration) {
        self.sim.pass(by).await;
        let real = std::time::Instant::now();
        let busy = |node: &Node| node.certificates.turns.available_permits() < AT_ONCE;
        while self.nodes.iter().any(busy) && real.elapsed() < STUCK {
            self.sim.pass(Duration::ZERO).await;
        }
    }

    async fn stop_service(&mut self) {
        let (handle, trigger) = self.service.take().unwrap();
        let ended = async {
            trigger.drain(Duration::from_secs(5)).await;
            handle.wait().await.unwrap();
        };
        self.sim.finish(ended).await;
    }

    async fn open(&self) -> Result<TunnelStream, OpenError> {
        let app = &self.nodes[0].apps[0];
        let source = Source {
            workload: app.id.as_str().into(),
            svid: app.cell.clone(),
        };
        let open = self
            .tunnels
            .open(&source, &self.destination, "app-0.default:80", HeaderMap::new());
        self.sim.finish(open).await
    }

    async fn echo(&self, stream: &mut TunnelStream) -> io::Result<()> {
        let work = async {
            let sent: [u8; 8] = rand::random();
            let mut answered = [0; 8];
            stream.write_all(&sent).await?;
            stream.flush().await?;
            stream.read_exact(&mut answered).await?;
            assert_eq!(answered, sent);
            Ok(())
        };
        self.sim.finish(work).await
    }

    /// Both ends of the tunnel have a valid certificate.
    fn is_valid(&self) -> bool {
        let now = self.sim.clock.unix_seconds();
        let ends = self.nodes.iter().map(|node| node.apps[0].cell.get().unwrap());
        ends.into_iter().all(|svid| now <= svid.identity().not_after)
    }
}

/// What an hour without the service was like.
struct Hour {
    /// In each minute: whether both certificates were valid, why no stream could be opened, and
    /// whether one from before the hour went on.
    minutes: Vec<(bool, Option<String>, bool)>,
    /// Seconds after the service's return at which each workload that was late was renewed.
    back: Vec<f64>,
}

impl Hour {
    /// The service is away from `away_at` on, for an hour.
    async fn play(world: &mut World, away_at: Duration) -> Self {
        while world.sim.begun.elapsed() < away_at {
            let left = away_at.saturating_sub(world.sim.begun.elapsed());
            // In one leap to the last half hour.
            let leap = left.saturating_sub(30 * MINUTE).max(Duration::from_secs(5));
            world.pass(leap.min(left)).await;
        }
        let mut held = world.open().await.unwrap();
        world.stop_service().await;
        // What was given out by then is put in place.
        world.pass(Duration::from_secs(1)).await;
        let before: Vec<String> = world.apps().map(App::serial).collect();
        let mut minutes = Vec::new();
        for _ in 0..60 {
            for _ in 0..30 {
                world.pass(Duration::from_secs(2)).await;
            }
            let valid = world.is_valid();
            let opened = world.open().await;
            let failed = match opened {
                Ok(mut stream) => world.echo(&mut stream).await.err().map(|e| e.to_string()),
                Err(error) => Some(error.to_string()),
            };
            minutes.push((valid, failed, world.echo(&mut held).await.is_ok()));
        }
        let serials: Vec<String> = world.apps().map(App::serial).collect();
        assert_eq!(serials, before, "nobody was there to renew anything");

        let late: Vec<usize> = late(world);
        world.service = Some(serve(&world.sim, &world.settings).await);
        let returned = Instant::now();
        let mut back = Vec::new();
        let mut waiting = late;
        while !waiting.is_empty() {
            world.pass(Duration::from_millis(100)).await;
            let after = returned.elapsed();
            assert!(after < 2 * MINUTE, "{} still wait", waiting.len());
            let apps: Vec<&App> = world.apps().collect();
            waiting.retain(|i| {
                let renewed = apps[*i].serial() != before[*i];
                back.extend(renewed.then_some(after.as_secs_f64()));
                !renewed
            });
        }
        Self { minutes, back }
    }

    /// Nobody waited long, and they did not come at once.
    fn assert_spread(&self) {
        let in_second = |s: u32| {
            let within = |t: &&f64| **t >= f64::from(s) && **t < f64::from(s + 1);
            self.back.iter().filter(within).count()
        };
        let per_second: Vec<usize> = (0..60).map(in_second).collect();
        println!(
            "{} were late, renewed in each second: {per_second:?}",
            self.back.len()
        );
        let (last, busiest) = (self.back.last().unwrap(), per_second.iter().max().unwrap());
        // The longest pause between attempts is 15 s.
        assert!(*last < 30.0, "the last came after {last} s");
        assert!(
            *busiest <= self.back.len() / 2,
            "{busiest} of {} in one second",
            self.back.len()
        );
    }
}

/// Whose renewal is late, wherever in its span it was due.
fn late(world: &World) -> Vec<usize> {
    let now = world.sim.clock.unix_seconds();
    let past = |app: &App| now >= app.cell.get().unwrap().renew_at_spread(1.0);
    let apps = world.apps().enumerate();
    apps.filter(|(_, app)| past(app)).map(|(i, _)| i).collect()
}

#[tokio::test]
async fn certificates_of_a_day_outlast_an_hour_without_the_service() {
    let mut world = World::new(24 * 3600).await;
    // All were given out together: their renewals are due within 2.4 hours around half of the day, so
    // the last 40 of 100 within this hour.
    let hour = Hour::play(&mut world, Duration::from_secs(12 * 3600 + 660)).await;
    for (minute, (valid, failed, held)) in hour.minutes.iter().enumerate() {
        assert!(*valid && failed.is_none() && *held, "minute {minute}: {failed:?}");
    }
    assert!(hour.back.len() >= 10, "{} were late", hour.back.len());
    hour.assert_spread();
}

#[tokio::test]
async fn what_lapses_within_the_hour_closes_and_comes_back() {
    let mut world = World::new(20 * 60).await;
    let hour = Hour::play(&mut world, Duration::from_secs(450)).await;
    for (minute, (valid, failed, held)) in hour.minutes.iter().enumerate() {
        assert_eq!(failed.is_none(), *valid, "minute {minute}: {failed:?}");
        assert_eq!(held, valid, "minute {minute}");
        let reason = failed.as_deref().unwrap_or("expired").to_lowercase();
        assert!(reason.contains("expired"), "minute {minute}: {reason}");
    }
    let lived = hour.minutes.iter().filter(|(valid, ..)| *valid).count();
    assert!((5..30).contains(&lived), "{lived} of 60 minutes");
    assert_eq!(hour.back.len(), NODES.len() * EACH, "all were late");
    hour.assert_spread();
    let mut stream = world.open().await.unwrap();
    world.echo(&mut stream).await.unwrap();
}
