//! Certificates for workloads: what a node gets, and what it does not.

use crate::rig::{NOW, Rig, cell, config, pattern, td};
use std::time::Duration;
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_identity::{CaConfig, Config, Kind};
use weft_model::SvidForm;
use weft_proto::weft::{
    identity::v1::{SignWorkloadRequest, Svid, SvidUse, certificates_client::CertificatesClient},
    policy::v1::{WatchResponse, Workload},
};
use weft_tls::{ManualClock, PeerIdentity, SvidCell, new_key_and_csr};

pub fn workload(node: &str, namespace: &str, app_id: &str) -> Workload {
    Workload {
        id: format!("{node}/{namespace}/{app_id}/1"),
        node: node.into(),
        namespace: namespace.into(),
        app_id: app_id.into(),
        spiffe_id: format!("spiffe://cluster.local/ns/{namespace}/{app_id}"),
        ..Default::default()
    }
}

pub fn registered(rig: &Rig, workloads: Vec<Workload>) {
    let snapshot = WatchResponse {
        snapshot: true,
        upserts: workloads,
        removed_ids: vec![],
    };
    rig.handle.registry().apply(snapshot).unwrap();
}

pub async fn sign(rig: &Rig, node: &SvidCell, id: &str, purpose: SvidUse) -> Result<Svid, Status> {
    let made = new_key_and_csr().unwrap();
    let request = SignWorkloadRequest {
        workload_id: id.into(),
        csr_der: made.csr_der.clone(),
        r#use: purpose.into(),
    };
    let reply = CertificatesClient::new(rig.channel(Some(node)))
        .sign_workload(request)
        .await?;
    let svid = reply.into_inner().svid.unwrap();
    // The key fits, or this fails.
    cell(svid.chain_der.clone(), &made.key);
    Ok(svid)
}

#[tokio::test]
async fn a_node_gets_what_it_may_host_and_nothing_else() {
    let rig = Rig::new().await;
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[pattern("shop", "cart*")]).await;
    registered(
        &rig,
        vec![
            workload("n1", "shop", "cart"),
            workload("n1", "shop", "pay"),
            workload("n1", "bank", "cart"),
            workload("n2", "shop", "cart"),
        ],
    );
    let ask = async |id: &str| sign(&rig, &n1.svid, id, SvidUse::Workload).await;

    let given = ask("n1/shop/cart/1").await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/cart");
    // Each refusal differs from it in one thing.
    for (id, code, reason) in [
        ("n1/shop/pay/1", Code::PermissionDenied, "may not host shop/pay"),
        ("n1/bank/cart/1", Code::PermissionDenied, "may not host bank/cart"),
        ("n2/shop/cart/1", Code::PermissionDenied, "runs on node \"n2\""),
        ("n1/shop/cart/2", Code::NotFound, "is not registered"),
    ] {
        let status = ask(id).await.unwrap_err();
        assert_eq!(status.code(), code, "{id}: {status}");
        assert!(status.message().contains(reason), "{id}: {}", status.message());
    }

    let audit = rig.audit().await;
    let mine: Vec<_> = audit.iter().filter(|e| e.action == "sign-workload").collect();
    assert_eq!(
        mine.iter()
            .filter(|e| e.outcome == "issue" && e.serial == given.serial)
            .count(),
        1
    );
    assert_eq!(mine.iter().filter(|e| e.outcome == "refuse").count(), 4);
    for entry in mine {
        assert_eq!(entry.caller, td().node("n1").unwrap().as_str());
    }
    assert!(audit.iter().any(|e| {
        e.outcome == "refuse"
            && e.spiffe_id == "spiffe://cluster.local/ns/shop/pay"
            && e.reason.contains("may not host")
    }));
}

