//! Keeping the agent's list of containers true.

use super::{
    engine::Engine,
    spec::{RUN, is_workload, run_of, spec},
};
use crate::connect::agent_error;
use anyhow::Result;
use std::{collections::BTreeMap, path::PathBuf};
use tonic::{Code, transport::Channel};
use weft_proto::weft::dataplane::v1::{
    AddRequest, ListRequest, RemoveRequest, WorkloadSpec, workloads_client::WorkloadsClient,
};

/// See the module.
#[derive(Debug)]
pub struct Sync {
    engine: Engine,
    agent: WorkloadsClient<Channel>,
    socket: PathBuf,
    /// Runs that can not be workloads, and why it was said.
    refused: BTreeMap<String, String>,
}

impl Sync {
    /// Between this engine and the agent behind this socket.
    pub fn new(engine: Engine, agent: WorkloadsClient<Channel>, socket: PathBuf) -> Self {
        Self {
            engine,
            agent,
            socket,
            refused: BTreeMap::new(),
        }
    }

    /// Adds what runs and is not known, removes what is known and runs no more. `false` when some
    /// container could not be made a workload; the others are all the same.
    pub async fn compare(&mut self) -> Result<bool> {
        let known = self.known().await?;
        let mut running = BTreeMap::new();
        for listed in self.engine.running().await? {
            let labels = listed.labels.unwrap_or_default();
            if !is_workload(|key| labels.get(key).map(String::as_str)) {
                continue;
            }
            // A restart keeps the id, so each is looked at, known or not.
            let container = self.engine.inspect(&listed.id).await?;
            if let Some(container) = container.filter(|c| c.state.running && c.state.pid != 0) {
                running.insert(run_of(&container), container);
            }
        }
        // First, because who comes may have the name and the address of who went.
        for (run, id) in &known {
            if !running.contains_key(run) {
                self.remove(id).await?;
            }
        }
        self.refused
            .retain(|run, _| running.contains_key(run) && !known.contains_key(run));
        let mut clean = true;
        for (run, container) in running {
            if !known.contains_key(&run) {
                clean &= match spec(&container) {
                    Ok(spec) => self.add(run, spec).await?,
                    Err(why) => self.refuse(run, &container.name, why),
                };
            }
        }
        Ok(clean)
    }

    /// Containers that the agent knows: their runs, and their workloads' ids.
    async fn known(&mut self) -> Result<BTreeMap<String, String>> {
        let listed = self.agent.list(ListRequest {}).await;
        let listed = listed.map_err(|status| agent_error(&status, &self.socket))?;
        let workloads = listed.into_inner().workloads.into_iter();
        Ok(workloads
            .filter_map(|w| Some((w.annotations.get(RUN)?.clone(), w.id)))
            .collect())
    }

    async fn add(&mut self, run: String, spec: WorkloadSpec) -> Result<bool> {
        let name = format!("{}/{}", spec.namespace, spec.name);
        match self.agent.add(AddRequest { spec: Some(spec) }).await {
            Ok(_) => {
                eprintln!("weft: {name} is a workload");
                self.refused.remove(&run);
                Ok(true)
            }
            // Its own fault, or not yet: the others must not wait for it.
            Err(status) if status.code() != Code::Unavailable => {
                Ok(self.refuse(run, &name, status.message().to_owned()))
            }
            Err(status) => Err(agent_error(&status, &self.socket)),
        }
    }

    /// Said once for each reason.
    fn refuse(&mut self, run: String, name: &str, why: String) -> bool {
        if self.refused.get(&run) != Some(&why) {
            eprintln!(
                "weft: container {} is no workload: {why}",
                name.trim_start_matches('/')
            );
            self.refused.insert(run, why);
        }
        false
    }

