//! An API server of Kubernetes as far as attestation asks it, over TLS. What it answers is checked
//! against the published schema: it has to survive the types that are generated from that, unchanged.

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    List,
    api::{authentication::v1::TokenReview, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Status,
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::HashMap, convert::Infallible, path::PathBuf, sync::Arc};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// The credential that the kubeconfig has.
const BEARER: &str = "Bearer identity-service";

/// How the server feels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Fine,
    /// Answers everything with this status, as the API server words it.
    Status(u16),
    /// Answers with something that is no object of Kubernetes.
    Garbage,
    /// Does not answer.
    Silent,
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub struct Token {
    pub audiences: Vec<String>,
    pub username: String,
    /// Name and uid.
    pub pod: Option<(String, String)>,
    pub expired: bool,
}

#[derive(Debug)]
pub struct State {
    pub mood: Mood,
    pub tokens: HashMap<String, Token>,
    /// By namespace and name.
    pub pods: HashMap<(String, String), Value>,
    pub asked: Vec<String>,
}

pub struct Cluster {
    dir: TempDir,
    pub state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A certificate for 127.0.0.1 and the authority that signed it, PEM.
pub fn server_tls() -> (Arc<ServerConfig>, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    (Arc::new(config), ca.pem())
}

/// The answer, after the published types have read and written it without losing anything.
fn published<T: DeserializeOwned + Serialize>(answer: Value) -> Value {
    let read: T = serde_json::from_value(answer.clone()).unwrap();
    assert_eq!(
        serde_json::to_value(&read).unwrap(),
        answer,
        "not of the published schema"
    );
    answer
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    (code, published::<Status>(status))
}

impl State {
    fn review(&self, asked: &[u8]) -> (u16, Value) {
        let asked: Value = serde_json::from_slice(asked).unwrap();
        let review: TokenReview = serde_json::from_value(asked.clone()).unwrap();
        assert_eq!(
            (&asked["apiVersion"], &asked["kind"]),
            (&json!("authentication.k8s.io/v1"), &json!("TokenReview"))
        );
        let wanted = review.spec.audiences.unwrap();
        let token = self.tokens.get(&review.spec.token.unwrap());
        // The words of the real one.
        let no = |why: &str| json!({ "error": format!("[invalid bearer token, {why}]") });
        let status = match token {
            None => no("Token has been invalidated"),
            Some(token) if token.expired => no("service account token has expired"),
            Some(token) if !token.audiences.iter().any(|a| wanted.contains(a)) => no(&format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                token.audiences
            )),
            Some(token) => {
                let mut user = json!({
                    "username": token.username,
                    "uid": "2c7e1e65-33b6-4b1e-9f0b-5b0d8a0c3f11",
                    "groups": ["system:serviceaccounts", "system:authenticated"],
                });
                if let Some((name, uid)) = &token.pod {
                    user["extra"] = json!({
                        "authentication.kubernetes.io/pod-name": [name],
                        "authentication.kubernetes.io/pod-uid": [uid],
                    });
                }
                let both: Vec<_> = token.audiences.iter().filter(|a| wanted.contains(a)).collect();
                json!({ "authenticated": true, "user": user, "audiences": both })
            }
        };
        let mut answer = asked;
        answer["status"] = status;
        (201, published::<TokenReview>(answer))
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        self.asked.push(format!("{method} {path}"));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            (&Method::POST, ["apis", "authentication.k8s.io", "v1", "tokenreviews"]) => self.review(body),
            (&Method::GET, ["api", "v1", "namespaces", namespace, "pods", name]) => {
                match self.pods.get(&((*namespace).into(), (*name).into())) {
                    Some(pod) => (200, published::<Pod>(pod.clone())),
                    None => failure(404, "NotFound", &format!("pods \"{name}\" not found")),
                }
            }
            (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
                let node = form_urlencoded::parse(query.as_bytes())
                    .find(|(key, _)| key == "fieldSelector")
                    .and_then(|(_, value)| value.strip_prefix("spec.nodeName=").map(str::to_owned))
                    .unwrap();
                let mine = self.pods.iter().filter(|((ns, _), pod)| {
                    ns == namespace && pod["spec"]["nodeName"].as_str() == Some(node.as_str())
                });
                let mut all: Vec<&Value> = mine.map(|(_, pod)| pod).collect();
                all.sort_by_key(|pod| pod["metadata"]["name"].to_string());
                // In pages, as the real one: where the next one begins is the client's to say again.
                let number = |name: &str| {
                    let mut pairs = form_urlencoded::parse(query.as_bytes());
                    let (_, value) = pairs.find(|(key, _)| key == name)?;
                    value.parse::<usize>().ok()
                };
                let (from, most) = (number("continue").unwrap_or(0), number("limit").unwrap());
                let items: Vec<Value> = all
                    .iter()
                    .skip(from)
                    .take(most)
                    .map(|pod| (*pod).clone())
                    .collect();
                let mut metadata = json!({});
                if from + items.len() < all.len() {
                    metadata["continue"] = json!((from + items.len()).to_string());
                }
                let list =
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items});
                (200, published::<List<Pod>>(list))
            }
            _ => panic!("{method} {path} is not asked for attestation"),
        }
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mood = state.lock().mood;
    let (code, answer) = match mood {
        Mood::Silent => return std::future::pending().await,
        Mood::Garbage => (200, json!(["not", "an", "object"])),
        Mood::Status(429) => failure(
            429,
            "TooManyRequests",
            "too many requests, please try again later",
        ),
        Mood::Status(code) => failure(code, "Forbidden", "tokenreviews is forbidden"),
        Mood::Fine => {
            assert_eq!(head.headers["authorization"], BEARER);
            let query = head.uri.query().unwrap_or_default();
            state.lock().answer(&head.method, head.uri.path(), query, &body)
        }
    };
    let body = Full::new(Bytes::from(serde_json::to_vec(&answer).unwrap()));
    let response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    Ok(response.body(body).unwrap())
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let (tls, ca) = server_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::fs::write(dir.path().join("ca.crt"), ca).unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{address}"),
                "certificate-authority": dir.path().join("ca.crt"),
            }}],
            "users": [{"name": "test", "user": {"token": BEARER.trim_start_matches("Bearer ")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        // JSON is YAML.
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Fine,
            tokens: HashMap::new(),
            pods: HashMap::new(),
            asked: Vec::new(),
        }));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(tls);
            // They end with the server.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| serve(state.clone(), request));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { dir, state, server }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// A running pod; `app_id` is its annotation.
    pub fn pod(&self, namespace: &str, name: &str, account: &str, node: &str, app_id: Option<&str>) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
            "spec": {
                "containers": [{"name": "main", "image": "registry.example/app:1"}],
                "nodeName": node,
                "serviceAccountName": account,
            },
            "status": {"phase": "Running"},
        });
        if let Some(app_id) = app_id {
            pod["metadata"]["annotations"] = json!({ "dapr.io/app-id": app_id });
        }
        let key = (namespace.to_owned(), name.to_owned());
        self.state.lock().pods.insert(key, pod);
    }

    /// Changes a pod.
    pub fn change(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = (namespace.to_owned(), name.to_owned());
        change(self.state.lock().pods.get_mut(&key).unwrap());
    }

    /// The token that the kubelet projects into a pod, for this mesh.
    pub fn token(&self, namespace: &str, pod: &str, account: &str) -> String {
        self.token_with(namespace, pod, account, |_| ())
    }

    /// The same, with something wrong.
    pub fn token_with(
        &self,
        namespace: &str,
        pod: &str,
        account: &str,
        change: impl FnOnce(&mut Token),
    ) -> String {
        let mut token = Token {
            audiences: vec!["spiffe://cluster.local/weft/service/identity".into()],
            username: format!("system:serviceaccount:{namespace}:{account}"),
            pod: Some((pod.into(), format!("uid-{pod}"))),
            expired: false,
        };
        change(&mut token);
        let mut state = self.state.lock();
        let text = format!("header.{namespace}-{pod}-{}.signature", state.tokens.len());
        state.tokens.insert(text.clone(), token);
        text
    }

    pub fn feel(&self, mood: Mood) {
        self.state.lock().mood = mood;
    }
}
