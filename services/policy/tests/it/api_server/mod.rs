//! An API server of Kubernetes as far as a source of policies asks it, over real sockets: lists by page,
//! watches with bookmarks, statuses by server-side apply, Leases. What it has of kinds whose schema is
//! published as types survives these types unchanged.

mod state;

use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::WatchEvent;
use parking_lot::Mutex;
use serde_json::{Value, json};
use state::{LEASES, Name, State, collection, expired, failure};
use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use weft_resources::Kind;

const BEARER: &str = "Bearer policy-service";

/// How the server feels about a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    Fine,
    /// Answers with this status, and with `Retry-After` if there is one.
    Status(u16, Option<u64>),
    /// Answers 200 with something that is no object of Kubernetes.
    Garbage,
    /// Lists as if all were well, and sends this line on watches.
    Line(String),
    /// Does not answer.
    Silent,
    /// Answers the first page, and further ones not before the mood changes.
    Slow,
}

/// See the module.
pub struct ApiServer {
    dir: TempDir,
    state: Arc<Mutex<State>>,
    /// Wakes watches: the version, and how often watches were dropped.
    changed: watch::Sender<(u64, u64)>,
    server: JoinHandle<()>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(code: u16, retry_after: Option<u64>, body: Vec<u8>) -> Answer {
    let mut response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds);
    }
    let body = http_body_util::Full::new(Bytes::from(body)).boxed();
    response.body(body).unwrap()
}

