//! Every service as an operator meets it with the unmodified `grpcurl`: list, describe and call
//! with the certificate that `weft admin cert` wrote; the same without a certificate and with a
//! workload's is refused. The authority runs in this process, the others as their own.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use weft_drain::Trigger;
use weft_identity::{Config, Handle, HostPattern, Kind};
use weft_proto::weft::{
    identity::v1::{SignWorkloadRequest, SvidUse, certificates_client::CertificatesClient},
    policy::v1::{WatchResponse, Workload},
};
use weft_tls::{Expect, new_key_and_csr};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where cargo puts binaries: the folder above the one of this test.
fn bin_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}

fn binary(name: &str) -> Command {
    let path = bin_dir().join(name);
    assert!(
        path.is_file(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

fn grpcurl() -> Command {
    let installed = bin_dir().parent().unwrap().join("tools/bin/grpcurl");
    let given = std::env::var_os("WEFT_GRPCURL").map(PathBuf::from);
    let path = given.unwrap_or(if installed.is_file() {
        installed
    } else {
        "grpcurl".into()
    });
    Command::new(path)
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The authority, an operator's certificate and a workload's, in one folder.
struct Mesh {
    dir: TempDir,
    handle: Handle,
    _trigger: Trigger,
}

impl Mesh {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (trigger, drain) = weft_drain::channel();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            state_dir: dir.path().join("identity"),
            run_dir: Some(dir.path().join("run")),
            ..Config::default()
        };
        let handle = weft_identity::start(config, drain).await.unwrap();
        let mesh = Self {
            dir,
            handle,
            _trigger: trigger,
        };
        mesh.write_admin().await;
        mesh.write_workload().await;
        mesh
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command without holding up the authority in this process.
    async fn run(mut command: Command) -> (bool, String) {
        let program = command.get_program().to_owned();
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap_or_else(|e| panic!("cannot start {program:?}: {e}; run `cargo xtask setup`"));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn write_admin(&self) {
        let mut command = binary("weft");
        command
            .args(["admin", "cert", "--out"])
            .arg(self.path("admin"))
            .arg("--run-dir")
            .arg(self.path("run"));
        let (ok, text) = Self::run(command).await;
        assert!(ok, "{text}");
    }

    /// A node asks for the certificate of a workload that it hosts, as for a pod.
    async fn write_workload(&self) {
        let anything = vec![HostPattern {
            namespace: "*".into(),
            app_id: "*".into(),
        }];
        let ttl = Duration::from_secs(60);
        let token = self
            .handle
            .create_join_token(Kind::Node, "n1", anything, ttl)
            .await
            .unwrap();
        let id = self.handle.trust_domain().node("n1").unwrap();
        let (_trigger, drain) = weft_drain::channel();
        let address = self.handle.address().to_string();
        let node = weft_enroll::Enrollment::new(id, self.path("n1"), address.clone())
            .token(weft_enroll::TokenSource::Given(token))
            .enroll(drain)
            .await
            .unwrap();
        let workload = Workload {
            id: "w".into(),
            node: "n1".into(),
            namespace: "shop".into(),
            app_id: "cart".into(),
            ..Default::default()
        };
        let snapshot = WatchResponse {
            snapshot: true,
            upserts: vec![workload],
            removed_ids: vec![],
        };
        self.handle.registry().apply(snapshot).unwrap();
        let authority = Expect::Id(self.handle.trust_domain().service("identity").unwrap());
        let channel = weft_rpc::channel(&address, Some(&node.svid), &node.trust, authority).unwrap();
        let pair = new_key_and_csr().unwrap();
        let request = SignWorkloadRequest {
            workload_id: "w".into(),
            csr_der: pair.csr_der,
            r#use: SvidUse::Workload.into(),
        };
        let reply = CertificatesClient::new(channel).sign_workload(request).await;
        let chain = reply.unwrap().into_inner().svid.unwrap().chain_der;
        let pem = |label: &str, der: &[u8]| pem::encode(&pem::Pem::new(label, der));
        fs::create_dir(self.path("workload")).unwrap();
        let certificates: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        fs::write(self.path("workload/client.pem"), certificates).unwrap();
        let key = pem("PRIVATE KEY", pair.key.secret_der());
        fs::write(self.path("workload/client-key.pem"), key).unwrap();
    }

    /// Starts a binary that joins this mesh, and waits until it says where it serves.
    async fn start(&self, name: &str, kind: Kind, arguments: &[String]) -> (Running, String) {
        let may_host = vec![];
        let member = name.trim_start_matches("weft-");
        let token = self
            .handle
            .create_join_token(kind, member, may_host, Duration::from_secs(60))
            .await
            .unwrap();
        let token_file = self.path(&format!("{member}.token"));
        fs::write(&token_file, token.reveal().as_bytes()).unwrap();
        let log = self.path(&format!("{member}.log"));
        let mut command = binary(name);
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .args(["--config", "/dev/null", "--log-format", "json"])
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .arg("--join-token-file")
            .arg(token_file)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut running = Running(command.spawn().unwrap());
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(&log).unwrap();
            if let Some(address) = text.lines().find_map(serving_address) {
                return (running, address);
            }
            let ended = running.0.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "{name} does not serve ({ended:?}): {text}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The policy service with one manifest.
    async fn start_policy(&self) -> (Running, String) {
        let resources = self.path("resources");
        fs::create_dir(&resources).unwrap();
        let manifest = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\n\
                        metadata: {name: a-configuration, namespace: shop}\nspec: {}\n";
        fs::write(resources.join("configuration.yaml"), manifest).unwrap();
        let arguments = [
            format!("--state-dir={}", self.path("policy").display()),
            format!("--run-dir={}", self.path("policy-run").display()),
            format!("--resources={}", resources.display()),
            format!("--identity-addr={}", self.handle.address()),
        ];
        self.start("weft-policy", Kind::Service, &arguments).await
    }

    /// `grpcurl` with a client certificate out of a folder, or without one.
    async fn call(&self, service: &Service<'_>, who: Option<&str>, arguments: &[&str]) -> (bool, String) {
        let mut command = grpcurl();
        command
            .args(["-max-time", "30", "-authority", service.authority, "-cacert"])
            .arg(self.path("admin/ca.pem"));
        if let Some(folder) = who {
            command
                .arg("-cert")
                .arg(self.path(folder).join("client.pem"))
                .arg("-key")
                .arg(self.path(folder).join("client-key.pem"));
        }
        // Options go before the address, a verb or a method after it.
        let options = arguments
            .chunks(2)
            .take_while(|pair| pair[0].starts_with('-'))
            .count()
            * 2;
        let (options, rest) = arguments.split_at(options);
        command.args(options).arg(&service.address).args(rest);
        Self::run(command).await
    }

    /// All that holds for each service.
    async fn check(&self, service: &Service<'_>) {
        let admin = Some("admin");
        let (ok, list) = self.call(service, admin, &["list"]).await;
        assert!(ok, "{list}");
        let (ours, _) = service.method.split_once('/').unwrap();
        for name in [ours, "grpc.health.v1.Health"] {
            assert!(list.lines().any(|line| line == name), "{name} is not in: {list}");
        }

        let (ok, text) = self
            .call(service, admin, &["describe", &service.method.replace('/', ".")])
            .await;
        assert!(ok && text.contains("rpc "), "{text}");

        let (ok, text) = self.call(service, admin, &["grpc.health.v1.Health/Check"]).await;
        assert!(ok && text.contains("SERVING"), "{text}");

        // grpcurl asks by v1; clients of before by v1alpha, which has the same messages.
        let protoset = self.path("v1alpha.bin");
        fs::write(&protoset, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET).unwrap();
        let alpha = [
            "-protoset",
            protoset.to_str().unwrap(),
            "-d",
            r#"{"list_services": ""}"#,
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ];
        let (ok, text) = self.call(service, admin, &alpha).await;
        assert!(ok && text.contains(ours), "{text}");

        let call = ["-d", service.request, service.method];
        let (ok, text) = self.call(service, admin, &call).await;
        assert!(ok && text.contains(service.reply), "{text}");

        // The twins differ in the certificate only.
        for what in [&["list"][..], &["grpc.health.v1.Health/Check"], &alpha, &call] {
            let (ok, text) = self.call(service, None, what).await;
            assert!(!ok, "{what:?} was served without a certificate: {text}");
            let refused = ["PermissionDenied", "Unauthenticated", "certificate required"];
            assert!(refused.iter().any(|reason| text.contains(reason)), "{text}");

            let (ok, text) = self.call(service, Some("workload"), what).await;
            assert!(!ok, "{what:?} was served with a workload's certificate: {text}");
            assert!(text.contains("PermissionDenied"), "{text}");
        }
    }
}

/// `host:port` out of the line that says where gRPC is served.
fn serving_address(line: &str) -> Option<String> {
    let after = ["\"address\":\"", "\"listen\":\"", "\"admin\":\""]
        .into_iter()
        .find_map(|key| line.split_once(key))?
        .1;
    let address = after.split_once('"')?.0;
    let port = address.strip_prefix("127.0.0.1:")?;
    let served = line.contains("serves") || line.contains("ready") || line.contains("serving");
    (served && port != "0").then(|| address.to_owned())
}

/// One service and a call that an operator may make.
struct Service<'a> {
    address: String,
    authority: &'a str,
    method: &'a str,
    request: &'a str,
    reply: &'a str,
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_answers_operators_only() {
    let mesh = Mesh::new().await;
    let service = Service {
        address: mesh.handle.address().to_string(),
        authority: "weft-identity",
        method: "weft.identity.v1.Admin/ListAudit",
        request: r#"{"limit": 100}"#,
        reply: "spiffe://cluster.local/weft/node/n1",
    };
    mesh.check(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_answers_operators_only() {
    let mesh = Mesh::new().await;
    let arguments = [
        format!("--state-dir={}", mesh.path("placement").display()),
        format!("--identity-addr={}", mesh.handle.address()),
    ];
    let (_running, address) = mesh.start("weft-placement", Kind::Service, &arguments).await;
    let service = Service {
        address,
        authority: "weft-placement",
        method: "weft.placement.v1.Placement/ListHosts",
        request: "{}",
        reply: "{",
    };
    mesh.check(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_answers_operators_only() {
    let mesh = Mesh::new().await;
    let (_running, address) = mesh.start_policy().await;
    let service = Service {
        address,
        authority: "weft-policy",
        method: "weft.policy.v1.Resources/List",
        request: "{}",
        reply: "a-configuration",
    };
    mesh.check(&service).await;
}

/// Hubble's API by its socket: reflection, health, and each kind of answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_answers_hubbles_clients() {
    let mesh = Mesh::new().await;
    let (_policy, policy) = mesh.start_policy().await;
    let (_running, _) = mesh.start("weft-agent", Kind::Node, &agent(&mesh, &policy)).await;
    let call = async |rest: &[&str]| {
        let mut command = grpcurl();
        command.args(["-plaintext", "-unix"]);
        // Flags come before the address, what is asked for behind it.
        let flags = rest
            .iter()
            .take_while(|r| r.starts_with('-') || r.starts_with('{'))
            .count();
        command
            .args(&rest[..flags])
            .arg(mesh.path("hubble.sock"))
            .args(&rest[flags..]);
        Mesh::run(command).await
    };
    for (rest, ok, says) in [
        (
            &["list"][..],
            true,
            &["observer.Observer", "peer.Peer", "grpc.health.v1.Health"][..],
        ),
        (
            &["describe", "observer.Observer"],
            true,
            &["GetFlows", "GetNamespaces"],
        ),
        (
            &["observer.Observer/ServerStatus"],
            true,
            &["\"maxFlows\": \"4095\""],
        ),
        (
            &[
                "-d",
                "{\"service\":\"hubble.server.Observer\"}",
                "grpc.health.v1.Health/Check",
            ],
            true,
            &["SERVING"],
        ),
        (
            &[
                "-d",
                "{\"whitelist\":[{\"verdict\":[\"DROPPED\"]}]}",
                "observer.Observer/GetFlows",
            ],
            true,
            &[],
        ),
        (
            &[
                "-d",
                "{\"whitelist\":[{\"source_ip\":[\"10\"]}]}",
                "observer.Observer/GetFlows",
            ],
            false,
            &["InvalidArgument", "source_ip"],
        ),
        (&["observer.Observer/GetDebugEvents"], false, &["Unimplemented"]),
    ] {
        let (succeeded, text) = call(rest).await;
        assert_eq!(succeeded, ok, "{rest:?}: {text}");
        for said in says {
            assert!(text.contains(said), "{rest:?}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_answers_operators_only() {
    let mesh = Mesh::new().await;
    let (_policy, policy) = mesh.start_policy().await;
    let (_running, address) = mesh.start("weft-agent", Kind::Node, &agent(&mesh, &policy)).await;
    let service = Service {
        address,
        authority: "weft-agent",
        method: "weft.dataplane.v1.Status/Get",
        request: "{}",
        reply: "\"agent\"",
    };
    mesh.check(&service).await;
}

/// How an agent without root is started.
fn agent(mesh: &Mesh, policy: &str) -> [String; 9] {
    [
        "--rootless".to_owned(),
        "--node=agent".to_owned(),
        "--tunnel-port=0".to_owned(),
        format!("--data-dir={}", mesh.path("agent").display()),
        format!("--local-socket={}", mesh.path("agent.sock").display()),
        format!("--identity={}", mesh.handle.address()),
        format!("--policy={policy}"),
        // Nobody needs to be there for this.
        "--placement=127.0.0.1:1".to_owned(),
        "--hubble-listen=127.0.0.1:0".to_owned(),
    ]
}
