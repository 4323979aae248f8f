//! Putting the parts together: [`start`] makes an agent out of its configuration.
//!
//! Owns the order of the start and what the parts share. Nothing is accepted before the agent is
//! a member of the mesh; what an agent before this one knew is in force from the first moment.

use crate::{
    api::{self, Facts},
    certificates::Certificates,
    channels, components,
    config::AgentConfig,
    dns::{self, Dns},
    egress,
    error::AgentError,
    gateways::{self, Failures},
    hubble,
    kernel::{self, KernelTables},
    locals::{Local, Locals},
    mesh::Mesh,
    metrics::{Counters, Gauges},
    node::{self, NodeSide},
    registry::Registry,
    shared_apps::SharedApps,
    subscription::{self, Subscription},
    table::Table,
    upstream::Upstream,
    view::View,
};
use arc_swap::ArcSwapOption;
use std::{
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weft_bpf::Origins;
use weft_capture::{Capture, CaptureLimits, Streams};
use weft_drain::Watcher;
use weft_enroll::{EnrollError, Enrollment, KubernetesJoin, Member, TokenSource};
use weft_flows::FlowLog;
use weft_model::TrustDomain;
use weft_proto::weft::{dataplane::v1::Capability, policy::v1::Workload};
use weft_proxy::{Proxy, ProxyLimits};
use weft_runtime::{AppContext, Blocks, Environment as Surroundings, Runtime, RuntimeLimits, Tunnels};
use weft_telemetry::{Health, Metrics};
use weft_tls::{ClientAuth, Expect, Trust};
use weft_tunnel::{Limits as TunnelLimits, SharedIdentities};

/// Where the agent's privileged half is.
#[derive(Debug)]
pub enum Environment {
    /// `weft-node` handed this socket over.
    Handoff(OwnedFd),
    /// `weft-node` listens here.
    HandoffPath(PathBuf),
    /// There is none: workloads of this user, each on ports of its own.
    Rootless,
}

impl Environment {
    /// As the configuration says.
    pub fn of(config: &AgentConfig) -> Result<Self, AgentError> {
        if let Some(number) = config.handoff_fd {
            return Ok(Self::Handoff(weft_handoff::AgentLink::from_number(number)?));
        }
        if let Some(path) = &config.handoff_socket {
            return Ok(Self::HandoffPath(path.clone()));
        }
        if config.rootless {
            return Ok(Self::Rootless);
        }
        Err(AgentError::NoNode)
    }
}

/// What all parts share.
pub struct Shared {
    /// This node's name.
    pub node: String,
    /// The mesh's.
    pub trust_domain: TrustDomain,
    /// What requests are answered from.
    pub view: View,
    /// At the policy service.
    pub registry: Registry,
    /// At the identity service.
    pub certificates: Certificates,
    /// Who answers on the node's tunnel port.
    pub identities: SharedIdentities,
    /// Sessions with the policy service so far.
    pub sessions: watch::Sender<u64>,
    /// Every decision.
    pub flows: FlowLog,
    /// What is counted.
    pub counters: Counters,
    /// Cancelled once what was here before this agent is there again: until then nothing is
    /// accepted, so that nobody is told that an app is missing which only comes back.
    pub settled: CancellationToken,
    /// Ends everything.
    pub drain: Watcher,
    /// HTTP, request by request.
    pub proxy: Arc<Proxy>,
    /// What is redirected by the kernel, and what comes for it by tunnel.
    pub capture: Arc<Capture>,
    /// The writer of the kernel's policy tables; none where there are none.
    pub kernel: Option<KernelTables>,
    /// The kernel's records of who connected; none where it keeps none.
    pub origins: ArcSwapOption<Origins>,
    /// Questions to resolvers.
    pub dns: Dns,
    runtime: Arc<Runtime>,
    /// The mesh's roots.
    pub trust: Trust,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Dapr's HTTP API on a connection that is known to be this app's.
    pub async fn serve_http(&self, app: Arc<AppContext>, stream: TcpStream) {
        if let Err(error) = self
            .runtime
            .serve_connection(&app, stream, self.drain.clone())
            .await
        {
            tracing::debug!(workload = %app.workload(), %error, "connection of an app ended");
        }
    }

    /// Dapr's gRPC API on a connection that is known to be this app's.
    pub async fn serve_grpc(&self, app: Arc<AppContext>, stream: TcpStream) {
        if let Err(error) = self.runtime.serve_grpc(&app, stream, self.drain.clone()).await {
            tracing::debug!(workload = %app.workload(), %error, "gRPC connection of an app ended");
        }
    }

    /// The building blocks of the apps here.
    pub fn blocks(&self) -> &Blocks {
        self.runtime.blocks()
    }

    /// Tells the building blocks what the policy service sent so far.
    pub fn tell_components(&self) {
        self.view.mesh.components.tell(&self.view.mesh, self.blocks());
    }

    /// Tunnels of other nodes, until the drain or until `gone`.
    pub async fn serve_tunnels(
        &self,
        listener: TcpListener,
        who: weft_tunnel::Local,
        gone: CancellationToken,
    ) {
        let calls = self.runtime.tunnel_handler(self.drain.clone());
        let handler = Streams::new(self.capture.clone(), calls, self.drain.clone());
        let served = weft_tunnel::serve(
            listener,
            who,
            self.trust.clone(),
            TunnelLimits::default(),
            handler,
            self.drain.clone(),
        );
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::error!(%error, "tunnels are not accepted");
                }
            }
            () = gone.cancelled() => {}
        }
    }

    /// A workload is gone: nobody answers tunnels in its name, but for another one that has the same.
    pub fn forget_identity(&self, gone: &Local) {
        let Some(member) = gone.member() else { return };
        let same = |l: &Arc<Local>| l.member().is_some_and(|m| m.spiffe_id == member.spiffe_id);
        match self.view.locals.all().into_iter().find(same) {
            Some(other) => self.identities.insert(&member.spiffe_id, other.svid.clone()),
            None => self.identities.remove(&member.spiffe_id),
        }
    }

    /// The workloads of this node, as the status tells them.
    pub fn workloads(&self) -> Vec<Workload> {
        let locals = self.view.locals.all().into_iter();
        let mut workloads: Vec<Workload> = locals
            .map(|local| match local.member() {
                Some(member) => member.workload.clone(),
                None => Workload {
                    id: local.id.to_string(),
                    node: self.node.clone(),
                    ..Default::default()
                },
            })
            .collect();
        workloads.sort_by(|a, b| a.id.cmp(&b.id));
        workloads
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Handle {
    node: String,
    local_socket: PathBuf,
    admin: SocketAddr,
    hubble: Option<SocketAddr>,
    flows: FlowLog,
    tasks: JoinSet<Result<(), AgentError>>,
}

impl Handle {
    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where launchers find the local API.
    pub fn local_socket(&self) -> &Path {
        &self.local_socket
    }

    /// Where operators find the agent.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where Hubble's API is, besides its socket.
    pub fn hubble_address(&self) -> Option<SocketAddr> {
        self.hubble
    }

    /// The decisions so far.
    pub fn flows(&self) -> &FlowLog {
        &self.flows
    }

    /// Until the drain has ended, or something without which the agent can not go on.
    pub async fn wait(mut self) -> Result<(), AgentError> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|e| AgentError::Task(e.to_string()))??;
        }
        Ok(())
    }
}

