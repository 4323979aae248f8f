//! The running service: listeners, its own certificate, and the tasks beside them.

use crate::{
    api::Api,
    config::Config,
    core::Core,
    counts::Counts,
    error::StartError,
    follow::follow,
    pattern::HostPattern,
    refused::Refused,
    registry::Registry,
    roles::ROLES,
    tokens::Kind,
    upkeep::{self, Upkeep},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};
use weft_drain::Watcher;
use weft_enroll::JoinToken;
use weft_model::TrustDomain;
use weft_proto::dapr::sentry::v1::ca_server::CaServer;
use weft_proto::weft::identity::v1::{
    admin_server::AdminServer, bootstrap_server::BootstrapServer, certificates_server::CertificatesServer,
    members_server::MembersServer, trust_server::TrustServer,
};
use weft_rpc::{Caller, GrpcServer, Limiter};
use weft_telemetry::{Health, Metrics};
use weft_tls::{ClientAuth, Clock, SvidCell, SystemClock, Trust, server_config};

/// No request is larger than a token, a name and a certificate request.
const MAX_REQUEST: usize = 64 * 1024;

/// The running service, for a process that holds it.
#[derive(Debug)]
pub struct Handle {
    core: Arc<Core>,
    address: SocketAddr,
    svid: SvidCell,
    trust: Trust,
    tasks: JoinSet<Result<(), StartError>>,
}

impl Handle {
    /// Where gRPC is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// SHA-256 of the root: what join tokens pin.
    pub fn root_sha256(&self) -> [u8; 32] {
        self.core.root_sha256()
    }

    /// Whose members are named.
    pub fn trust_domain(&self) -> TrustDomain {
        self.core.trust_domain().clone()
    }

    /// The copy of the workload registry: to be fed where no policy service is followed.
    pub fn registry(&self) -> Registry {
        self.core.registry().clone()
    }

    /// The service's own certificate and trust.
    pub fn credentials(&self) -> (SvidCell, Trust) {
        (self.svid.clone(), self.trust.clone())
    }

    /// Makes a join token for a process that is started by this one.
    pub async fn create_join_token(
        &self,
        kind: Kind,
        name: &str,
        may_host: Vec<HostPattern>,
        ttl: Duration,
    ) -> Result<JoinToken, Refused> {
        let caller = Caller::Local { uid: own_uid() };
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1);
        let (token, _) = self
            .core
            .create_join_token(&caller, kind.as_str(), name, may_host, ttl)
            .await?;
        Ok(token)
    }

    /// Follows the registry of the policy service at `address` (`host:port`), for when that is
    /// known only after this service has started. To be called once, and not if the configuration
    /// names one.
    pub fn follow_policy(&mut self, address: String, drain: Watcher) {
        let (svid, trust, registry) = (self.svid.clone(), self.trust.clone(), self.registry());
        self.tasks.spawn(async move {
            follow(address, svid, trust, registry, drain).await;
            Ok(())
        });
    }

    /// Waits for the end: of the drain, or of a part that failed.
    pub async fn wait(self) -> Result<(), StartError> {
        let Self { core, mut tasks, .. } = self;
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|e| StartError::Task(e.to_string()))??;
        }
        if let Some(core) = Arc::into_inner(core) {
            core.close().await;
        }
        Ok(())
    }
}

fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Has the record told of something. The server holds it, and the core outlives the server only while
/// it is closed.
fn told<T: 'static>(core: &Arc<Core>, record: fn(&Core, T)) -> impl Fn(T) + Send + Sync + 'static {
    let core = Arc::downgrade(core);
    move |what| {
        if let Some(core) = core.upgrade() {
            record(&core, what);
        }
    }
}

/// Has the service itself refuse what is revoked as soon as it is, whatever else is slow or fails.
async fn follow_revocations(core: &Core, trust: &Trust) {
    let mut published = core.published();
    loop {
        trust.set_revoked_if_changed(core.revoked());
        if published.changed().await.is_err() {
            return;
        }
    }
}

/// What a process brings along for the service.
#[derive(Debug)]
pub struct Env {
    drain: Watcher,
    clock: Clock,
    counts: Counts,
    health: Health,
    insecure: bool,
}

impl Env {
    /// With the machine's clock; nothing is exported.
    pub fn new(drain: Watcher) -> Self {
        Self {
            drain,
            clock: SystemClock::shared(),
            counts: Counts::default(),
            health: Health::default(),
            insecure: false,
        }
    }

    /// Another clock.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Gives certificates to whoever asks, without a proof. For a mesh that is one process on one
    /// machine and ends with it; no file, flag or variable of the service reaches this.
    pub fn insecure_attestation(self) -> Self {
        Self {
            insecure: true,
            ..self
        }
    }

