//! Puts the service together: in its own process, or inside another.

use crate::{
    Clock, Config, ConfigError, ROLES, StateError,
    api::Api,
    core::{self, Keeper},
    metrics::CoreMetrics,
    store::{DatabasePlace, State},
};
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};
use weft_drain::Watcher;
use weft_placement_protocol::{Limits, Placement, SlotCount};
use weft_proto::weft::placement::v1::placement_server::PlacementServer;
use weft_rpc::{GrpcServer, RpcError};
use weft_store::StoreError;
use weft_telemetry::{Health, Metrics};
use weft_tls::{ClientAuth, SvidCell, Trust};

/// A hello with many hosts fits.
const MAX_MESSAGE: usize = 16 << 20;

/// Why the service can not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Sockets and TLS.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The database.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS configuration.
    #[error(transparent)]
    Tls(#[from] weft_tls::TlsError),
    /// A setting.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The way into the mesh.
    #[error(transparent)]
    Enroll(#[from] weft_enroll::EnrollError),
    /// A part of the service ended by itself.
    #[error("placement stopped: {0}")]
    Stopped(String),
}

/// What the service needs from its surroundings.
#[derive(Debug)]
pub struct Options {
    /// Where to listen.
    pub listener: TcpListener,
    /// The database.
    pub database: DatabasePlace,
    /// The service's certificate, `/weft/service/placement`.
    pub svid: SvidCell,
    /// Whom it trusts.
    pub trust: Trust,
    /// Slots of actor types that are new.
    pub slots: SlotCount,
    /// What leases are counted by.
    pub clock: Clock,
    /// Where its metrics go.
    pub metrics: Metrics,
    /// Where it says whether it is ready.
    pub health: Health,
}

impl Options {
    /// With defaults for all that has any.
    pub fn new(
        listener: TcpListener,
        database: impl Into<DatabasePlace>,
        svid: SvidCell,
        trust: Trust,
    ) -> Self {
        Self {
            listener,
            database: database.into(),
            svid,
            trust,
            slots: SlotCount::default(),
            clock: Clock::monotonic(),
            metrics: Metrics::new("placement"),
            health: Health::default(),
        }
    }
}

/// A running service.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    core: JoinHandle<()>,
    server: JoinHandle<Result<(), RpcError>>,
    lost: JoinHandle<StoreError>,
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the service has ended: after its drain, or by a failure.
    pub async fn ended(self) -> Result<(), ServeError> {
        let stopped = |e: tokio::task::JoinError| ServeError::Stopped(e.to_string());
        let (core, mut server, mut lost) = (self.core, self.server, self.lost);
        tokio::select! {
            served = &mut server => {
                lost.abort();
                served.map_err(stopped)??;
                core.await.map_err(stopped)
            }
            taken = &mut lost => {
                // Nobody may be told anything by this process any more.
                core.abort();
                server.abort();
                Err(StateError::from(taken.map_err(stopped)?).into())
            }
        }
    }
}

/// Takes the address to serve on; port 0 lets the system choose.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| RpcError::Bind {
        address: listen.to_string(),
        source,
    };
    Ok(TcpListener::bind(listen).await.map_err(failed)?)
}

/// Starts the service inside this process. It serves when this returns.
pub async fn start(options: Options, drain: Watcher) -> Result<Handle, ServeError> {
    let Options {
        listener,
        database,
        svid,
        trust,
        slots,
        clock,
        metrics,
        health,
    } = options;
    let waiting = |holder: &str| {
        tracing::warn!(%database, "the database belongs to {holder}; waiting until that ends");
        health.waiting(core::HEALTH_PART, format!("the database belongs to {holder}"));
    };
    let (state, loaded) = State::open(&database, waiting).await?;
    let lost = tokio::spawn(state.lost());
    tracing::info!(
        %database,
        hosts = loaded.saved.hosts.len(),
        types = loaded.saved.tables.len(),
        "state read"
    );
    let address = listener.local_addr().map_err(|source| RpcError::Bind {
        address: "a socket without address".into(),
        source,
    })?;
    let placement = Placement::restore(
        Limits::default(),
        slots,
        loaded.epoch_base,
        clock.now(),
        loaded.saved,
    );
    let keeper = Keeper {
        placement,
        state,
        epoch: loaded.epoch,
        clock,
        health,
        metrics: CoreMetrics::register(&metrics),
    };
    let (core, core_task) = core::start(keeper, drain.clone());
    let tls = weft_tls::server_config(Arc::new(svid), &trust, ClientAuth::Required, &[b"h2"])?;
    let api = PlacementServer::new(Api {
        core,
        drain: drain.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE);
    let server = GrpcServer::new("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS, ROLES)?
        .add_service(api)
        .build();
    let server = tokio::spawn(server.serve_tls(listener, Arc::new(tls), trust, drain));
    tracing::info!(%address, "placement serves");
    Ok(Handle {
        address,
        core: core_task,
        server,
        lost,
    })
}

/// Runs the service as a process of its own: enrolls, then serves until the drain is done.
pub async fn serve(
    config: Config,
    drain: Watcher,
    metrics: Metrics,
    health: Health,
) -> Result<(), ServeError> {
    let checked = config.checked()?;
    // What an operator can get wrong shows at once, not after waiting for a certificate.
    let listener = bind(config.listen).await?;
    health.waiting("identity", "waiting for a certificate from the identity service");
    health.waiting(crate::core::HEALTH_PART, "not open yet");
    let id = checked
        .trust_domain
        .service("placement")
        .map_err(weft_tls::TlsError::from)?;
    let mut enrollment =
        weft_enroll::Enrollment::new(id, config.state_dir.join("identity"), config.identity_addr);
    if let Some(token) = checked.token {
        enrollment = enrollment.token(token);
    }
    let Some(member) = drain
        .clone()
        .until_draining(enrollment.enroll(drain.clone()))
        .await
    else {
        return Ok(());
    };
    let member = member?;
    health.ready("identity");
    let database = match config.database_url {
        Some(url) => DatabasePlace::Server(url),
        None => DatabasePlace::File(config.state_dir.join("placement.db")),
    };
    let options = Options {
        slots: checked.slots,
        metrics,
        health,
        ..Options::new(listener, database, member.svid, member.trust)
    };
    // It may wait for another process; a signal ends that.
    match drain.clone().until_draining(start(options, drain)).await {
        Some(handle) => handle?.ended().await,
        None => Ok(()),
    }
}