    async fn remove(&mut self, id: &str) -> Result<()> {
        match self.agent.remove(RemoveRequest { id: id.to_owned() }).await {
            Ok(_) => {
                eprintln!("weft: {id} is gone");
                Ok(())
            }
            Err(status) => Err(agent_error(&status, &self.socket)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    //! Against an engine and an agent that keep lists and check nothing, over real sockets.

    use super::*;
    use http_body_util::Full;
    use hyper::{Request, Response, body::Incoming, service::service_fn};
    use hyper_util::rt::TokioIo;
    use serde_json::{Value, json};
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };
    use tokio::net::UnixListener;
    use tonic::Status;
    use weft_proto::weft::dataplane::v1::{self as pb, workloads_server};
    use weft_proto::weft::policy::v1::Workload;

    type Containers = Arc<Mutex<Vec<Value>>>;

    fn container(id: &str, name: &str, started: &str, labels: Value) -> Value {
        json!({
            "Id": id, "Name": format!("/{name}"), "Labels": labels,
            "State": {"Running": true, "Pid": 7, "StartedAt": started},
            "Config": {"Labels": labels}, "HostConfig": {"NetworkMode": "bridge"},
            "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.9"}}},
        })
    }

    fn engine(folder: &std::path::Path, containers: Containers) -> Engine {
        let socket = folder.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = move |request: Request<Incoming>| {
            let all = containers.lock().unwrap().clone();
            let path = request.uri().path().to_owned();
            let body = match path.trim_start_matches("/containers/").trim_end_matches("/json") {
                "json" => Some(Value::from(all)),
                id => all.into_iter().find(|c| c["Id"] == id),
            };
            let text = body.clone().unwrap_or_default().to_string();
            let mut response = Response::new(Full::new(bytes::Bytes::from(text)));
            if body.is_none() {
                *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            }
            async move { Ok::<_, Infallible>(response) }
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
                tokio::spawn(connection);
            }
        });
        Engine::new(socket)
    }

    #[derive(Clone, Default)]
    struct Agent(Arc<Mutex<Vec<Workload>>>);

    #[tonic::async_trait]
    impl workloads_server::Workloads for Agent {
        async fn add(
            &self,
            request: tonic::Request<pb::AddRequest>,
        ) -> Result<tonic::Response<pb::AddResponse>, Status> {
            let spec = request.into_inner().spec.unwrap();
            let mut all = self.0.lock().unwrap();
            if all.iter().any(|w| w.name == spec.name) {
                return Err(Status::failed_precondition("the address is in use"));
            }
            let start = all.len();
            all.push(Workload {
                id: format!("n1/{}/{}/{start}", spec.namespace, spec.name),
                name: spec.name,
                annotations: spec.annotations,
                ..Workload::default()
            });
            Ok(tonic::Response::new(pb::AddResponse::default()))
        }

        async fn remove(
            &self,
            request: tonic::Request<pb::RemoveRequest>,
        ) -> Result<tonic::Response<pb::RemoveResponse>, Status> {
            let id = request.into_inner().id;
            self.0.lock().unwrap().retain(|w| w.id != id);
            Ok(tonic::Response::new(pb::RemoveResponse {}))
        }

        async fn list(
            &self,
            _: tonic::Request<pb::ListRequest>,
        ) -> Result<tonic::Response<pb::ListResponse>, Status> {
            let workloads = self.0.lock().unwrap().clone();
            Ok(tonic::Response::new(pb::ListResponse { workloads }))
        }

        type AttachStream = tokio_stream::Empty<Result<pb::AttachResponse, Status>>;

        async fn attach(
            &self,
            _: tonic::Request<pb::AttachRequest>,
        ) -> Result<tonic::Response<Self::AttachStream>, Status> {
            Err(Status::unimplemented("containers do not attach"))
        }
    }

    impl Agent {
        fn serve(&self, folder: &std::path::Path) -> (WorkloadsClient<Channel>, PathBuf) {
            let socket = folder.join("agent.sock");
            let incoming =
                tokio_stream::wrappers::UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
            let server = workloads_server::WorkloadsServer::new(self.clone());
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(server)
                    .serve_with_incoming(incoming),
            );
            let channel = weft_rpc::channel_local(socket.clone()).unwrap();
            (WorkloadsClient::new(channel), socket)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = self.0.lock().unwrap().iter().map(|w| w.name.clone()).collect();
            names.sort();
            names
        }

        fn runs(&self) -> Vec<String> {
            let all = self.0.lock().unwrap();
            all.iter()
                .filter_map(|w| w.annotations.get(RUN).cloned())
                .collect()
        }
    }

    #[tokio::test]
    async fn the_agent_knows_what_runs_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let app = json!({"dapr.io/app-id": "a"});
        let containers: Containers = Arc::new(Mutex::new(vec![
            container("a1", "one", "10:00", app.clone()),
            container("b2", "other", "10:00", json!({"app": "unrelated"})),
        ]));
        let agent = Agent::default();
        // A process that somebody else registered.
        agent.0.lock().unwrap().push(Workload {
            name: "process".into(),
            ..Workload::default()
        });
        let (client, socket) = agent.serve(folder.path());
        let mut sync = Sync::new(engine(folder.path(), containers.clone()), client, socket);

        assert!(sync.compare().await.unwrap());
        assert_eq!(agent.names(), ["one", "process"]);

        // Restarted: the same id, another run with the same name.
        *containers.lock().unwrap() = vec![container("a1", "one", "11:00", app.clone())];
        assert!(sync.compare().await.unwrap());
        assert_eq!(agent.runs(), ["a1/11:00"]);

        // One that can be none does not keep the next one out.
        *containers.lock().unwrap() = vec![
            container(
                "c3",
                "bad",
                "11:00",
                json!({"dapr.io/app-id": "a", "dapr.io/app-port": "x"}),
            ),
            container("d4", "two", "11:00", app),
        ];
        assert!(!sync.compare().await.unwrap());
        assert_eq!(agent.names(), ["process", "two"]);

        containers.lock().unwrap().clear();
        assert!(sync.compare().await.unwrap());
        assert_eq!(agent.names(), ["process"]);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (client, socket) = Agent::default().serve(folder.path());
        let nowhere = folder.path().join("nobody.sock");
        let mut sync = Sync::new(Engine::new(nowhere), client, socket);
        let error = sync.compare().await.unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("nobody.sock") && text.contains("--docker-socket"),
            "{text}"
        );
    }
}