/// Collection, and namespace and name of the object in it.
fn split(path: &str) -> (String, Option<Name>, bool) {
    let (path, status) = match path.strip_suffix("/status") {
        Some(rest) => (rest, true),
        None => (path, false),
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let head = if parts[0] == "api" { 2 } else { 3 };
    let root = format!("/{}", parts[..head].join("/"));
    match parts[head..] {
        ["namespaces", namespace, plural, name] => (
            format!("{root}/{plural}"),
            Some((namespace.into(), name.into())),
            status,
        ),
        ["namespaces", namespace, plural] => (
            format!("{root}/{plural}"),
            Some((namespace.into(), String::new())),
            status,
        ),
        [plural, name] => (
            format!("{root}/{plural}"),
            Some((String::new(), name.into())),
            status,
        ),
        [plural] => (format!("{root}/{plural}"), None, status),
        _ => panic!("{path}"),
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    mut changed: watch::Receiver<(u64, u64)>,
    wake: watch::Sender<(u64, u64)>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(head.headers["authorization"], BEARER);
    let query: HashMap<String, String> =
        form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let (at, name, status) = split(head.uri.path());
    let line = format!("{} {}", head.method, head.uri);
    state.lock().asked.push((Instant::now(), line.clone()));
    let mood = |state: &State| state.moods.get(&at).cloned().unwrap_or(Mood::Fine);
    let now = mood(&state.lock());
    match now {
        Mood::Status(code, retry_after) => {
            let (code, said) = failure(code, "Forbidden", "it is forbidden");
            return Ok(answer(code, retry_after, said.to_string().into_bytes()));
        }
        Mood::Garbage => return Ok(answer(200, None, b"[\"no\", \"object\"]".to_vec())),
        Mood::Silent => return std::future::pending().await,
        Mood::Slow if query.contains_key("continue") => {
            while mood(&state.lock()) == Mood::Slow {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        _ => {}
    }
    if !state.lock().collections.contains_key(&at) {
        return Ok(answer(404, None, b"404 page not found\n".to_vec()));
    }
    if at == LEASES {
        let mut name = name.unwrap();
        if name.1.is_empty() {
            let lease: Value = serde_json::from_slice(&body).unwrap();
            name.1 = lease["metadata"]["name"].as_str().unwrap().to_owned();
        }
        let (code, said) = state.lock().lease(&head.method, name, &body);
        return Ok(answer(code, None, said.to_string().into_bytes()));
    }
    if query.contains_key("watch") {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let (forgotten, bookmarks) = {
            let state = state.lock();
            (state.forgotten, state.bookmarks)
        };
        assert_eq!(query["allowWatchBookmarks"], "true");
        let (lines, receiver) = mpsc::channel::<Vec<u8>>(16);
        changed.mark_unchanged();
        let dropped = changed.borrow().1;
        tokio::spawn(async move {
            let mut from = from;
            let send = async |event: Value| {
                if event["object"]["kind"] != "Status" {
                    let read: WatchEvent<Value> = serde_json::from_value(event.clone()).unwrap();
                    drop(read);
                }
                lines.send(format!("{event}\n").into_bytes()).await.is_ok()
            };
            if from < forgotten {
                send(json!({"type": "ERROR", "object": expired().1})).await;
                return;
            }
            if let Mood::Line(line) = now {
                let _ = lines.send(format!("{line}\n").into_bytes()).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
            loop {
                let news: Vec<_> = {
                    let state = state.lock();
                    let new = state.log.iter().filter(|(version, ..)| *version > from);
                    let of = new.map(|(v, c, kind, object)| (*v, *c == at, *kind, object.clone()));
                    of.collect()
                };
                let mut own = 0;
                for (version, is_own, kind, object) in news {
                    if is_own {
                        own = version;
                        if !send(json!({"type": kind, "object": object})).await {
                            return;
                        }
                    }
                    from = version;
                }
                if bookmarks && own != from {
                    let metadata = json!({"resourceVersion": from.to_string()});
                    let object = json!({"kind": "Any", "apiVersion": "v1", "metadata": metadata});
                    if !send(json!({"type": "BOOKMARK", "object": object})).await {
                        return;
                    }
                    state.lock().marked.insert(at.clone(), from);
                }
                if changed.changed().await.is_err() || changed.borrow().1 != dropped {
                    return;
                }
            }
        });
        let stream = ReceiverStream::new(receiver).map(|line| Ok(Frame::data(Bytes::from(line))));
        let body = BodyExt::boxed(StreamBody::new(stream));
        return Ok(Response::new(body));
    }
    let (code, said) = {
        let mut state = state.lock();
        match (&head.method, name) {
            (&Method::GET, None) => state.list(&at, &query),
            (&Method::GET, Some(name)) => match state.collections[&at].get(&name) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound", "not found"),
            },
            (&Method::PATCH, Some(name)) if status => {
                assert_eq!(head.headers["content-type"], "application/apply-patch+yaml");
                let body: Value = serde_json::from_slice(&body).unwrap();
                state.apply(&at, &name, &query, &body)
            }
            _ => panic!("{line} is not asked by a source"),
        }
    };
    wake.send_modify(|(version, _)| *version += 1);
    Ok(answer(code, None, said.to_string().into_bytes()))
}

impl ApiServer {
    /// With all kinds installed.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dir = TempDir::new().unwrap();
        // The client wants to know an authority, also where there is no TLS.
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("http://{address}"),
                "certificate-authority": dir.path().join("ca.crt"),
            }}],
            "users": [{"name": "test", "user": {"token": BEARER.trim_start_matches("Bearer ")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "weft-system"}}],
        });
        // JSON is YAML.
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let mut state = State {
            version: 100,
            ..State::default()
        };
        for kind in Kind::ALL {
            let at = collection(kind, kind.api_version());
            state.collections.insert(at, BTreeMap::new());
        }
        state.collections.insert(LEASES.into(), BTreeMap::new());
        let state = Arc::new(Mutex::new(state));
        let changed = watch::Sender::new((0, 0));
        let (shared, wake) = (state.clone(), changed.clone());
        let server = tokio::spawn(async move {
            // They end with the server.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, wake) = (shared.clone(), wake.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        serve(state.clone(), wake.subscribe(), wake.clone(), request)
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            dir,
            state,
            changed,
            server,
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changed.send_modify(|(version, _)| *version += 1);
        changed
    }

    /// Creates or replaces what these manifests say.
    pub fn put(&self, manifests: &str) {
        for resource in weft_resources::parse("manifests", manifests.as_bytes()).unwrap() {
            let mut object: Value = serde_json::from_str(&resource.json).unwrap();
            if !resource.meta.namespace.is_empty() {
                object["metadata"]["namespace"] = resource.meta.namespace.clone().into();
            }
            self.put_object(resource.kind(), object);
        }
    }

    /// The same of anything.
    pub fn put_object(&self, kind: Kind, mut object: Value) {
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.name().into();
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let name = (text("namespace"), text("name"));
        let at = collection(kind, kind.api_version());
        self.change(|state| {
            let old = state.collections[&at].get(&name).cloned();
            let metadata = &mut object["metadata"];
            metadata["uid"] = format!("uid-{}-{}", name.0, name.1).into();
            if metadata["creationTimestamp"].is_null() {
                metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            metadata["managedFields"] = json!([{
                "manager": "kubectl", "operation": "Apply", "apiVersion": kind.api_version(),
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}},
            }]);
            let generation = old.as_ref().map_or(1, |old| {
                let generation = old["metadata"]["generation"].as_u64().unwrap_or(1);
                generation + u64::from(old["spec"] != object["spec"])
            });
            object["metadata"]["generation"] = generation.into();
            if let Some(status) = old.as_ref().map(|old| &old["status"]).filter(|s| !s.is_null()) {
                object["status"] = status.clone();
            }
            let change = if old.is_some() { "MODIFIED" } else { "ADDED" };
            state.bump(&at, &name, change, object);
        });
    }

    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let at = collection(kind, kind.api_version());
        let name = (namespace.to_owned(), name.to_owned());
        self.change(|state| {
            let object = state.collections[&at][&name].clone();
            state.bump(&at, &name, "DELETED", object);
        });
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Value {
        let at = collection(kind, kind.api_version());
        self.state.lock().collections[&at][&(namespace.to_owned(), name.to_owned())].clone()
    }

    pub fn lease(&self) -> Value {
        let name = ("weft-system".to_owned(), "weft-policy".to_owned());
        let state = self.state.lock();
        state.collections[LEASES].get(&name).cloned().unwrap_or_default()
    }

    pub fn feel(&self, kind: Kind, mood: Mood) {
        let at = collection(kind, kind.api_version());
        self.change(|state| state.moods.insert(at, mood));
    }

    pub fn uninstall(&self, kind: Kind, api_version: &str) {
        let at = collection(kind, api_version);
        self.change(|state| state.collections.remove(&at));
        self.drop_watches();
    }

    pub fn install(&self, kind: Kind, api_version: &str) {
        let at = collection(kind, api_version);
        self.change(|state| state.collections.entry(at).or_default().clear());
    }

    /// At most so many objects on a page.
    pub fn page(&self, page: usize) {
        self.state.lock().page = Some(page);
    }

    pub fn bookmarks(&self) {
        self.state.lock().bookmarks = true;
    }

    pub fn version(&self) -> u64 {
        self.state.lock().version
    }

    /// Whether a bookmark of this version or a later one was sent of a kind.
    pub fn is_marked(&self, kind: Kind, version: u64) -> bool {
        let state = self.state.lock();
        let marked = state.marked.get(&collection(kind, kind.api_version()));
        marked.is_some_and(|marked| *marked >= version)
    }

    /// The next token between pages is too old.
    pub fn expire_a_page(&self) {
        self.state.lock().expire = true;
    }

    /// Ends all watches.
    pub fn drop_watches(&self) {
        self.changed.send_modify(|(_, dropped)| *dropped += 1);
    }

    /// Forgets what has happened up to this version.
    pub fn forget(&self, version: u64) {
        let mut state = self.state.lock();
        state.forgotten = version;
        state.log.retain(|(of, ..)| *of > version);
    }

    pub fn intrude(&self, parent: Value) {
        self.state.lock().intrude = Some(parent);
    }

    /// Requests that contain this, with when they came.
    pub fn asked(&self, part: &str) -> Vec<(Instant, String)> {
        let state = self.state.lock();
        let asked = state.asked.iter().filter(|(_, line)| line.contains(part));
        asked.cloned().collect()
    }

    /// Complete lists of a kind that were begun.
    pub fn lists(&self, kind: Kind) -> usize {
        let at = format!("GET {}?limit=", collection(kind, kind.api_version()));
        let asked = self.asked(&at);
        asked
            .iter()
            .filter(|(_, line)| !line.contains("continue"))
            .count()
    }

    pub fn applied(&self) -> Vec<(String, Value)> {
        self.state.lock().applied.clone()
    }
}
