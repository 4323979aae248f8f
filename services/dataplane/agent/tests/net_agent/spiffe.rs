//! SPIFFE's Workload API with the stock Python client: who is in a workload's cgroup gets that
//! workload's identity, and sees it renewed; who is in none gets nothing.

use crate::{
    rig::{Rig, Running, SOON},
    rotation::{rotate, shown, until},
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};
use weft_identity::CaConfig;
use weft_proto::weft::identity::v1::RotateTarget;
use weft_testnet::{Process, Spawn};

pub fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_weft-agent"))
        .parent()
        .and_then(Path::parent);
    let python = target.unwrap().join("venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: cargo xtask setup",
        python.display()
    );
    python
}

fn client(node: &Running, cgroup: Option<&Path>, mode: &str) -> Process {
    let mut command = Command::new(python());
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/net_agent/spiffe_client.py"))
        .arg(node.workload_socket())
        .arg(mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let spawn = match cgroup {
        Some(cgroup) => Spawn::root().cgroup(cgroup),
        None => Spawn::root(),
    };
    node.node.namespace().spawn(command, &spawn).unwrap()
}

/// All it says, to its end.
fn said(mut process: Process) -> (Vec<Value>, String) {
    let (mut out, mut errors) = (String::new(), String::new());
    process.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), errors)
}

/// A client that follows its identity, and what it says.
fn watch(node: &Running, cgroup: &Path) -> (Process, mpsc::Receiver<Value>) {
    let mut watching = client(node, Some(cgroup), "watch");
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let value: Value = serde_json::from_str(&line).unwrap();
            if tell.send(value).is_err() {
                return;
            }
        }
    });
    (watching, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_gets_its_workloads_identity_and_no_other() {
    let rig = Rig::new(&[], &["n1"]);
    let node = &rig.nodes[0];
    let (cart, _cart_runs) = node.add_process("cart").await;
    let (shop, _shop_runs) = node.add_process("shop").await;
    for (name, cgroup) in [("cart", &cart), ("shop", &shop)] {
        let (said, errors) = said(client(node, Some(cgroup), "x509"));
        let [svid, bundles] = &said[..] else {
            panic!("{said:?}: {errors}");
        };
        assert_eq!(
            svid["spiffe_id"],
            format!("spiffe://cluster.local/ns/default/{name}")
        );
        assert_eq!((&svid["roots"], &bundles["bundles"]), (&1.into(), &1.into()));
        // It opens no tunnel: the node is not in it.
        let node_extension: Vec<_> = weft_tls::NODE_EXTENSION_OID
            .iter()
            .map(ToString::to_string)
            .collect();
        let extensions = svid["extensions"].as_array().unwrap();
        assert!(!extensions.is_empty());
        assert!(
            !extensions.contains(&node_extension.join(".").into()),
            "{extensions:?}"
        );
    }
    let (tokens, errors) = said(client(node, Some(&cart), "jwt"));
    let [token] = &tokens[..] else {
        panic!("{tokens:?}: {errors}");
    };
    let id = "spiffe://cluster.local/ns/default/cart";
    assert_eq!(token["subjects"], serde_json::json!([id, id, id, id]));
    assert_eq!(token["audience"], serde_json::json!(["bank", "shop"]));
    assert_eq!(token["life"], 300);
    let refused = token["refused"].as_str().unwrap();
    assert!(refused.contains("it is not for audience \"thief\""), "{refused}");

    let (said, errors) = said(client(node, None, "x509"));
    assert!(
        said.is_empty() && errors.contains("no identity issued"),
        "{said:?}: {errors}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_sees_its_certificate_renewed() {
    // The shortest life there is: renewed after half a minute.
    let ca = CaConfig {
        workload_ttl_seconds: 60,
        ..CaConfig::default()
    };
    let rig = Rig::with_authority(&[], &["n1"], ca);
    let node = &rig.nodes[0];
    let (cart, _runs) = node.add_process("cart").await;
    let (_watching, told) = watch(node, &cart);
    let first = told.recv_timeout(SOON).unwrap();
    let second = told.recv_timeout(SOON + Duration::from_secs(60)).unwrap();
    assert_eq!(first["spiffe_id"], second["spiffe_id"], "{second}");
    assert!(
        first["serial"].is_string() && first["serial"] != second["serial"],
        "{second}"
    );
}

/// A new root and what is signed under it are pushed to the stream that is open, without being asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_sees_the_root_rotated() {
    let rig = Rig::new(&[], &["n1"]);
    let node = &rig.nodes[0];
    let (cart, _runs) = node.add_process("cart").await;
    let (_watching, told) = watch(node, &cart);
    let first = told.recv_timeout(SOON).unwrap();
    assert_eq!(
        (&first["roots"], &first["issuers"]),
        (&1.into(), &1.into()),
        "{first}"
    );
    rotate(&rig, RotateTarget::Root).await;
    let mut seen = first.clone();
    while seen["roots"] != 2 {
        seen = told
            .recv_timeout(SOON)
            .unwrap_or_else(|_| panic!("no second root after {seen}"));
    }
    // Signed by only when all members have it.
    let signs = async || shown(&rig).await.phase == "retiring";
    until("the new root to be in use", SOON, signs).await;
    rotate(&rig, RotateTarget::Leaves).await;
    // Under both roots, as the client itself has verified.
    while seen["issuers"] != 2 {
        seen = told
            .recv_timeout(SOON)
            .unwrap_or_else(|_| panic!("nothing new after {seen}"));
    }
    assert_eq!(first["spiffe_id"], seen["spiffe_id"]);
    assert_ne!(first["serial"], seen["serial"], "{seen}");
}
