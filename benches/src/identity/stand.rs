//! What the certificate authority is measured with: its process, a registry of workloads that it
//! follows, and the nodes that ask for them.

use crate::{
    Options,
    sample::{pin, rss_mib},
};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use std::{
    net::SocketAddr,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
};
use tonic::{Request, Response, Status, transport::Channel};
use weft_drain::{Trigger, Watcher};
use weft_enroll::{Enrollment, Member, TokenSource};
use weft_model::{SpiffeId, TrustDomain};
use weft_proto::{
    WEFT_DESCRIPTORS,
    weft::{
        identity::v1::{
            CreateJoinTokenRequest, HostPattern, ListAuditRequest, SignWorkloadRequest, SvidUse,
            admin_client::AdminClient, certificates_client::CertificatesClient,
        },
        policy::v1::{
            DeregisterRequest, DeregisterResponse, RegisterRequest, RegisterResponse, WatchRequest,
            WatchResponse, Workload,
            registry_server::{Registry, RegistryServer},
        },
    },
};
use weft_rpc::{Admit, GrpcServer, MethodRoles};
use weft_tls::{ClientAuth, Expect, new_key_and_csr, server_config};

/// Nodes, each with its connections, and the workloads of each.
pub const NODES: usize = 40;
pub const EACH: usize = 250;
const START: Duration = Duration::from_secs(30);
/// What one member may ask for is limited; here a few ask for many.
const LIMITS: &str = "limits: {member_burst: 4000000000, member_per_second: 4000000000}\n";
const ROLES: MethodRoles = MethodRoles(&[("/weft.policy.v1.Registry/Watch", &[Admit::Service("identity")])]);

/// The running service and who asks it.
pub struct Stand {
    pub pid: i32,
    /// When nothing was given out yet.
    pub fresh: f64,
    pub admin: AdminClient<Channel>,
    pub askers: Vec<Asker>,
    service: Child,
    _drain: Trigger,
    _dir: TempDir,
}

/// One node's way to the service.
#[derive(Clone)]
pub struct Asker {
    node: usize,
    client: CertificatesClient<Channel>,
    csr: Vec<u8>,
}

fn workload_id(node: usize, workload: usize) -> String {
    format!("n{node}/default/app-{node}-{workload}/1")
}

impl Asker {
    /// Asks for one of the node's workloads.
    pub async fn ask(&mut self, workload: usize) -> Result<()> {
        let request = SignWorkloadRequest {
            workload_id: workload_id(self.node, workload % EACH),
            csr_der: self.csr.clone(),
            r#use: SvidUse::Tunnel.into(),
        };
        let reply = self.client.sign_workload(request).await?.into_inner();
        let chain = reply.svid.unwrap_or_default().chain_der;
        if chain.len() < 2 {
            bail!("a chain of {} certificates", chain.len());
        }
        Ok(())
    }
}

/// In the policy service's place: all workloads at once, and no change.
struct Known;

type Changes = Pin<Box<dyn futures::Stream<Item = Result<WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for Known {
    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        Err(Status::unimplemented("only watched here"))
    }

    async fn deregister(
        &self,
        _: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        Err(Status::unimplemented("only watched here"))
    }

    type WatchStream = Changes;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Changes>, Status> {
        let all = (0..NODES).flat_map(|node| (0..EACH).map(move |n| workload(node, n)));
        let snapshot = WatchResponse {
            snapshot: true,
            upserts: all.collect(),
            removed_ids: Vec::new(),
        };
        let changes = stream::iter([Ok(snapshot)]).chain(stream::pending());
        Ok(Response::new(Box::pin(changes)))
    }
}

fn workload(node: usize, n: usize) -> Workload {
    let app_id = format!("app-{node}-{n}");
    Workload {
        id: workload_id(node, n),
        node: format!("n{node}"),
        namespace: "default".into(),
        name: app_id.clone(),
        spiffe_id: format!("spiffe://cluster.local/ns/default/{app_id}"),
        labels: [("app".to_owned(), app_id.clone())].into(),
        addresses: vec![format!("10.{node}.{}.{}", n / 250, n % 250)],
        app_id,
        ..Workload::default()
    }
}

