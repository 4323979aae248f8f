//! A mesh of one placement service and as many nodes as a test wants.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use weft_model::TrustDomain;
use weft_placement::{Clock, DatabasePlace, Handle, Options, ServeError, start};
use weft_placement_client::{Client, Config, Registration};
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message as Up, join_response::Message as Down,
    placement_client::PlacementClient,
};
use weft_rpc::channel;
use weft_store::DatabaseUrl;
use weft_tls::{Bundle, Expect, ManualClock, Svid, SvidCell, Trust};

const NOW: u64 = 1_800_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Mesh {
    root: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    folder: TempDir,
    pub clock: Clock,
    /// A server instead of the file.
    pub url: Option<DatabaseUrl>,
}

pub struct Service {
    pub address: String,
    handle: Handle,
    trigger: weft_drain::Trigger,
}

fn at(unix: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(unix).unwrap()).unwrap()
}

pub fn host(id: &str) -> Registration {
    typed(id, &["Cart"])
}

pub fn typed(id: &str, types: &[&str]) -> Registration {
    Registration {
        id: id.into(),
        namespace: "default".into(),
        app_id: "cart".into(),
        actor_types: types.iter().map(|t| (*t).into()).collect(),
        capacity: 0,
        leaving: false,
    }
}

impl Mesh {
    pub fn new() -> Self {
        Self::with_clock(Clock::monotonic())
    }

    pub fn with_clock(clock: Clock) -> Self {
        weft_tls::install_provider();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = at(NOW - 100);
        params.not_after = at(NOW + 1_000_000);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = rcgen::Issuer::new(params, key);
        Self {
            root,
            issuer,
            folder: tempfile::tempdir().unwrap(),
            clock,
            url: None,
        }
    }

    pub fn svid(&self, path: &str) -> SvidCell {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = format!("spiffe://{}{path}", TrustDomain::default());
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        params.not_before = at(NOW - 60);
        params.not_after = at(NOW + 3600);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let cell = SvidCell::new();
        cell.set(Svid::new(vec![leaf], &key).unwrap());
        cell
    }

    fn trust(&self) -> Trust {
        let trust = Trust::new(TrustDomain::default(), ManualClock::at(NOW).shared());
        let roots = vec![self.root.clone()];
        trust
            .set(Bundle {
                trust_domain: TrustDomain::default(),
                version: 1,
                roots,
                jwks: Vec::new(),
            })
            .unwrap();
        trust
    }

    pub fn database(&self) -> PathBuf {
        self.folder.path().join("placement.db")
    }

    pub async fn serve(&self) -> Service {
        self.serve_at("127.0.0.1:0").await
    }

    pub async fn serve_at(&self, address: &str) -> Service {
        self.try_serve_at(address).await.unwrap()
    }

    pub async fn try_serve(&self) -> Result<Service, ServeError> {
        self.try_serve_at("127.0.0.1:0").await
    }

    async fn try_serve_at(&self, address: &str) -> Result<Service, ServeError> {
        let (trigger, watcher) = weft_drain::channel();
        let listener = weft_placement::bind(address.parse().unwrap()).await?;
        let svid = self.svid("/weft/service/placement");
        let database = match &self.url {
            Some(url) => DatabasePlace::Server(url.clone()),
            None => self.database().into(),
        };
        let options = Options {
            clock: self.clock.clone(),
            ..Options::new(listener, database, svid, self.trust())
        };
        let handle = start(options, watcher).await?;
        Ok(Service {
            address: handle.address().to_string(),
            handle,
            trigger,
        })
    }

    pub fn channel(&self, service: &Service, path: &str) -> Channel {
        let expect = Expect::Id(TrustDomain::default().service("placement").unwrap());
        channel(&service.address, Some(&self.svid(path)), &self.trust(), expect).unwrap()
    }

    pub fn node(&self, service: &Service, name: &str, hosts: &[&str]) -> Client {
        let config = Config {
            backoff_max: Duration::from_millis(500),
            ..Config::default()
        };
        let hosts = hosts.iter().map(|id| host(id)).collect();
        weft_placement_client::start(
            self.channel(service, &format!("/weft/node/{name}")),
            config,
            hosts,
        )
    }

