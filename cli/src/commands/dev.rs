//! `weft dev`: the four services in this process, on SQLite, for one user on one machine.
//!
//! With root the node is real: programs in the kernel, cgroups, plain localhost:3500. Without root
//! each app gets ports and a token of its own, and nothing is enforced in the kernel; both are said
//! at the start. Join tokens are handed over in memory and never written.

use super::preflight;
use crate::connect::default_run_dir;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::task::JoinSet;
use weft_agent::{AgentConfig, Environment};
use weft_drain::Watcher;
use weft_enroll::{Enrollment, TokenSource};
use weft_identity::{HostPattern, Kind};
use weft_model::TrustDomain;
use weft_telemetry::{Health, LogFormat, Metrics, TelemetryConfig};

/// How long calls that run get to finish after the first Ctrl-C.
const DRAIN: Duration = Duration::from_secs(10);
/// A token is used within moments of being made.
const TOKEN_TTL: Duration = Duration::from_secs(300);

/// Run all services in this process, on SQLite, for development.
///
/// Needs no root: each app then gets ports and a token of its own. With root apps call plain
/// localhost:3500 and the kernel says who calls.
#[derive(Debug, Args)]
#[command(
    after_help = "Then, in another terminal:\n  weft run --app-id hello --app-port 8080 -- python app.py"
)]
pub struct Dev {
    /// Folder for databases and keys
    /// [default: /var/lib/weft/dev for root, else $XDG_STATE_HOME/weft/dev]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder with manifests, as `weft get` shows them: Services, Gateways and routes, network policies,
    /// Components, Configurations; watched
    #[arg(long, value_name = "DIR")]
    resources: Option<PathBuf>,
    /// Folder for the local sockets [default: /run/weft for root, else $XDG_RUNTIME_DIR/weft]
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Let the kernel choose the services' ports instead of 7301 to 7304
    #[arg(long)]
    ephemeral_ports: bool,
    /// Name of the only node; with root its cgroups are below <cgroup2>/weft/<name>
    #[arg(long, default_value = "dev", value_name = "NAME", value_parser = parse_node_name)]
    node_name: String,
    /// Do without the kernel's means even as root
    #[arg(long)]
    rootless: bool,
    /// Log level or filter
    #[arg(long, env = "WEFT_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
}

fn parse_node_name(text: &str) -> Result<String, weft_model::NameError> {
    weft_model::check_name(text).map(|()| text.to_owned())
}

/// What all parts are given.
struct Parts {
    state: PathBuf,
    run: PathBuf,
    trust_domain: TrustDomain,
    metrics: Metrics,
    health: Health,
    drain: Watcher,
    ephemeral: bool,
}

impl Parts {
    fn listen(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, if self.ephemeral { 0 } else { port }).into()
    }

    fn enrollment(
        &self,
        role: &str,
        name: &str,
        identity: SocketAddr,
        token: TokenSource,
    ) -> Result<Enrollment> {
        let id = if role == "node" {
            self.trust_domain.node(name)
        } else {
            self.trust_domain.service(name)
        };
        Ok(Enrollment::new(id?, self.state.join(name).join("member"), identity.to_string()).token(token))
    }
}

