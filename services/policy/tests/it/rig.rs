//! A running service in a temporary folder, a certificate authority for its callers, and nodes that
//! speak the protocol.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use std::{collections::BTreeMap, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use weft_drain::Trigger;
use weft_model::TrustDomain;
use weft_policy::{Config, Handle};
use weft_proto::weft::identity::v1::{HostPattern, MemberNode, WatchNodesResponse};
use weft_proto::weft::policy::v1::{
    self as pb, distribution_client::DistributionClient, registry_client::RegistryClient,
    resources_client::ResourcesClient, subscribe_request::Message,
};
use weft_telemetry::Metrics;
use weft_tls::{Bundle, Expect, Svid, SvidCell, SystemClock, Trust};

/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);

pub fn td() -> TrustDomain {
    TrustDomain::default()
}

/// Signs certificates for whoever a test wants to be.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub trust: Trust,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap();
        let trust = Trust::new(td(), SystemClock::shared());
        trust
            .set(Bundle {
                trust_domain: td(),
                version: 1,
                roots: vec![root.der().clone()],
                jwks: Vec::new(),
            })
            .unwrap();
        Self {
            issuer: Issuer::new(params, key),
            trust,
        }
    }

    pub fn svid(&self, path: &str) -> SvidCell {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://{}{path}", td());
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let cell = SvidCell::new();
        cell.set(Svid::new(vec![certificate.der().clone()], &private).unwrap());
        cell
    }
}

pub struct Rig {
    pub dir: TempDir,
    pub authority: Authority,
    handle: Handle,
    trigger: Trigger,
}