    pub fn rpc(&self, service: &Service, path: &str) -> PlacementClient<Channel> {
        PlacementClient::new(self.channel(service, path))
    }

    /// A node's stream by hand.
    pub async fn raw(&self, service: &Service, name: &str, hello: pb::Hello) -> Raw {
        let mut raw = Raw::open(self.rpc(service, &format!("/weft/node/{name}")), Up::Hello(hello))
            .await
            .unwrap();
        match raw.next().await {
            Some(Down::Welcome(welcome)) => raw.epoch = welcome.epoch,
            other => panic!("no welcome but {other:?}"),
        }
        raw
    }
}

impl Service {
    /// Waits until it ends by itself.
    pub async fn ended(self) -> Result<(), ServeError> {
        self.handle.ended().await
    }

    /// A graceful end.
    pub async fn stop(self) {
        let (outcome, ended) = tokio::join!(self.trigger.drain(PATIENCE), self.handle.ended());
        assert_eq!(outcome, weft_drain::Outcome::Drained);
        ended.unwrap();
    }
}

pub fn hello(hosts: &[&str]) -> pb::Hello {
    let hosts = hosts.iter().map(|id| message(&host(id))).collect();
    pb::Hello {
        hosts,
        ..pb::Hello::default()
    }
}

pub fn message(host: &Registration) -> pb::Host {
    weft_placement_client::wire::registration_message(host)
}

pub struct Raw {
    out: mpsc::Sender<pb::JoinRequest>,
    inbound: Streaming<pb::JoinResponse>,
    pub epoch: String,
    sequence: u64,
}

impl Raw {
    pub async fn open(mut rpc: PlacementClient<Channel>, first: Up) -> Result<Self, Status> {
        let (out, requests) = mpsc::channel(64);
        out.send(pb::JoinRequest { message: Some(first) }).await.unwrap();
        let inbound = timeout(PATIENCE, rpc.join(ReceiverStream::new(requests)))
            .await
            .unwrap()?
            .into_inner();
        Ok(Self {
            out,
            inbound,
            epoch: String::new(),
            sequence: 0,
        })
    }

    pub async fn send(&mut self, message: Up) {
        self.out
            .send(pb::JoinRequest {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    /// The next message; `None` at the stream's end.
    pub async fn next(&mut self) -> Option<Down> {
        self.try_next().await.ok().flatten()
    }

    pub async fn try_next(&mut self) -> Result<Option<Down>, Status> {
        let message = timeout(PATIENCE, self.inbound.message())
            .await
            .expect("no message came")?;
        Ok(message.map(|m| m.message.unwrap()))
    }

    /// Renews, and gives what came before the answer.
    pub async fn renew(&mut self) -> Vec<Down> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(Up::Renew(pb::Renew { sequence })).await;
        let mut before = Vec::new();
        loop {
            match self.next().await.expect("the stream ended") {
                Down::Renewed(renewed) if renewed.sequence == sequence => return before,
                // The answer to the hello.
                Down::Renewed(_) => {}
                other => before.push(other),
            }
        }
    }
}

/// Waits until what a client holds is so.
pub async fn until(client: &Client, what: impl Fn(&Client) -> bool) {
    let mut changed = client.changed();
    let wait = async {
        while !what(client) {
            changed.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, wait).await.expect("did not come about");
}

/// Waits until the status is so.
pub async fn until_status(client: &Client, what: impl Fn(&weft_placement_client::Status) -> bool) {
    let mut status = client.status();
    let _ = timeout(PATIENCE, status.wait_for(|s| what(s)))
        .await
        .expect("did not come about")
        .unwrap();
}

/// Number of hosts of the type `Cart` that a client sees.
pub fn hosts_seen(client: &Client) -> usize {
    client
        .tables()
        .get("default", "Cart")
        .map_or(0, |t| t.hosts().count())
}
