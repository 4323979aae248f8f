//! The running service.

use crate::{
    ClusterError, Config, ROLES, Source,
    api::Api,
    cluster::{self, Cluster},
    hosts::{Hosts, Kept, follow},
    metrics::Counts,
    owner::{First, Owner},
    source::{Folder, watch},
    store::State,
    world::World,
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use weft_drain::Watcher;
use weft_enroll::{EnrollError, Enrollment};
use weft_proto::weft::policy::v1 as pb;
use weft_rpc::{GrpcServer, RpcError};
use weft_store::StoreError;
use weft_telemetry::{Health, Metrics};
use weft_tls::{ClientAuth, SvidCell, TlsError, Trust, server_config};

/// Larger than any workload that would be admitted.
const MAX_REQUEST: usize = 256 * 1024;
/// Events waiting for the owner; callers wait when there are more.
const EVENTS: usize = 256;

/// Why the service does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The resources folder can not be listed.
    #[error("resources folder {}: {source}; name an existing folder with --resources", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The Kubernetes API can not be used.
    #[error("the Kubernetes API can not be used: {0}")]
    Cluster(#[from] ClusterError),
    /// Two sources at once.
    #[error("--resources names a folder, and the source is kubernetes: leave one of them out")]
    TwoSources,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ranges that would give an address twice.
    #[error(
        "shared_cidrs: {shared} overlaps {services} of service_cidrs; give shared endpoints a range of their own"
    )]
    Overlap {
        /// Of Services.
        services: ipnet::IpNet,
        /// Of shared endpoints.
        shared: ipnet::IpNet,
    },
    /// Listening or serving.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Becoming a member of the mesh.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// The service's own name.
    #[error(transparent)]
    Name(#[from] weft_model::SpiffeError),
    /// A part of the service ended by a defect.
    #[error("a task of the policy service failed: {0}")]
    Task(String),
}

/// The running service, for a process that holds it.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    hosts: Hosts,
    svid: SvidCell,
    trust: Trust,
    tasks: JoinSet<Result<(), ServeError>>,
}

impl Handle {
    /// Where gRPC is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What each node may host: to be fed where no identity service is followed.
    pub fn hosts(&self) -> Hosts {
        self.hosts.clone()
    }

    /// Takes from the identity service at `address` (`host:port`) what each node may host. To be called
    /// once, and not on what [`serve`] runs. Until then no workload can be registered.
    pub fn follow_identity(&mut self, address: String, drain: Watcher) {
        let (svid, trust, hosts) = (self.svid.clone(), self.trust.clone(), self.hosts());
        self.tasks.spawn(async move {
            follow(address, svid, trust, hosts, drain).await;
            Ok(())
        });
    }

    /// Waits for the end: of the drain, or of a part that failed.
    pub async fn wait(mut self) -> Result<(), ServeError> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|e| ServeError::Task(e.to_string()))??;
        }
        Ok(())
    }
}

/// Joins the mesh and runs until the drain.
pub async fn serve(
    config: Config,
    drain: Watcher,
    metrics: Metrics,
    health: Health,
) -> Result<(), ServeError> {
    health.waiting("policy", "joining the mesh");
    // What can not work is said before anything is asked of others.
    open_folder(&config)?;
    if config.source == Source::Kubernetes {
        cluster::check(config.kubeconfig.as_deref()).await?;
    }
    let id = config.parsed_trust_domain()?.service("policy")?;
    let mut enrollment = Enrollment::new(id, config.state_dir.join("member"), config.identity_addr.clone());
    if let Some(token) = config.token()? {
        enrollment = enrollment.token(token);
    }
    let listener = bind(config.listen).await?;
    let identity = config.identity_addr.clone();
    let starting = async {
        let member = enrollment.enroll(drain.clone()).await?;
        start_on(
            listener,
            config,
            member.svid,
            member.trust,
            drain.clone(),
            &metrics,
            &health,
        )
        .await
    };
    // Nothing is served yet: a signal ends the start where it is.
    let Some(handle) = drain.clone().until_draining(starting).await else {
        return Ok(());
    };
    let mut handle = handle?;
    handle.follow_identity(identity, drain);
    health.ready("policy");
    handle.wait().await
}

fn open_folder(config: &Config) -> Result<Option<Folder>, ServeError> {
    let Some(path) = &config.resources else {
        return Ok(None);
    };
    if config.source == Source::Kubernetes {
        return Err(ServeError::TwoSources);
    }
    Folder::open(path).map(Some).map_err(|source| ServeError::Folder {
        path: path.clone(),
        source,
    })
}

/// Starts the service with a certificate that its holder keeps current; when this returns, the resources
/// are read and it accepts connections.
pub async fn start(
    config: Config,
    svid: SvidCell,
    trust: Trust,
    drain: Watcher,
    metrics: &Metrics,
) -> Result<Handle, ServeError> {
    let listener = bind(config.listen).await?;
    start_on(listener, config, svid, trust, drain, metrics, &Health::default()).await
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| RpcError::Bind {
        address: listen.to_string(),
        source,
    };
    Ok(TcpListener::bind(listen).await.map_err(failed)?)
}