impl Dev {
    /// Runs until Ctrl-C.
    pub async fn run(self) -> Result<ExitCode> {
        let telemetry = TelemetryConfig {
            log: self.log.clone(),
            log_format: LogFormat::Text,
            ..TelemetryConfig::default()
        };
        let _guard = weft_telemetry::init("weft-dev", &telemetry)?;
        let state = self
            .state_dir
            .clone()
            .unwrap_or_else(|| weft_config::state_dir("dev"));
        let run = self.run_dir.clone().unwrap_or_else(default_run_dir);
        preflight::folders(&state, &run, self.resources.as_deref())?;
        if !self.ephemeral_ports {
            preflight::ports(&[4244, 7301, 7302, 7303, 7304])?;
        }
        let (trigger, drain) = weft_drain::channel();
        let sockets =
            ["agent.sock", "hubble.sock", "identity.sock", "policy.sock"].map(|name| run.join(name));
        let parts = Parts {
            state,
            run,
            trust_domain: TrustDomain::default(),
            metrics: Metrics::new("dev"),
            health: Health::default(),
            drain,
            ephemeral: self.ephemeral_ports,
        };
        let mut tasks = JoinSet::new();
        // Caught from here on, so that Ctrl-C during the start tidies up as well.
        let stopped = weft_drain::shutdown_signal();
        tokio::pin!(stopped);
        let started = tokio::select! {
            started = self.start(&parts, &mut tasks) => Some(started?),
            _ = &mut stopped => None,
        };
        let mut failed = None;
        if let Some(started) = &started {
            println!("{}", started.banner);
            tokio::select! {
                _ = &mut stopped => println!("stopping; Ctrl-C again stops at once"),
                ended = tasks.join_next() => {
                    failed = ended;
                    eprintln!("weft: a service ended by itself; stopping the others");
                }
            }
        }
        drop(parts);
        tokio::select! {
            _ = trigger.drain(DRAIN) => {}
            _ = weft_drain::shutdown_signal() => {}
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        if let Some(started) = started {
            // All was up, so these were ours; a file that is gone already is none to remove.
            for socket in sockets {
                let _ = std::fs::remove_file(socket);
            }
            if let Some(node) = started.node {
                node.stop(false).await;
            }
        }
        match failed {
            None => Ok(ExitCode::SUCCESS),
            Some(ended) => Err(ended?
                .err()
                .unwrap_or_else(|| anyhow!("a service ended by itself"))),
        }
    }

    async fn start(&self, parts: &Parts, tasks: &mut JoinSet<Result<()>>) -> Result<Started> {
        let config = weft_identity::Config {
            listen: parts.listen(7301),
            state_dir: parts.state.join("identity"),
            run_dir: Some(parts.run.clone()),
            ..weft_identity::Config::default()
        };
        // Only here: all of this mesh is one process of one user, and ends with it.
        let env = weft_identity::Env::new(parts.drain.clone()).insecure_attestation();
        let mut identity = weft_identity::start_with(config, env).await.context("identity")?;
        let at = identity.address();

        let made = join_token(&identity, Kind::Service, "policy", vec![]).await?;
        let member = parts
            .enrollment("service", "policy", at, TokenSource::Given(made))?
            .enroll(parts.drain.clone())
            .await?;
        let config = weft_policy::Config {
            listen: parts.listen(7303),
            state_dir: parts.state.join("policy"),
            run_dir: Some(parts.run.clone()),
            resources: self.resources.clone(),
            identity_addr: at.to_string(),
            // There is no other node, and without root all apps are on loopback.
            insecure_loopback: true,
            ..weft_policy::Config::default()
        };
        let mut policy = weft_policy::start(
            config,
            member.svid,
            member.trust,
            parts.drain.clone(),
            &parts.metrics,
        )
        .await
        .context("policy")?;
        policy.follow_identity(at.to_string(), parts.drain.clone());
        identity.follow_policy(policy.address().to_string(), parts.drain.clone());

        let made = join_token(&identity, Kind::Service, "placement", vec![]).await?;
        let member = parts
            .enrollment("service", "placement", at, TokenSource::Given(made))?
            .enroll(parts.drain.clone())
            .await?;
        let listen = parts.listen(7302);
        let listener = weft_placement::bind(listen).await?;
        let database = parts.state.join("placement").join("placement.db");
        let placement = weft_placement::start(
            weft_placement::Options::new(listener, database, member.svid, member.trust),
            parts.drain.clone(),
        )
        .await
        .context("placement")?;

        let everything = HostPattern {
            namespace: "*".into(),
            app_id: "*".into(),
        };
        let made = join_token(&identity, Kind::Node, &self.node_name, vec![everything]).await?;
        let (node, environment, why) = self.node(parts).await?;
        let config = AgentConfig {
            node: self.node_name.clone(),
            identity: at.to_string(),
            policy: policy.address().to_string(),
            placement: placement.address().to_string(),
            join_token: Some(weft_agent::Secret(made.reveal().to_string())),
            data_dir: parts.state.join("agent"),
            listen: parts.listen(7304).to_string(),
            hubble_listen: parts.listen(4244).to_string(),
            local_socket: parts.run.join("agent.sock"),
            // There is no other node to reach it, so any port will do.
            tunnel_port: parts.listen(AgentConfig::default().tunnel_port).port(),
            ..AgentConfig::default()
        };
        let agent = weft_agent::start(
            config,
            environment,
            &parts.metrics,
            &parts.health,
            parts.drain.clone(),
        )
        .await
        .context("agent")?;
        let banner = self.banner(parts, at, why.as_deref(), agent.local_socket());

        tasks.spawn(async move { identity.wait().await.context("identity") });
        tasks.spawn(async move { policy.wait().await.context("policy") });
        tasks.spawn(async move { placement.ended().await.context("placement") });
        tasks.spawn(async move { agent.wait().await.context("agent") });
        Ok(Started { node, banner })
    }

    /// The privileged half, or why there is none.
    async fn node(&self, parts: &Parts) -> Result<(Option<weft_node::Node>, Environment, Option<String>)> {
        if self.rootless {
            return Ok((
                None,
                Environment::Rootless,
                Some("--rootless was asked for".into()),
            ));
        }
        if !nix::unistd::geteuid().is_root() {
            return Ok((
                None,
                Environment::Rootless,
                // By its path: sudo has a PATH of its own.
                Some(format!(
                    "this user is not root; `sudo {} dev` has it all",
                    std::env::current_exe()
                        .unwrap_or_else(|_| "weft".into())
                        .display()
                )),
            ));
        }
        let config = weft_node::Config {
            node_name: self.node_name.clone(),
            run_dir: parts.run.clone(),
            ..weft_node::Config::default()
        };
        let node = weft_node::start(&config).await.context("node")?;
        let end = node.agent_end().await?;
        Ok((Some(node), Environment::Handoff(end), None))
    }

    fn banner(&self, parts: &Parts, identity: SocketAddr, why: Option<&str>, socket: &Path) -> String {
        let mut text = format!(
            "weft {} is up: identity {identity}, state in {}\n",
            weft_model::VERSION,
            parts.state.display()
        );
        text +=
            "INSECURE: identity gives certificates to whoever reaches it, without a proof of who that is\n";
        if let Some(folder) = &self.resources {
            text += &format!("manifests are read from {} and watched\n", folder.display());
        }
        match why {
            None => text += "apps call http://localhost:3500; the kernel says who calls\n",
            Some(why) => {
                text += &format!(
                    "NOT ENFORCED in the kernel: {why}.\nEach app gets ports and a token of its own \
                     (DAPR_HTTP_PORT, DAPR_GRPC_PORT, DAPR_API_TOKEN)\n"
                );
            }
        }
        let dir = socket.parent().unwrap_or(Path::new("."));
        let flag = if dir == default_run_dir() {
            String::new()
        } else {
            format!(" --run-dir {}", dir.display())
        };
        text + &format!(
            "run an app:   weft run{flag} --app-id hello --app-port 8080 -- <command>\nCtrl-C stops everything"
        )
    }
}

async fn join_token(
    identity: &weft_identity::Handle,
    kind: Kind,
    name: &str,
    may_host: Vec<HostPattern>,
) -> Result<weft_enroll::JoinToken> {
    let made = identity.create_join_token(kind, name, may_host, TOKEN_TTL).await;
    made.map_err(|refused| anyhow!("no join token for {name}: {refused}"))
}

/// What `start` leaves besides tasks.
struct Started {
    node: Option<weft_node::Node>,
    banner: String,
}