#[tokio::test]
async fn only_tunnel_certificates_name_the_node() {
    let rig = Rig::new().await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("*", "*")]).await;
    registered(&rig, vec![workload("n1", "shop", "cart")]);
    let leaf = async |purpose| {
        let svid = sign(&rig, &n1.svid, "n1/shop/cart/1", purpose).await?;
        assert_eq!(svid.chain_der.len(), 2, "leaf and issuer");
        Ok::<_, Status>(PeerIdentity::from_leaf(&svid.chain_der[0].clone().into()).unwrap())
    };
    assert_eq!(leaf(SvidUse::Tunnel).await.unwrap().node.as_deref(), Some("n1"));
    let plain = leaf(SvidUse::Workload).await.unwrap();
    assert_eq!((plain.node, plain.not_after), (None, NOW + 86_400));
    let status = leaf(SvidUse::Unspecified).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn without_a_registry_nothing_is_signed() {
    let rig = Rig::new().await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("*", "*")]).await;
    let status = sign(&rig, &n1.svid, "n1/shop/cart/1", SvidUse::Workload)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("policy service"),
        "{}",
        status.message()
    );
    registered(&rig, vec![workload("n1", "shop", "cart")]);
    sign(&rig, &n1.svid, "n1/shop/cart/1", SvidUse::Workload)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_registry_can_not_name_somebody_else() {
    let rig = Rig::new().await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("*", "*")]).await;
    let good = workload("n1", "shop", "cart");
    let as_admin = Workload {
        id: "a".into(),
        spiffe_id: "spiffe://cluster.local/weft/admin/ops".into(),
        ..good.clone()
    };
    let other = Workload {
        id: "b".into(),
        spiffe_id: "spiffe://cluster.local/ns/shop/pay".into(),
        ..good.clone()
    };
    let path = Workload {
        id: "c".into(),
        app_id: "../../weft".into(),
        spiffe_id: String::new(),
        ..good.clone()
    };
    let dots = Workload {
        id: "d".into(),
        app_id: "a.b".into(),
        spiffe_id: String::new(),
        ..good.clone()
    };
    let account = Workload {
        id: "e".into(),
        app_id: String::new(),
        service_account: "runner".into(),
        spiffe_id: String::new(),
        ..good.clone()
    };
    registered(&rig, vec![good, as_admin, other, path, dots, account]);
    for id in ["a", "b", "c", "d"] {
        let status = sign(&rig, &n1.svid, id, SvidUse::Workload).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{id}: {status}");
    }
    let account = sign(&rig, &n1.svid, "e", SvidUse::Workload).await.unwrap();
    assert_eq!(account.spiffe_id, "spiffe://cluster.local/ns/shop/runner");
}

#[tokio::test]
async fn ids_may_be_made_of_service_accounts() {
    let dir = TempDir::new().unwrap();
    let settings = Config {
        ca: CaConfig {
            svid_form: SvidForm::ServiceAccount,
            ..CaConfig::default()
        },
        ..config(&dir)
    };
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "runner")]).await;
    let of = |id: &str, account: &str, spiffe_id: &str| Workload {
        id: id.into(),
        service_account: account.into(),
        spiffe_id: spiffe_id.into(),
        ..workload("n1", "shop", "cart")
    };
    registered(
        &rig,
        vec![
            of("a", "runner", "spiffe://cluster.local/ns/shop/sa/runner"),
            of("b", "admin", "spiffe://cluster.local/ns/shop/sa/admin"),
            // A policy service that was told nothing of it.
            of("c", "runner", "spiffe://cluster.local/ns/shop/cart"),
        ],
    );
    let given = sign(&rig, &n1.svid, "a", SvidUse::Workload).await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/sa/runner");
    // What a node may host is about the name that is in the ID, or an app-id would open any account.
    for (id, text) in [
        ("b", "may not host shop/admin"),
        ("c", "svid_form must be the same"),
    ] {
        let status = sign(&rig, &n1.svid, id, SvidUse::Workload).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
}

#[tokio::test]
async fn what_a_node_may_host_survives_a_restart_and_changes_with_a_new_token() {
    let rig = Rig::new().await;
    let (n1, drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    drain.drain(Duration::from_secs(5)).await;
    let (dir, clock) = rig.stop().await;
    let rig = Rig::with(dir, clock).await;
    registered(
        &rig,
        vec![workload("n1", "shop", "cart"), workload("n1", "bank", "vault")],
    );
    let ask = async |id: &str| sign(&rig, &n1.svid, id, SvidUse::Workload).await.is_ok();
    assert!(ask("n1/shop/cart/1").await && !ask("n1/bank/vault/1").await);

    std::fs::remove_dir_all(rig.member_folder("node-n1")).unwrap();
    let (_again, _drain) = rig.join(Kind::Node, "n1", &[pattern("bank", "*")]).await;
    assert!(!ask("n1/shop/cart/1").await && ask("n1/bank/vault/1").await);
}
