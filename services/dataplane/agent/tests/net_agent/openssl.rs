//! The agent's own port as OpenSSL sees it: who shows a certificate of this mesh gets in, and the agent
//! shows one that OpenSSL verifies.

use crate::{control::IDENTITY_SOCKETS, rig::Rig};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use weft_proto::weft::identity::v1::{SignAdminRequest, admin_client::AdminClient};
use weft_testnet::{Namespace, Spawn};
use weft_tls::new_key_and_csr;

/// HTTP/2's preface, no settings, and then what no client may send, data of the connection itself: the
/// server answers and closes.
const GREETING: &str = r"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\1\0\0\0\0\0\0x";

fn pem(tag: &str, ders: &[Vec<u8>]) -> String {
    let blocks = ders.iter().map(|der| {
        let text = STANDARD.encode(der).into_bytes();
        let lines: Vec<_> = text.chunks(64).map(String::from_utf8_lossy).collect();
        format!(
            "-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n",
            lines.join("\n")
        )
    });
    blocks.collect()
}

/// Everything that s_client says. It ends when the server closes.
fn connect(place: &Namespace, root: &Path, certificate: Option<&Path>) -> String {
    let mut line = format!(
        "printf '{GREETING}' | timeout 20 openssl s_client -connect 127.0.0.1:7304 -alpn h2 -ign_eof \
         -verify_return_error -CAfile {}",
        root.display()
    );
    if let Some(certificate) = certificate {
        let at = certificate.display();
        line = format!("{line} -cert {at} -cert_chain {at} -key {at}");
    }
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("{line} 2>&1")])
        .stdout(Stdio::piped());
    let mut process = place.spawn(command, &Spawn::root()).unwrap();
    let mut said = Vec::new();
    process.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

/// An operator's certificate with its key, and the roots, as files.
async fn operator(rig: &Rig, name: &str) -> (PathBuf, PathBuf) {
    let socket = rig
        .net
        .dir()
        .join("control")
        .join(IDENTITY_SOCKETS)
        .join("identity.sock");
    let made = new_key_and_csr().unwrap();
    let request = SignAdminRequest {
        name: name.into(),
        csr_der: made.csr_der,
        ttl_seconds: 0,
    };
    let mut client = AdminClient::new(weft_rpc::channel_local(socket).unwrap());
    let answer = client.sign_admin(request).await.unwrap().into_inner();
    let chain = pem("CERTIFICATE", &answer.svid.unwrap().chain_der);
    let key = pem("PRIVATE KEY", &[made.key.secret_der().to_vec()]);
    let (certificate, root) = (rig.net.dir().join("operator.pem"), rig.net.dir().join("root.pem"));
    std::fs::write(&certificate, chain + &key).unwrap();
    std::fs::write(&root, pem("CERTIFICATE", &answer.bundle.unwrap().roots_der)).unwrap();
    (certificate, root)
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_in_with_a_certificate_of_the_mesh() {
    let (rig, other) = (Rig::new(&[], &["n1"]), Rig::new(&[], &[]));
    let place = rig.nodes[0].node.namespace();
    // Workloads are taken once everything is served.
    let (_cart, _runs) = rig.nodes[0].add_process("cart").await;
    let (certificate, root) = operator(&rig, "ops").await;
    let (strange, strange_root) = operator(&other, "ops").await;

    let good = connect(place, &root, Some(&certificate));
    assert!(good.contains("Verify return code: 0 (ok)"), "{good}");
    assert!(
        good.contains("TLSv1.3") && good.contains("ALPN protocol: h2"),
        "{good}"
    );
    assert!(!good.contains("alert"), "{good}");
    // Twins: no certificate, another mesh's, and another mesh's root.
    let none = connect(place, &root, None);
    assert!(none.contains("alert certificate required"), "{none}");
    let stranger = connect(place, &root, Some(&strange));
    assert!(stranger.contains("alert"), "{stranger}");
    let wrong = connect(place, &strange_root, Some(&certificate));
    assert!(
        wrong.contains("verify error") || wrong.contains("certificate verify failed"),
        "{wrong}"
    );
}