/// Makes an agent. Returns when it serves; the rest runs until the drain.
pub async fn start(
    config: AgentConfig,
    environment: Environment,
    metrics: &Metrics,
    health: &Health,
    drain: Watcher,
) -> Result<Handle, AgentError> {
    let started = SystemTime::now();
    let trust_domain: TrustDomain = config.trust_domain.parse()?;
    let data = Data::make(&config.data_dir)?;
    health.waiting("membership", "joining the mesh");

    let mut side = NodeSide::connect(&config, environment, &data.workloads).await?;
    let node = side.node.clone();
    let member = enroll(&config, &trust_domain, &node, &data, drain.clone()).await?;

    let channel = |name: &'static str, address: &str| {
        let expect = Expect::Id(trust_domain.service(name)?);
        let channel = weft_rpc::channel(address, Some(&member.svid), &member.trust, expect)?;
        Ok::<_, AgentError>((channel, Upstream::new(name, address)))
    };
    let (identity_channel, identity) = channel("identity", &config.identity)?;
    let (policy_channel, policy) = channel("policy", &config.policy)?;
    let (placement_channel, placement) = channel("placement", &config.placement)?;

    let mesh = Mesh::new(&node, config.tunnel_port).with_audit(config.policy_audit_mode);
    // Before the policies that name names.
    mesh.take_over_names(&data.names);
    if let Err(error) = subscription::restore(&mesh, &data.mesh) {
        tracing::warn!(%error, "starting without the last good state");
    }
    let mesh_touched = mesh.touched();
    let mut tasks = JoinSet::new();
    spawn(
        &mut tasks,
        identity.clone().watch(identity_channel.clone(), drain.clone()),
    );
    let certificates = Certificates::new(
        identity_channel,
        identity.clone(),
        member.trust.clone(),
        &node,
        &data.svids,
    );
    certificates.sweep()?;
    let view = View {
        mesh: mesh.clone(),
        locals: Locals::default(),
        host: side.host.clone(),
        channels: Arc::default(),
    };
    let flows = FlowLog::new(&node);
    let tunnels = weft_tunnel::Client::new(
        member.trust.clone(),
        Arc::new(view.clone()),
        TunnelLimits::default(),
    );
    let proxy = Proxy::new(
        Arc::new(view.clone()),
        mesh.routing.clone(),
        Tunnels::new(tunnels.clone()),
        flows.clone(),
        ProxyLimits::default(),
    );
    let capture = Capture::new(
        Arc::new(view.clone()),
        proxy.clone(),
        tunnels.clone(),
        flows.clone(),
        CaptureLimits::default(),
    );
    let surroundings = Surroundings {
        directory: Arc::new(view.clone()),
        judge: Arc::new(view.clone()),
        apps: Arc::new(egress::Apps::new(view.clone(), capture.clone())),
        tunnels: Arc::new(Tunnels::new(tunnels.clone())),
        flows: flows.clone(),
    };
    let kernel = match side.kernel()? {
        None => None,
        Some(tables) => {
            let surroundings = kernel::Surroundings {
                node: node.clone(),
                addresses: side.addresses(&config),
                view: view.clone(),
                folder: config.data_dir.clone(),
                names: data.names.clone(),
            };
            Some(KernelTables::start(tables, surroundings, drain.clone()))
        }
    };
    let packets = side.packets()?;
    let shared = Arc::new(Shared {
        node: node.clone(),
        trust_domain,
        registry: Registry::new(policy_channel.clone(), policy.clone(), side.is_rootless()),
        certificates,
        identities: SharedIdentities::new(),
        sessions: watch::Sender::new(0),
        settled: CancellationToken::new(),
        flows: flows.clone(),
        counters: Counters::register(metrics),
        drain: drain.clone(),
        proxy: proxy.clone(),
        capture: capture.clone(),
        kernel: kernel.clone(),
        origins: ArcSwapOption::new(side.origins()?),
        dns: Dns::new(side.questions()?, side.conntrack()?),
        runtime: Runtime::with_components(
            surroundings,
            RuntimeLimits::default(),
            components::drivers(),
            components::files(&config.data_dir),
        ),
        trust: member.trust.clone(),
        view,
    });
    channels::connect(&shared, &shared.runtime);
    let upstreams = vec![identity, policy.clone(), placement.clone()];
    metrics.register_collector(Box::new(Gauges {
        flows: flows.clone(),
        upstreams: upstreams.clone(),
        locals: shared.view.locals.clone(),
        tunnels,
        capture: capture.clone(),
        kernel: kernel.clone(),
        names: mesh.names.clone(),
    }));
    if let (Some((events, counters)), Some(tables)) = (packets, &kernel) {
        let reading = crate::packets::read(shared.clone(), events, counters, tables.clone());
        spawn(&mut tasks, reading);
    }

    let subscription = Subscription {
        mesh: mesh.clone(),
        channel: policy_channel.clone(),
        upstream: policy,
        addresses: side.addresses(&config),
        pod_cidrs: config.pod_cidrs.clone(),
        kernel,
        sessions: shared.sessions.clone(),
    };
    spawn(&mut tasks, subscription.run(drain.clone()));
    spawn(&mut tasks, subscription::save(mesh, data.mesh, drain.clone()));
    spawn(&mut tasks, capture.maintain(mesh_touched, drain.clone()));
    spawn(&mut tasks, proxy.maintain(drain.clone()));
    spawn(&mut tasks, dns::maintain(shared.clone(), drain.clone()));
    spawn(&mut tasks, shared.runtime.clone().maintain(drain.clone()));
    spawn(&mut tasks, components::follow(shared.clone(), drain.clone()));
    spawn(
        &mut tasks,
        crate::placement::follow(placement_channel, placement, drain.clone()),
    );

    let failures = Failures::default();
    spawn(
        &mut tasks,
        gateways::run(
            shared.clone(),
            side.addresses(&config).first().copied(),
            failures.clone(),
            drain.clone(),
        ),
    );
    let shared_apps = SharedApps::start(shared.clone()).await;
    spawn(&mut tasks, shared_apps.run(drain.clone()));
    let replayed = std::mem::take(&mut side.replayed);
    let table = Table::start(shared.clone(), replayed, drain.clone());
    let capabilities = std::mem::take(&mut side.capabilities);
    let (local, local_socket) = side.local_socket(&config)?;
    let observer = hubble::listen(&config).await?;
    let place = hubble::Place {
        started,
        addresses: side.addresses(&config),
        port: observer
            .as_ref()
            .map_or(hubble::PORT, |(_, address)| address.port()),
        tls: !config.hubble_plaintext,
    };
    let (observer, hubble_address) = observer.unzip();
    hubble::serve(
        &mut tasks,
        hubble::server(&shared, place)?,
        side.hubble_socket(&config)?,
        observer,
        &member,
        config.hubble_plaintext,
        drain.clone(),
    )?;
    if config.hubble_export.file_path.is_some() {
        let exporting = hubble::export(shared.clone(), config.hubble_export.clone());
        spawn(&mut tasks, exporting);
    }
    let facts = Facts {
        started,
        capabilities,
        gateways: failures,
        upstreams,
        svid: member.svid.clone(),
        policy: policy_channel.clone(),
    };
    let server = api::server(&shared, &table, facts)?;
    let admin = serve_api(&mut tasks, server, local, &config, &member, drain.clone()).await?;
    tasks.spawn(node::run(side, shared, table, config.clone(), drain));
    health.ready("membership");
    tracing::info!(node, admin = %admin, local = %local_socket.display(), "agent serves");
    Ok(Handle {
        node,
        local_socket,
        admin,
        hubble: hubble_address,
        flows,
        tasks,
    })
}