impl Rig {
    pub async fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("resources")).unwrap();
        for (name, text) in files {
            put(&dir.path().join("resources"), name, text);
        }
        Self::with(dir, Authority::new(), |_| {}).await
    }

    /// With other settings than the defaults.
    pub async fn configured(change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("resources")).unwrap();
        Self::with(dir, Authority::new(), change).await
    }

    async fn with(dir: TempDir, authority: Authority, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            resources: Some(dir.path().join("resources")),
            state_dir: dir.path().join("state"),
            run_dir: Some(dir.path().join("run")),
            // The nodes of most tests acknowledge when the test says so, not meanwhile.
            start_wait_milliseconds: 0,
            ..Config::default()
        };
        change(&mut config);
        let (trigger, drain) = weft_drain::channel();
        let svid = authority.svid("/weft/service/policy");
        let metrics = Metrics::new("policy");
        let handle = weft_policy::start(config, svid, authority.trust.clone(), drain, &metrics)
            .await
            .unwrap();
        let anything = [("*", "*")];
        let nodes = ["n1", "n2", "n3"].map(|name| host(name, &anything));
        handle
            .hosts()
            .apply(WatchNodesResponse {
                snapshot: true,
                upserts: nodes.into(),
                removed_names: Vec::new(),
            })
            .unwrap();
        Self {
            dir,
            authority,
            handle,
            trigger,
        }
    }

    /// Stops the service as a signal would, and starts it on what is on disk.
    pub async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    pub async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        self.restart_configured(meanwhile, |_| {}).await
    }

    /// Waits until the service ends by itself.
    pub async fn ended(self) -> Result<(), weft_policy::ServeError> {
        self.handle.wait().await
    }

    pub async fn restart_configured(
        self,
        meanwhile: impl FnOnce(&Path),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (dir, authority) = self.stop().await;
        meanwhile(&dir.path().join("resources"));
        Self::with(dir, authority, change).await
    }

    /// Stops the service as a signal would.
    pub async fn stop(self) -> (TempDir, Authority) {
        let outcome = self.trigger.drain(LIMIT).await;
        assert_eq!(outcome, weft_drain::Outcome::Drained);
        self.handle.wait().await.unwrap();
        (self.dir, self.authority)
    }

    pub fn put(&self, name: &str, text: &str) {
        put(&self.dir.path().join("resources"), name, text);
    }

    /// What the identity service says of one more node.
    pub fn may_host(&self, node: &str, patterns: &[(&str, &str)]) {
        self.handle
            .hosts()
            .apply(WatchNodesResponse {
                upserts: vec![host(node, patterns)],
                ..Default::default()
            })
            .unwrap();
    }

    pub fn channel(&self, path: &str) -> Channel {
        let expect = Expect::Id(td().service("policy").unwrap());
        let svid = self.authority.svid(path);
        weft_rpc::channel(
            &self.handle.address().to_string(),
            Some(&svid),
            &self.authority.trust,
            expect,
        )
        .unwrap()
    }

    pub fn registry(&self, path: &str) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel(path))
    }

    pub async fn list(&self) -> pb::ListResponse {
        let mut client = ResourcesClient::new(self.channel("/weft/admin/ops"));
        client
            .list(pb::ListRequest::default())
            .await
            .unwrap()
            .into_inner()
    }

    /// Lists until `wanted` holds.
    pub async fn list_until(&self, wanted: impl Fn(&pb::ListResponse) -> bool) -> pb::ListResponse {
        let wait = async {
            loop {
                let list = self.list().await;
                if wanted(&list) {
                    return list;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(LIMIT, wait).await {
            Ok(list) => list,
            Err(_) => panic!("never came: {:#?}", self.list().await),
        }
    }

    pub async fn node(&self, name: &str) -> Node {
        self.node_with(name, pb::Hello::default()).await
    }

    pub async fn node_with(&self, name: &str, hello: pb::Hello) -> Node {
        let channel = self.channel(&format!("/weft/node/{name}"));
        let (requests, receiver) = mpsc::channel(16);
        say(&requests, Message::Hello(hello)).await;
        let updates = DistributionClient::new(channel.clone())
            .subscribe(ReceiverStream::new(receiver))
            .await
            .unwrap();
        let registry = RegistryClient::new(channel);
        Node {
            name: name.into(),
            registry,
            requests,
            updates: updates.into_inner(),
            state: BTreeMap::new(),
        }
    }
}

fn host(node: &str, patterns: &[(&str, &str)]) -> MemberNode {
    let may_host = patterns.iter().map(|(namespace, app_id)| HostPattern {
        namespace: (*namespace).into(),
        app_id: (*app_id).into(),
    });
    MemberNode {
        name: node.into(),
        may_host: may_host.collect(),
    }
}

fn put(folder: &Path, name: &str, text: &str) {
    // As careful writers do it: nobody sees half of it.
    let hidden = folder.join(format!(".{name}"));
    std::fs::write(&hidden, text).unwrap();
    std::fs::rename(&hidden, folder.join(name)).unwrap();
}

async fn say(requests: &mpsc::Sender<pb::SubscribeRequest>, message: Message) {
    requests
        .send(pb::SubscribeRequest {
            message: Some(message),
        })
        .await
        .unwrap();
}

/// A node as far as the policy service sees one.
pub struct Node {
    pub name: String,
    pub registry: RegistryClient<Channel>,
    requests: mpsc::Sender<pb::SubscribeRequest>,
    pub updates: Streaming<pb::SubscribeResponse>,
    /// What it holds: kind and name to resource.
    pub state: BTreeMap<(String, String), pb::Resource>,
}

impl Node {
    pub fn workload(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> pb::Workload {
        pb::Workload {
            id: format!("{}/{namespace}/{name}/1", self.name),
            node: self.name.clone(),
            namespace: namespace.into(),
            name: name.into(),
            kind: pb::WorkloadKind::Process.into(),
            app_id: name.into(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Default::default()
        }
    }

    pub async fn register(&mut self, workload: pb::Workload) -> pb::Workload {
        let request = pb::RegisterRequest {
            workload: Some(workload),
            ..Default::default()
        };
        self.registry
            .register(request)
            .await
            .unwrap()
            .into_inner()
            .workload
            .unwrap()
    }

    /// The next update, unanswered.
    pub async fn update(&mut self) -> pb::SubscribeResponse {
        let next = tokio::time::timeout(LIMIT, self.updates.message()).await;
        next.unwrap_or_else(|_| panic!("{} got no update", self.name))
            .unwrap()
            .unwrap()
    }

    /// The next update, applied and acknowledged.
    pub async fn apply(&mut self) -> pb::SubscribeResponse {
        let update = self.update().await;
        if update.snapshot {
            self.state.clear();
        }
        for resource in &update.upserts {
            let key = resource.key.clone().unwrap();
            self.state.insert((key.kind, key.name), resource.clone());
        }
        for key in &update.removes {
            self.state.remove(&(key.kind.clone(), key.name.clone()));
        }
        self.say(Message::Ack(pb::Ack {
            version: update.version,
        }))
        .await;
        update
    }

    /// Applies updates until the node holds this resource.
    pub async fn until(&mut self, kind: &str, name: &str) -> pb::Resource {
        let key = (kind.to_owned(), name.to_owned());
        loop {
            if let Some(resource) = self.state.get(&key) {
                return resource.clone();
            }
            self.apply().await;
        }
    }

    pub async fn say(&self, message: Message) {
        say(&self.requests, message).await;
    }

    pub fn names(&self, kind: &str) -> Vec<&str> {
        self.state
            .keys()
            .filter(|(k, _)| k == kind)
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

/// Kinds and names of an update, in its order.
pub fn keys(update: &pb::SubscribeResponse) -> Vec<(String, String)> {
    let upserts = update.upserts.iter().filter_map(|r| r.key.clone());
    upserts
        .chain(update.removes.iter().cloned())
        .map(|k| (k.kind, k.name))
        .collect()
}

pub fn service(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}
