//! The certificates as OpenSSL sees them: `openssl verify` on the chains, `openssl s_client` on
//! the server.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;
use weft_drain::Trigger;
use weft_identity::{Config, Handle, HostPattern, Kind};
use weft_proto::weft::{
    identity::v1::{SignWorkloadRequest, SvidUse, certificates_client::CertificatesClient},
    policy::v1::{WatchResponse, Workload},
};
use weft_tls::{Expect, new_key_and_csr};

struct Mesh {
    dir: TempDir,
    handle: Handle,
    _trigger: Trigger,
}

async fn mesh() -> Mesh {
    let dir = TempDir::new().unwrap();
    let (trigger, drain) = weft_drain::channel();
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: dir.path().join("state"),
        run_dir: None,
        ..Config::default()
    };
    let handle = weft_identity::start(config, drain).await.unwrap();
    Mesh {
        dir,
        handle,
        _trigger: trigger,
    }
}

fn openssl(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is needed for this test");
    // It may have ended before it read anything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let out = child.wait_with_output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    (out.status.success(), text)
}

impl Mesh {
    fn write(&self, name: &str, ders: &[&[u8]]) -> PathBuf {
        let text: String = ders
            .iter()
            .map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", *der)))
            .collect();
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn root(&self) -> PathBuf {
        let root = self.handle.credentials().1.bundle().roots[0].clone();
        self.write("root.pem", &[&root])
    }

    /// A node's folder, joined.
    async fn node(&self, name: &str) -> (PathBuf, weft_enroll::Member, Trigger) {
        let anything = vec![HostPattern {
            namespace: "*".into(),
            app_id: "*".into(),
        }];
        let token = self
            .handle
            .create_join_token(Kind::Node, name, anything, std::time::Duration::from_secs(60))
            .await
            .unwrap();
        let folder = self.dir.path().join(name);
        let (trigger, drain) = weft_drain::channel();
        let id = self.handle.trust_domain().node(name).unwrap();
        let member = weft_enroll::Enrollment::new(id, folder.clone(), self.handle.address().to_string())
            .token(weft_enroll::TokenSource::Given(token))
            .enroll(drain)
            .await
            .unwrap();
        (folder, member, trigger)
    }
}

fn verify(root: &Path, issuer: &Path, leaf: &Path, purpose: &str) -> (bool, String) {
    let arguments = [
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        root.to_str().unwrap(),
        "-untrusted",
        issuer.to_str().unwrap(),
        leaf.to_str().unwrap(),
    ];
    openssl(&arguments, "")
}

#[tokio::test]
async fn openssl_accepts_every_chain_under_its_root_only() {
    let (ours, strange) = (mesh().await, mesh().await);
    let (_, member, _drain) = ours.node("n1").await;
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
    ours.handle.registry().apply(snapshot).unwrap();
    let identity = Expect::Id(ours.handle.trust_domain().service("identity").unwrap());
    let channel = weft_rpc::channel(
        &ours.handle.address().to_string(),
        Some(&member.svid),
        &member.trust,
        identity,
    )
    .unwrap();
    let mut chains: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "identity",
            ours.handle
                .credentials()
                .0
                .get()
                .unwrap()
                .chain()
                .iter()
                .map(|c| c.to_vec())
                .collect(),
        ),
        (
            "node",
            member
                .svid
                .get()
                .unwrap()
                .chain()
                .iter()
                .map(|c| c.to_vec())
                .collect(),
        ),
    ];
    for (name, purpose) in [("tunnel", SvidUse::Tunnel), ("workload", SvidUse::Workload)] {
        let request = SignWorkloadRequest {
            workload_id: "w".into(),
            csr_der: new_key_and_csr().unwrap().csr_der,
            r#use: purpose.into(),
        };
        let reply = CertificatesClient::new(channel.clone())
            .sign_workload(request)
            .await
            .unwrap();
        chains.push((name, reply.into_inner().svid.unwrap().chain_der));
    }
    let (root, wrong) = (ours.root(), strange.root());
    for (name, chain) in chains {
        let leaf = ours.write(&format!("{name}.pem"), &[&chain[0]]);
        let issuer = ours.write(&format!("{name}-issuer.pem"), &[&chain[1]]);
        for purpose in ["sslserver", "sslclient"] {
            let (ok, text) = verify(&root, &issuer, &leaf, purpose);
            assert!(ok, "{name} as {purpose}: {text}");
        }
        let (ok, _) = verify(&wrong, &issuer, &leaf, "sslserver");
        assert!(!ok, "{name} was accepted under a strange root");
        let (ok, _) = verify(&root, &issuer, &leaf, "smimesign");
        assert!(!ok, "{name} was accepted for a purpose it is not made for");
        // A leaf signs nothing.
        let (ok, _) = verify(&leaf, &leaf, &leaf, "sslserver");
        assert!(!ok, "{name} was accepted as an authority");

        let arguments = ["x509", "-in", leaf.to_str().unwrap(), "-noout", "-text"];
        let (_, text) = openssl(&arguments, "");
        assert_eq!(text.matches("URI:spiffe://cluster.local/").count(), 1, "{text}");
        assert!(
            text.contains("TLS Web Server Authentication, TLS Web Client Authentication"),
            "{text}"
        );
        assert!(text.contains("CA:FALSE"), "{text}");
        assert_eq!(
            text.contains("2.25.231927114.1.1"),
            name == "tunnel",
            "{name}: {text}"
        );
    }
}

#[tokio::test]
async fn openssl_gets_in_with_a_members_certificate() {
    let mesh = mesh().await;
    let (folder, _member, _drain) = mesh.node("n1").await;
    let (address, root) = (mesh.handle.address().to_string(), mesh.root());
    let svid = folder.join("svid.pem");
    let connect = async |root: PathBuf, more: Vec<String>| {
        let address = address.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut arguments = vec![
                "s_client",
                "-connect",
                &address,
                "-alpn",
                "h2",
                "-verify_return_error",
                "-CAfile",
            ];
            arguments.push(root.to_str().unwrap());
            arguments.extend(more.iter().map(String::as_str));
            openssl(&arguments, "Q\n")
        });
        done.await.unwrap()
    };
    let member: Vec<String> = ["-cert", "-cert_chain", "-key"]
        .iter()
        .flat_map(|f| [(*f).to_owned(), svid.display().to_string()])
        .collect();
    let (ok, text) = connect(root.clone(), member.clone()).await;
    assert!(ok, "{text}");
    assert!(
        text.contains("TLSv1.3") && text.contains("Verify return code: 0 (ok)"),
        "{text}"
    );
    assert!(text.contains("ALPN protocol: h2"), "{text}");
    // Twins: another root, an older protocol.
    let strange = self::mesh().await;
    let (ok, text) = connect(strange.root(), member.clone()).await;
    assert!(!ok && text.contains("verify error"), "{text}");
    let old = [member, vec!["-tls1_2".into()]].concat();
    let (ok, text) = connect(root, old).await;
    assert!(!ok, "{text}");
}