fn spawn(tasks: &mut JoinSet<Result<(), AgentError>>, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        task.await;
        Ok(())
    });
}

async fn serve_api(
    tasks: &mut JoinSet<Result<(), AgentError>>,
    server: weft_rpc::BuiltServer,
    local: UnixListener,
    config: &AgentConfig,
    member: &Member,
    drain: Watcher,
) -> Result<SocketAddr, AgentError> {
    let bind = |source| AgentError::Bind {
        address: config.listen.clone(),
        source,
    };
    let mut addresses = tokio::net::lookup_host(&config.listen).await.map_err(bind)?;
    let address = addresses
        .next()
        .ok_or_else(|| bind(std::io::ErrorKind::AddrNotAvailable.into()))?;
    // Shared with the agent that this one replaces, or that will replace it.
    let listener = weft_telemetry::http::listen(address).map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let certificates = Arc::new(member.svid.clone());
    let tls = weft_tls::server_config(certificates, &member.trust, ClientAuth::Required, &[b"h2"])?;
    let trust = member.trust.clone();
    let over_tls = server
        .clone()
        .serve_tls(listener, Arc::new(tls), trust, drain.clone());
    tasks.spawn(async move { Ok(over_tls.await?) });
    tasks.spawn(async move { Ok(server.serve_local(local, drain).await?) });
    Ok(address)
}