async fn start_on(
    listener: TcpListener,
    config: Config,
    svid: SvidCell,
    trust: Trust,
    drain: Watcher,
    metrics: &Metrics,
    health: &Health,
) -> Result<Handle, ServeError> {
    if let Some((services, shared)) = config.overlap() {
        return Err(ServeError::Overlap { services, shared });
    }
    let mut folder = open_folder(&config)?;
    let first = match &mut folder {
        Some(folder) => folder
            .changes()
            .map_err(|source| ServeError::Folder {
                path: config.resources.clone().unwrap_or_default(),
                source,
            })
            .map(First::Folder)?,
        None if config.source == Source::Kubernetes => First::Cluster,
        None => First::Folder(Vec::new()),
    };
    let state = match &config.database_url {
        Some(url) => {
            let waiting = |holder: &str| {
                tracing::warn!(database = %url, "the database belongs to {holder}; waiting until that ends");
                health.waiting("policy", format!("the database belongs to {holder}"));
            };
            State::connect(url, waiting).await?
        }
        None => State::open(&config.database()).await?,
    };
    let lost = state.lost();
    let counts = Counts::default();
    counts.register(metrics);
    let world = World::new(config.parsed_trust_domain()?, uuid::Uuid::new_v4().to_string())
        .with_form(config.svid_form);
    let hosts = Hosts::default();
    let kept = Kept::at(&config.state_dir);
    if let Some(Err(error)) = kept.read().map(|copy| hosts.apply(copy)) {
        tracing::warn!(%error, "what was kept of what nodes may host is not used");
    }
    let facts = (hosts.clone(), counts.clone());
    let mut owner = Owner::start(&config, world, state, first, facts).await?;

    let mut tasks = JoinSet::new();
    {
        let drain = drain.clone();
        tasks.spawn(async move {
            match drain.until_draining(lost).await {
                Some(lost) => Err(lost.into()),
                None => Ok(()),
            }
        });
    }
    let (changes, mut changed) = mpsc::channel(1);
    let mut cluster = None;
    if config.source == Source::Kubernetes {
        let kubeconfig = config.kubeconfig.as_deref();
        let settings = config.cluster_settings();
        let cluster = cluster.insert(Cluster::connect(kubeconfig, settings, owner.news()).await?);
        let complete = cluster.follow(owner.objects(), &changes, &drain, &mut tasks);
        health.waiting("policy", "reading the Kubernetes API");
        // Half of the policies would let through what the others refuse.
        owner.read_until(&mut changed, complete.wait()).await;
    }

    let address = listener.local_addr().map_err(|source| RpcError::Bind {
        address: config.listen.to_string(),
        source,
    })?;
    let local = config.run_dir.as_ref();
    let local = local
        .map(|dir| weft_rpc::bind_local(&dir.join("policy.sock")))
        .transpose()?;
    let tls = server_config(Arc::new(svid.clone()), &trust, ClientAuth::Required, &[b"h2"])?;
    let (events, incoming) = mpsc::channel(EVENTS);
    let api = Api::new(
        events.clone(),
        hosts.clone(),
        counts.clone(),
        config.insecure_loopback,
        config.svid_form,
        drain.clone(),
    );
    let server = GrpcServer::new("weft.policy.v1", weft_proto::WEFT_DESCRIPTORS, ROLES)?
        .add_service(
            pb::registry_server::RegistryServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            pb::distribution_server::DistributionServer::new(api.clone())
                .max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            pb::explain_server::ExplainServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            pb::resources_server::ResourcesServer::new(api)
                .max_decoding_message_size(MAX_REQUEST + weft_resources::MAX_FILE_BYTES),
        )
        .build();

    {
        let (hosts, drain) = (hosts.clone(), drain.clone());
        tasks.spawn(async move {
            kept.keep(hosts, drain).await;
            Ok(())
        });
    }
    if let Some(folder) = folder {
        let drain = drain.clone();
        tasks.spawn(async move {
            watch(folder, changes, drain).await;
            Ok(())
        });
    }
    {
        let drain = drain.clone();
        tasks.spawn(async move {
            owner.run(incoming, changed, drain).await;
            Ok(())
        });
    }
    if let Some(cluster) = cluster {
        let drain = drain.clone();
        tasks.spawn(async move {
            cluster.write(events, drain).await;
            Ok(())
        });
    }
    if let Some(local) = local {
        let (server, drain) = (server.clone(), drain.clone());
        tasks.spawn(async move { Ok(server.serve_local(local, drain).await?) });
    }
    let over_tls = server.serve_tls(listener, Arc::new(tls), trust.clone(), drain);
    tasks.spawn(async move { Ok(over_tls.await?) });
    tracing::info!(%address, "policy service ready");
    Ok(Handle {
        address,
        hosts,
        svid,
        trust,
        tasks,
    })
}
