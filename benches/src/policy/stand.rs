//! The cluster that the policy service is measured with: its processes, its manifests, its nodes, and what is
//! changed in it.

mod changes;

use super::{
    Scale,
    layout::{OWN, TOGETHER, address, namespace, subject_and_peer, write_manifests},
    nodes::Nodes,
};
use crate::{
    Options,
    identity::stand::{join, spawn},
};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use weft_drain::Trigger;
use weft_enroll::Member;
use weft_model::TrustDomain;
use weft_proto::weft::{
    identity::v1::{CreateJoinTokenRequest, ListAuditRequest, admin_client::AdminClient},
    policy::v1::{
        ListRequest, RegisterRequest, Workload, WorkloadKind, registry_client::RegistryClient,
        resources_client::ResourcesClient,
    },
};
use weft_tls::Expect;

const START: Duration = Duration::from_secs(120);
/// Registrations under way at once.
const AT_ONCE: usize = 64;

/// What came of a restart with all nodes connected.
pub struct Again {
    pub seconds: f64,
    pub snapshots: usize,
}

/// See the module.
pub struct Stand {
    scale: Scale,
    bin: std::path::PathBuf,
    dir: TempDir,
    address: String,
    authority: String,
    token: String,
    identity: Child,
    service: Option<Child>,
    members: Vec<Member>,
    channels: Vec<Channel>,
    pub nodes: Nodes,
    _drain: Trigger,
}

fn free_address() -> Result<String> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(free.local_addr()?.to_string())
}