async fn enroll(
    config: &AgentConfig,
    trust_domain: &TrustDomain,
    node: &str,
    data: &Data,
    drain: Watcher,
) -> Result<Member, AgentError> {
    let id = trust_domain.node(node)?;
    let mut enrollment = Enrollment::new(id, data.identity.clone(), config.identity.clone());
    if let Some(token) = &config.join_token {
        enrollment = enrollment.token(TokenSource::text(&token.0)?);
    } else if let Some(file) = &config.join_token_file {
        enrollment = enrollment.token(TokenSource::File(file.clone()));
    } else if let Some(token_file) = &config.join_kubernetes_token_file {
        let anchors = config.trust_anchors_file.as_ref();
        enrollment = enrollment.kubernetes(KubernetesJoin {
            token_file: token_file.clone(),
            trust_anchors_file: anchors.ok_or(EnrollError::NoTrustAnchors)?.clone(),
        });
    }
    Ok(enrollment.enroll(drain).await?)
}

/// The files of an agent.
struct Data {
    identity: PathBuf,
    svids: PathBuf,
    mesh: PathBuf,
    workloads: PathBuf,
    names: PathBuf,
}

impl Data {
    fn make(folder: &Path) -> Result<Self, AgentError> {
        let svids = folder.join("svids");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&svids)
            .map_err(|source| AgentError::Data {
                path: folder.into(),
                source,
            })?;
        Ok(Self {
            identity: folder.join("identity"),
            svids,
            mesh: folder.join("mesh.state"),
            workloads: folder.join("workloads.state"),
            names: folder.join("names.state"),
        })
    }
}

/// A capability that is there.
pub fn active(name: &str) -> Capability {
    Capability {
        name: name.into(),
        active: true,
        reason: String::new(),
    }
}

/// A capability that is not, why, and how to get it.
pub fn inactive(name: &str, reason: &str) -> Capability {
    Capability {
        name: name.into(),
        active: false,
        reason: reason.into(),
    }
}
