//! A running service in a temporary folder, and the clients that tests call it with.

use rustls_pki_types::CertificateDer;
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};
use weft_drain::Trigger;
use weft_enroll::{Enrollment, JoinToken, Member, TokenSource};
use weft_identity::{Config, Env, Handle, HostPattern, Kind};
use weft_model::{SpiffeId, TrustDomain};
use weft_proto::weft::identity::v1::{
    AuditEntry, ListAuditRequest, SignAdminRequest, admin_client::AdminClient,
};
use weft_telemetry::Metrics;
use weft_tls::{Expect, ManualClock, Svid, SvidCell, new_key_and_csr};

pub const NOW: u64 = 1_800_000_000;
pub const TOKEN_TTL: Duration = Duration::from_secs(600);

/// The service with its folder, clock and drain.
pub struct Rig {
    pub dir: TempDir,
    pub clock: ManualClock,
    pub handle: Handle,
    pub metrics: Metrics,
    trigger: Trigger,
}

pub fn config(dir: &TempDir) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: dir.path().join("state"),
        run_dir: Some(dir.path().join("run")),
        ..Config::default()
    }
}

pub fn td() -> TrustDomain {
    TrustDomain::default()
}

pub fn pattern(namespace: &str, app_id: &str) -> HostPattern {
    HostPattern {
        namespace: namespace.into(),
        app_id: app_id.into(),
    }
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(TempDir::new().unwrap(), ManualClock::at(NOW)).await
    }

    pub async fn with(dir: TempDir, clock: ManualClock) -> Self {
        let settings = config(&dir);
        Self::configured(settings, dir, clock).await
    }

    pub async fn configured(settings: Config, dir: TempDir, clock: ManualClock) -> Self {
        Self::in_env(settings, dir, clock, |env| env).await
    }

    /// As `weft dev` starts it: whoever asks is believed.
    pub async fn insecure() -> Self {
        let dir = TempDir::new().unwrap();
        let clock = ManualClock::at(NOW);
        Self::in_env(config(&dir), dir, clock, Env::insecure_attestation).await
    }

    async fn in_env(settings: Config, dir: TempDir, clock: ManualClock, change: fn(Env) -> Env) -> Self {
        let (trigger, watcher) = weft_drain::channel();
        let metrics = Metrics::new("identity");
        let env = Env::new(watcher).clock(clock.shared()).metrics(&metrics);
        let handle = weft_identity::start_with(settings, change(env)).await.unwrap();
        Self {
            dir,
            clock,
            handle,
            metrics,
            trigger,
        }
    }

    /// Stops the service as a signal would; what is on disk stays.
    pub async fn stop(self) -> (TempDir, ManualClock) {
        assert_eq!(
            self.trigger.drain(Duration::from_secs(10)).await,
            weft_drain::Outcome::Drained
        );
        self.handle.wait().await.unwrap();
        (self.dir, self.clock)
    }

    /// Ends it in the middle of whatever it does, and starts it again at the same address.
    pub async fn crash(self, settings: fn(&TempDir) -> Config) -> Self {
        let Self {
            dir,
            clock,
            handle,
            trigger,
            ..
        } = self;
        let listen = handle.address();
        // All tasks end where they are.
        drop(handle);
        drop(trigger);
        let settings = Config {
            listen,
            ..settings(&dir)
        };
        Self::configured(settings, dir, clock).await
    }

    pub fn address(&self) -> String {
        self.handle.address().to_string()
    }

    pub async fn token(&self, kind: Kind, name: &str, may_host: &[HostPattern]) -> JoinToken {
        self.handle
            .create_join_token(kind, name, may_host.to_vec(), TOKEN_TTL)
            .await
            .unwrap()
    }

    pub fn member_folder(&self, name: &str) -> PathBuf {
        self.dir.path().join("members").join(name)
    }

    /// An enrollment that does not wait long for anything.
    pub fn enrollment(&self, id: SpiffeId, folder: &str) -> Enrollment {
        Enrollment::new(id, self.member_folder(folder), self.address())
            .clock(self.clock.shared())
            .look_every(Duration::from_millis(20))
            .patience(Duration::from_secs(1))
    }

    /// A member and the drain of its task.
    pub async fn join(&self, kind: Kind, name: &str, may_host: &[HostPattern]) -> (Member, Trigger) {
        let id = match kind {
            Kind::Service => td().service(name),
            Kind::Node => td().node(name),
        };
        let token = self.token(kind, name, may_host).await;
        let (trigger, drain) = weft_drain::channel();
        let member = self
            .enrollment(id.unwrap(), &format!("{}-{name}", kind.as_str()))
            .token(TokenSource::Given(token))
            .enroll(drain)
            .await
            .unwrap();
        (member, trigger)
    }

    pub fn channel(&self, svid: Option<&SvidCell>) -> Channel {
        let (_, trust) = self.handle.credentials();
        let expect = Expect::Id(td().service("identity").unwrap());
        weft_rpc::channel(&self.address(), svid, &trust, expect).unwrap()
    }

    pub fn local(&self) -> Channel {
        weft_rpc::channel_local(self.dir.path().join("run/identity.sock")).unwrap()
    }

    /// An operator's certificate by the local socket.
    pub async fn admin(&self, name: &str) -> SvidCell {
        let made = new_key_and_csr().unwrap();
        let request = SignAdminRequest {
            name: name.into(),
            csr_der: made.csr_der,
            ttl_seconds: 0,
        };
        let reply = AdminClient::new(self.local())
            .sign_admin(request)
            .await
            .unwrap()
            .into_inner();
        cell(reply.svid.unwrap().chain_der, &made.key)
    }

    /// How often something was refused for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        let line = format!("weft_identity_refused_total{{reason=\"{reason}\"}} ");
        let text = self.metrics.text();
        let count = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        count.map_or(0, |n| n.parse().unwrap())
    }

    pub async fn audit(&self) -> Vec<AuditEntry> {
        self.try_audit().await.unwrap()
    }

    pub async fn try_audit(&self) -> Result<Vec<AuditEntry>, Status> {
        let request = ListAuditRequest {
            limit: 1000,
            ..Default::default()
        };
        let reply = AdminClient::new(self.local()).list_audit(request).await?;
        Ok(reply.into_inner().entries)
    }
}

pub fn cell(chain_der: Vec<Vec<u8>>, key: &rustls_pki_types::PrivateKeyDer<'static>) -> SvidCell {
    let cell = SvidCell::new();
    cell.set(Svid::new(chain_der.into_iter().map(CertificateDer::from).collect(), key).unwrap());
    cell
}