impl Stand {
    pub async fn start(options: &Options, scale: Scale) -> Result<Self> {
        if scale.nodes == 0 || scale.services < 4 || scale.workloads < scale.nodes {
            bail!("there must be nodes, four Services and a workload for each node");
        }
        if scale.workloads > scale.nodes * OWN || scale.nodes > 65_536 {
            bail!("a node can have {OWN} workloads here");
        }
        let dir = tempfile::tempdir().context("no temporary folder")?;
        write_manifests(&dir.path().join("manifests"), scale)?;
        let (authority, address) = (free_address()?, free_address()?);
        let identity = spawn(options, &dir, &authority, address.parse()?)?;
        let mut admin = AdminClient::new(weft_rpc::channel_local(dir.path().join("run/identity.sock"))?);
        let up = async {
            while admin.list_audit(ListAuditRequest::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let up = tokio::time::timeout(START, up).await;
        up.context("weft-identity did not start")?;
        let request = CreateJoinTokenRequest {
            kind: "service".into(),
            name: "policy".into(),
            ..Default::default()
        };
        let token = admin.create_join_token(request).await?.into_inner().token;
        let (trigger, drain) = weft_drain::channel();
        let domain = TrustDomain::default();
        let mut stand = Self {
            scale,
            bin: options.bin_dir.join("weft-policy"),
            dir,
            address,
            authority: authority.clone(),
            token,
            identity,
            service: None,
            members: Vec::new(),
            channels: Vec::new(),
            nodes: Nodes::new(scale.nodes),
            _drain: trigger,
        };
        for node in 0..scale.nodes {
            let id = domain.node(&format!("n{node}"))?;
            let member = join(&mut admin, &stand.dir, &authority, id, drain.clone()).await?;
            let expect = Expect::Id(domain.service("policy")?);
            let channel = weft_rpc::channel(&stand.address, Some(&member.svid), &member.trust, expect)?;
            stand.channels.push(channel);
            stand.members.push(member);
        }
        eprintln!("{} nodes joined", scale.nodes);
        stand.start_service().await?;
        Ok(stand)
    }

    pub async fn start_service(&mut self) -> Result<()> {
        let at = |name: &str| self.dir.path().join(name);
        let log = fs::File::create(at("policy.log"))?;
        let service = Command::new(&self.bin)
            .args(["--metrics-listen", "127.0.0.1:0", "--listen", &self.address])
            .args(["--identity-addr", &self.authority, "--join-token", &self.token])
            .arg("--resources")
            .arg(at("manifests"))
            .arg("--state-dir")
            .arg(at("policy"))
            .arg("--run-dir")
            .arg(at("run"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("weft-policy can not be started")?;
        self.service = Some(service);
        let up = async {
            loop {
                let mut resources = ResourcesClient::new(self.local()?);
                let asked = ListRequest {
                    name: "nobody".into(),
                    objects: true,
                    ..Default::default()
                };
                if resources.list(asked).await.is_ok() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let up = tokio::time::timeout(START, up).await;
        up.context("weft-policy did not start")?
    }

    fn local(&self) -> Result<Channel> {
        Ok(weft_rpc::channel_local(self.dir.path().join("run/policy.sock"))?)
    }

    pub fn pid(&self) -> i32 {
        let pid = self.service.as_ref().and_then(Child::id);
        pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default()
    }

    /// As a signal would.
    pub async fn stop_service(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            let pid = service.id().context("weft-policy ended")?;
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(i32::try_from(pid)?),
                nix::sys::signal::Signal::SIGTERM,
            )?;
            tokio::time::timeout(START, service.wait()).await??;
        }
        Ok(())
    }

    pub fn connect_nodes(&self) {
        for (node, channel) in self.channels.iter().enumerate() {
            // A range that is said does not change with each pod.
            let range = format!("10.{}.{}.0/24", node >> 8, node & 255);
            self.nodes.connect(node, range, channel.clone());
        }
    }

    /// The node of the `n`th workload of a Service.
    fn node_of(&self, service: usize, n: usize) -> usize {
        (service + n * self.scale.services) * self.scale.nodes / self.scale.workloads
    }

    /// How many workloads a Service has.
    fn size(&self, service: usize) -> usize {
        let (all, services) = (self.scale.workloads, self.scale.services);
        all / services + usize::from(service < all % services)
    }

    fn nodes_of(&self, service: usize) -> BTreeSet<usize> {
        (0..self.size(service))
            .map(|n| self.node_of(service, n))
            .collect()
    }

    /// The nodes that host something in the namespace of a Service, or whose policies name it.
    fn near(&self, service: usize) -> BTreeSet<usize> {
        let first = service / TOGETHER * TOGETHER;
        let all = first..(first + TOGETHER).min(self.scale.services);
        let mut near: BTreeSet<usize> = all.flat_map(|s| self.nodes_of(s)).collect();
        for other in self.strangers(service) {
            near.extend(self.nodes_of(other));
        }
        near
    }

    /// Services of other namespaces whose policies name this one.
    fn strangers(&self, service: usize) -> Vec<usize> {
        let all = (0..self.scale.policies).filter(|number| number % 100 == 99);
        let pairs = all.map(|number| subject_and_peer(number, self.scale));
        let about = pairs.filter(|(_, from)| *from == service);
        about.map(|(subject, _)| subject).collect()
    }

    fn workload(&self, service: usize, n: usize) -> Workload {
        let number = service + n * self.scale.services;
        let node = format!("n{}", self.node_of(service, n));
        let namespace = namespace(service);
        Workload {
            id: format!("{node}/{namespace}/w-{number}/1"),
            node,
            namespace,
            name: format!("w-{number}"),
            kind: WorkloadKind::Pod.into(),
            labels: [("app".to_owned(), format!("s-{service}"))].into(),
            addresses: vec![address(self.node_of(service, n), 1 + number % OWN)],
            ..Workload::default()
        }
    }

    async fn register(&self, node: usize, workload: Workload) -> Result<()> {
        let request = RegisterRequest {
            workload: Some(workload),
            ..Default::default()
        };
        RegistryClient::new(self.channels[node].clone())
            .register(request)
            .await?;
        Ok(())
    }

    pub async fn register_all(&self) -> Result<()> {
        // What nodes may host arrives from the certificate authority.
        let begun = Instant::now();
        while let Err(error) = self.register(self.node_of(0, 0), self.workload(0, 0)).await {
            if begun.elapsed() > START {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let all = (0..self.scale.services).flat_map(|s| (0..self.size(s)).map(move |n| (s, n)));
        let all = all.map(|(s, n)| self.register(self.node_of(s, n), self.workload(s, n)));
        stream::iter(all)
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(())
    }

    /// Ends everything.
    pub async fn stop(mut self) -> Result<()> {
        self.stop_service().await?;
        Ok(self.identity.kill().await?)
    }
}
