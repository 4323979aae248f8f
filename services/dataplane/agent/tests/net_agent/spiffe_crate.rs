//! SPIFFE's Workload API with the stock Rust client, crate `spiffe`, in a process of its own: identities
//! and bundles of both kinds, and a rotation that arrives.

use crate::rig::{Rig, Running, SOON};
use serde_json::{Value, json};
use spiffe::{SpiffeId, TrustDomain, WorkloadApiClient, X509Source};
use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};
use weft_identity::CaConfig;
use weft_testnet::{Process, Spawn};

/// Tells the client process where the socket is.
const SOCKET: &str = "WEFT_TEST_SPIFFE_SOCKET";
/// Before each line that it says: the test harness says things as well.
const SAYS: &str = "client: ";

fn client(node: &Running, cgroup: Option<&Path>) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["spiffe_crate::is_a_client", "--exact", "--ignored", "--nocapture"])
        .env(SOCKET, node.workload_socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let spawn = match cgroup {
        Some(cgroup) => Spawn::root().cgroup(cgroup),
        None => Spawn::root(),
    };
    node.node.namespace().spawn(command, &spawn).unwrap()
}

/// What it says, as it says it.
fn listen(process: &mut Process) -> mpsc::Receiver<Value> {
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Some(said) = line.split_once(SAYS).map(|(_, said)| said)
                && tell.send(serde_json::from_str(said).unwrap()).is_err()
            {
                return;
            }
        }
    });
    told
}

fn say(what: &Value) {
    println!("{SAYS}{what}");
}

/// Says what it is given, then what comes with the next rotation.
#[test]
#[ignore = "started by the tests here"]
fn is_a_client() {
    let socket = std::env::var(SOCKET).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(talk(&format!("unix:{socket}")));
}

async fn talk(endpoint: &str) {
    let client = WorkloadApiClient::connect_to(endpoint).await.unwrap();
    let svid = client.fetch_x509_svid().await.unwrap();
    let domain = svid.spiffe_id().trust_domain().clone();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let roots = bundles.get(&domain).unwrap();
    let chain = svid.cert_chain().iter().map(|c| c.as_bytes().to_vec());
    say(&json!({
        "id": svid.spiffe_id().to_string(),
        "chain": chain.collect::<Vec<_>>(),
        "roots": roots.authorities().iter().map(|c| c.as_bytes().to_vec()).collect::<Vec<_>>(),
        "bundles": bundles.len(),
    }));

    let none: Option<&SpiffeId> = None;
    let token = client.fetch_jwt_svid(["bank", "shop"], none).await.unwrap();
    let keys = client.fetch_jwt_bundles().await.unwrap();
    let key = keys
        .get(&domain)
        .unwrap()
        .find_jwt_authority(token.key_id())
        .cloned();
    let agreed = client.validate_jwt_token("bank", token.token()).await.unwrap();
    let refused = client
        .validate_jwt_token("thief", token.token())
        .await
        .unwrap_err();
    say(&json!({
        "id": token.spiffe_id().to_string(),
        "agreed": agreed.spiffe_id().to_string(),
        "audience": token.audience(),
        "has_key": key.is_some(),
        "refused": refused.to_string(),
    }));

    let source = X509Source::builder().endpoint(endpoint).build().await.unwrap();
    let mut updates = source.updated();
    let leaf = || source.svid().unwrap().leaf().as_bytes().to_vec();
    say(&json!({ "leaf": leaf() }));
    updates.changed().await.unwrap();
    let bundle = source.bundle_set().unwrap();
    let domain = TrustDomain::new(domain.as_str()).unwrap();
    say(&json!({ "leaf": leaf(), "roots": bundle.get(&domain).unwrap().authorities().len() }));
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_crate_gets_its_workloads_identity_and_sees_it_renewed() {
    // The shortest life there is: renewed after half a minute.
    let ca = CaConfig {
        workload_ttl_seconds: 60,
        ..CaConfig::default()
    };
    let rig = Rig::with_authority(&[], &["n1"], ca);
    let node = &rig.nodes[0];
    let (cart, _runs) = node.add_process("cart").await;
    let mut process = client(node, Some(&cart));
    let told = listen(&mut process);
    let id = "spiffe://cluster.local/ns/default/cart";

    let x509 = told.recv_timeout(SOON).unwrap();
    assert_eq!(
        (x509["id"].as_str(), x509["bundles"].as_u64()),
        (Some(id), Some(1))
    );
    let peer = weft_tls::PeerIdentity::from_leaf(&bytes(&x509["chain"][0]).into()).unwrap();
    assert_eq!((peer.id.as_str(), peer.node), (id, None), "it opens no tunnel");
    assert_eq!(x509["roots"].as_array().unwrap().len(), 1);

    let jwt = told.recv_timeout(SOON).unwrap();
    assert_eq!((jwt["id"].as_str(), jwt["agreed"].as_str()), (Some(id), Some(id)));
    assert_eq!(jwt["audience"], json!(["bank", "shop"]));
    assert_eq!(jwt["has_key"], true, "{jwt}");
    let refused = jwt["refused"].as_str().unwrap();
    assert!(refused.contains("it is not for audience"), "{refused}");

    let first = told.recv_timeout(SOON).unwrap();
    let second = told.recv_timeout(SOON + Duration::from_secs(60)).unwrap();
    let serial = |said: &Value| {
        let leaf = weft_tls::PeerIdentity::from_leaf(&bytes(&said["leaf"]).into()).unwrap();
        assert_eq!(leaf.id.as_str(), id);
        leaf.serial
    };
    assert_ne!(serial(&first), serial(&second), "the same certificate twice");
    assert_eq!(second["roots"], 1);

    // Twin: the same program in no workload's cgroup.
    let mut stranger = client(node, None);
    let mut errors = String::new();
    stranger
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert!(errors.contains("NoIdentityIssued"), "{errors}");
}