impl Stand {
    /// Everything is there and known; one certificate was given to each node.
    pub async fn start(options: &Options) -> Result<Self> {
        let dir = tempfile::tempdir().context("no temporary folder")?;
        let policy = TcpListener::bind("127.0.0.1:0").await?;
        let free = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = free.local_addr()?.to_string();
        drop(free);
        let service = spawn(options, &dir, &address, policy.local_addr()?)?;
        let pid = i32::try_from(service.id().context("weft-identity ended")?)?;
        let mut admin = AdminClient::new(weft_rpc::channel_local(dir.path().join("run/identity.sock"))?);
        let up = async {
            while admin.list_audit(ListAuditRequest::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START, up)
            .await
            .context("weft-identity did not start")?;
        pin(i32::try_from(std::process::id())?, 0)?;
        pin(pid, 1)?;
        let fresh = rss_mib(pid);

        let (trigger, drain) = weft_drain::channel();
        let domain = TrustDomain::default();
        let id = domain.service("policy")?;
        let member = join(&mut admin, &dir, &address, id, drain.clone()).await?;
        serve_registry(policy, &member, drain.clone())?;
        let mut askers = Vec::new();
        for node in 0..NODES {
            let id = domain.node(&format!("n{node}"))?;
            let member = join(&mut admin, &dir, &address, id, drain.clone()).await?;
            let expect = Expect::Id(domain.service("identity")?);
            let channel = weft_rpc::channel(&address, Some(&member.svid), &member.trust, expect)?;
            askers.push(Asker {
                node,
                client: CertificatesClient::new(channel),
                // Making keys is the nodes' work, and not measured.
                csr: new_key_and_csr()?.csr_der,
            });
        }
        for asker in &mut askers {
            // The service follows the registry as soon as it can.
            let begun = Instant::now();
            while let Err(error) = asker.ask(0).await {
                if begun.elapsed() > START {
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        // Threads that came meanwhile.
        pin(pid, 1)?;
        Ok(Self {
            pid,
            fresh,
            admin,
            askers,
            service,
            _drain: trigger,
            _dir: dir,
        })
    }

    /// Ends the service.
    pub async fn stop(mut self) -> Result<()> {
        Ok(self.service.kill().await?)
    }
}

/// A certificate authority that follows the registry at `policy`.
pub(crate) fn spawn(options: &Options, dir: &TempDir, address: &str, policy: SocketAddr) -> Result<Child> {
    let settings = dir.path().join("identity.yaml");
    std::fs::write(&settings, LIMITS)?;
    Command::new(options.bin_dir.join("weft-identity"))
        .args(["--metrics-listen", "127.0.0.1:0", "--listen", address])
        .arg("--config")
        .arg(&settings)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .arg("--run-dir")
        .arg(dir.path().join("run"))
        .args(["--policy-addr", &policy.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("weft-identity can not be started")
}

fn serve_registry(listener: TcpListener, member: &Member, drain: Watcher) -> Result<()> {
    let certificates = Arc::new(member.svid.clone());
    let tls = server_config(certificates, &member.trust, ClientAuth::Required, &[b"h2"])?;
    let server = GrpcServer::new("weft.policy.v1", WEFT_DESCRIPTORS, ROLES)?
        .add_service(RegistryServer::new(Known))
        .build();
    tokio::spawn(server.serve_tls(listener, Arc::new(tls), member.trust.clone(), drain));
    Ok(())
}

/// Makes a member of the mesh, in a folder of its own.
pub(crate) async fn join(
    admin: &mut AdminClient<Channel>,
    dir: &TempDir,
    address: &str,
    id: SpiffeId,
    drain: Watcher,
) -> Result<Member> {
    let name = id.path().rsplit('/').next().unwrap_or_default().to_owned();
    let any = HostPattern {
        namespace: "*".into(),
        app_id: "*".into(),
    };
    let is_node = id.path().contains("/node/");
    let request = CreateJoinTokenRequest {
        kind: if is_node { "node" } else { "service" }.into(),
        name: name.clone(),
        may_host: if is_node { vec![any] } else { Vec::new() },
        ..Default::default()
    };
    let token = admin.create_join_token(request).await?.into_inner().token;
    let enrollment = Enrollment::new(id, dir.path().join(name), address.to_owned());
    let enrollment = enrollment.token(TokenSource::text(&token)?);
    Ok(enrollment.enroll(drain).await?)
}
