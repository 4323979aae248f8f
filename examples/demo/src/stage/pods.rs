//! Pods, their apps, and what is asked of them from inside their namespaces.

use super::{APP_PORT, APP_USER, App, START, Stage};
use crate::{command::wait_for, load};
use anyhow::{Context, Result};
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use weft_proto::weft::dataplane::v1::{AddRequest, Placed, WorkloadSpec, workloads_client::WorkloadsClient};
use weft_testnet::{Namespace, Spawn};

impl Stage {
    /// Makes a pod and registers it; nothing runs in it yet.
    pub async fn place_pod(&mut self, node: &str, app_id: &str) -> Result<Namespace> {
        self.place_labelled(node, app_id, &[]).await
    }

    /// The same with more labels than `app`.
    pub async fn place_labelled(
        &mut self,
        node: &str,
        app_id: &str,
        labels: &[(&str, &str)],
    ) -> Result<Namespace> {
        let spec = WorkloadSpec {
            annotations: [("dapr.io/app-id".to_owned(), app_id.to_owned())].into(),
            app_port: APP_PORT.into(),
            app_protocol: "http".into(),
            ..labelled(app_id, labels)
        };
        self.place(node, spec).await?;
        self.pod_namespace(app_id)
    }

    /// Tells a node's agent of a workload.
    pub(super) async fn register(&self, node: &str, spec: WorkloadSpec) -> Result<Placed> {
        let name = spec.name.clone();
        let mut agent = WorkloadsClient::new(self.agent(node)?);
        let reply = tokio::time::timeout(START, agent.add(AddRequest { spec: Some(spec) })).await?;
        let reply = reply.with_context(|| format!("adding {name}; {}", self.log_tail(node)))?;
        Ok(reply.into_inner().placed.unwrap_or_default())
    }

    /// Makes a pod, registers it, and starts its app as a user without rights and with an
    /// environment that says nothing of Dapr or Weft.
    pub async fn start_pod(&mut self, node: &str, app_id: &str, app: App) -> Result<()> {
        let namespace = self.place_pod(node, app_id).await?;
        let command = self.logged(self.app(app, app_id)?, app_id)?;
        let process = namespace.spawn(command, &self.in_pod(app_id))?;
        if let Some(pod) = self.pods.get_mut(app_id) {
            pod.app = Some(process);
        }
        wait_for(app_id, START, || {
            let namespace = namespace.clone();
            async move { Ok(namespace.connect((Ipv4Addr::LOCALHOST, APP_PORT)).map(drop)?) }
        })
        .await
        .with_context(|| self.log_tail(app_id))
    }

    /// A user without rights, in a pod's cgroup.
    pub fn in_pod(&self, app_id: &str) -> Spawn {
        let user = Spawn::user(APP_USER, APP_USER);
        match self.pods.get(app_id).and_then(|pod| pod.cgroup.as_ref()) {
            Some(cgroup) => user.cgroup(cgroup),
            None => user,
        }
    }

    /// The command that runs an app.
    pub fn app(&self, app: App, name: &str) -> Result<Command> {
        Ok(match app {
            App::Rust => {
                let mut command = self.binary("weft-example-cart");
                command.args([name, &APP_PORT.to_string()]);
                command
            }
            App::Python => {
                let python = self.python.as_ref().context("no Python with the dapr package")?;
                let mut command = Command::new(python);
                command
                    .env_clear()
                    .env("PATH", "/usr/bin:/bin")
                    .stdin(Stdio::null());
                command.arg(&self.orders).args([name, &APP_PORT.to_string()]);
                command
            }
        })
    }

    /// One request from inside a namespace.
    pub async fn get(
        &self,
        from: &Namespace,
        to: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(u16, String)> {
        let (from, path) = (from.clone(), path.to_owned());
        let headers: Vec<(String, String)> = headers
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        tokio::task::spawn_blocking(move || {
            from.run(|| {
                let headers: Vec<(&str, &str)> =
                    headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                runtime()?.block_on(load::fetch(to, &path, &headers))
            })?
        })
        .await?
    }

    /// Starts load inside a namespace.
    pub fn load(&self, from: &Namespace, plan: load::Plan) -> RunningLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let (from, halt) = (from.clone(), stop.clone());
        let task = tokio::task::spawn_blocking(move || {
            from.run(|| Ok::<_, anyhow::Error>(runtime()?.block_on(load::run(plan, halt))))?
        });
        RunningLoad { stop, task }
    }
}

/// A workload as it is registered: named after its app-id, with more labels than `app`.
pub fn labelled(app_id: &str, labels: &[(&str, &str)]) -> WorkloadSpec {
    let labels = [("app", app_id)].into_iter().chain(labels.iter().copied());
    WorkloadSpec {
        namespace: "default".into(),
        name: app_id.into(),
        app_id: app_id.into(),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        ..WorkloadSpec::default()
    }
}

/// Load that runs until it is stopped.
pub struct RunningLoad {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<load::Outcome>>,
}

impl RunningLoad {
    /// Ends it and says what happened.
    pub async fn stop(mut self) -> Result<load::Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }
}

impl Drop for RunningLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A runtime of the calling thread: its sockets belong to that thread's namespace.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