    /// Metrics are served there.
    pub fn metrics(self, metrics: &Metrics) -> Self {
        Self {
            counts: Counts::register(metrics),
            ..self
        }
    }

    /// Readiness is told there.
    pub fn health(self, health: Health) -> Self {
        Self { health, ..self }
    }
}

/// Runs the service until the drain.
pub async fn serve(config: Config, drain: Watcher) -> Result<(), StartError> {
    serve_with(config, Env::new(drain)).await
}

/// [`serve`] with more than a drain.
pub async fn serve_with(config: Config, env: Env) -> Result<(), StartError> {
    let drain = env.drain.clone();
    // Nothing is served yet: a signal ends the start where it is.
    match drain.until_draining(start_with(config, env)).await {
        Some(started) => started?.wait().await,
        None => Ok(()),
    }
}

/// Starts the service; when this returns, it accepts connections.
pub async fn start(config: Config, drain: Watcher) -> Result<Handle, StartError> {
    start_with(config, Env::new(drain)).await
}

/// [`start`] with more than a drain.
pub async fn start_with(config: Config, env: Env) -> Result<Handle, StartError> {
    let Env {
        drain,
        clock,
        counts,
        health,
        insecure,
    } = env;
    config.check()?;
    health.waiting(upkeep::CERTIFICATE, "starting");
    let core = Arc::new(Core::open(&config, clock.clone(), counts, insecure).await?);
    if core.may_rotate().await? {
        core.advance().await?;
    }
    let trust = Trust::new(core.trust_domain().clone(), clock);
    trust.set(core.bundle())?;
    trust.set_revoked(core.revoked());
    let svid = SvidCell::new();
    svid.set(core.own_svid().await?);

    let listen_error = |source| {
        StartError::Rpc(weft_rpc::RpcError::Bind {
            address: config.listen.to_string(),
            source,
        })
    };
    let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let local = config
        .run_dir
        .as_ref()
        .map(|dir| weft_rpc::bind_local(&dir.join("identity.sock")))
        .transpose()?;
    let tls = server_config(Arc::new(svid.clone()), &trust, ClientAuth::Optional, &[b"h2"])?;

    let api = Api {
        core: core.clone(),
        drain: drain.clone(),
    };
    let limits = config.limits;
    let limiter = Limiter::on_refused(
        core.clock().clone(),
        limits.members(),
        limits.strangers(),
        told(&core, Core::record_limited),
    );
    let packages = [
        ("weft.identity.v1", weft_proto::WEFT_DESCRIPTORS),
        ("dapr.proto.sentry.v1", weft_proto::DAPR_DESCRIPTORS),
    ];
    let server = GrpcServer::of(&packages, ROLES)?
        .limit(limiter)
        .on_turned_away(told(&core, Core::record_turned_away))
        .on_connection_refused(told(&core, Core::record_connection))
        .add_service(BootstrapServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(CertificatesServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(TrustServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(MembersServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(CaServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
        .add_service(AdminServer::new(api).max_decoding_message_size(MAX_REQUEST))
        .build();

    let mut tasks = JoinSet::new();
    let ready = health.clone();
    {
        let (server, trust, drain) = (server.clone(), trust.clone(), drain.clone());
        tasks.spawn(async move { Ok(server.serve_tls(listener, Arc::new(tls), trust, drain).await?) });
    }
    if let Some(local) = local {
        let drain = drain.clone();
        tasks.spawn(async move { Ok(server.serve_local(local, drain).await?) });
    }
    {
        let (core, trust, drain) = (core.clone(), trust.clone(), drain.clone());
        tasks.spawn(async move {
            drain.until_draining(follow_revocations(&core, &trust)).await;
            Ok(())
        });
    }
    {
        let (core, svid, drain) = (core.clone(), svid.clone(), drain.clone());
        let (trust, place) = (trust.clone(), config.ca.supplied.clone());
        tasks.spawn(async move {
            let upkeep = Upkeep {
                core: &core,
                svid: &svid,
                trust: &trust,
                place: place.as_deref(),
            };
            drain.until_draining(upkeep.run(&health)).await;
            Ok(())
        });
    }
    ready.ready(upkeep::CERTIFICATE);
    tracing::info!(%address, trust_domain = %core.trust_domain(), new_authority = core.is_new, "identity service ready");
    let mut handle = Handle {
        core,
        address,
        svid,
        trust,
        tasks,
    };
    if let Some(policy) = config.policy_addr {
        handle.follow_policy(policy, drain);
    }
    Ok(handle)
}
