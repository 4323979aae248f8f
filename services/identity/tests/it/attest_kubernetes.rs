//! What pods get for the tokens that Kubernetes gave them, and what they do not.

use crate::{
    attest::{assert_refused, attest},
    cluster::{Cluster, Mood, Token},
    rig::{NOW, Rig, config, pattern, td},
    workloads::{registered, sign, workload},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_enroll::{EnrollError, KubernetesJoin};
use weft_identity::{AttestationConfig, CaConfig, Config, Kind, KubernetesConfig, NodeAgent};
use weft_model::SvidForm;
use weft_proto::weft::identity::v1::{Svid, SvidUse, attest_request::Evidence};
use weft_tls::{ManualClock, SvidCell};

pub async fn rig_of(cluster: &Cluster, form: SvidForm) -> Rig {
    rig_for(cluster, form, &[]).await
}

async fn rig_for(cluster: &Cluster, form: SvidForm, audiences: &[&str]) -> Rig {
    let dir = TempDir::new().unwrap();
    let kubernetes = KubernetesConfig {
        kubeconfig: Some(cluster.kubeconfig()),
        node_agents: vec![NodeAgent {
            namespace: "weft-system".into(),
            service_account: "weft-agent".into(),
        }],
        may_host: vec![pattern("shop", "*")],
        audiences: audiences.iter().map(ToString::to_string).collect(),
        timeout_seconds: 1,
    };
    let settings = Config {
        attestation: AttestationConfig {
            kubernetes: Some(kubernetes),
            jwt: None,
        },
        ca: CaConfig {
            svid_form: form,
            ..CaConfig::default()
        },
        ..config(&dir)
    };
    Rig::configured(settings, dir, ManualClock::at(NOW)).await
}

async fn show(rig: &Rig, svid: Option<&SvidCell>, token: &str, id: &str) -> Result<Svid, Status> {
    attest(rig, svid, Some(Evidence::KubernetesToken(token.into())), id).await
}

#[tokio::test]
async fn a_pod_gets_the_name_of_its_annotation_or_its_account() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    cluster.pod("shop", "plain-1", "runner", "n1", None);
    let (cart, plain) = (
        cluster.token("shop", "cart-1", "runner"),
        cluster.token("shop", "plain-1", "runner"),
    );
    let by_app = rig_of(&cluster, SvidForm::AppId).await;
    let given = show(&by_app, None, &cart, "").await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/cart");
    let newest = by_app.audit().await.swap_remove(0);
    assert_eq!(
        (newest.outcome.as_str(), newest.attested.as_str()),
        ("issue", "kubernetes")
    );
    assert_eq!(newest.serial, given.serial);
    assert_eq!(newest.caller, "system:serviceaccount:shop:runner (pod cart-1)");
    let given = show(&by_app, None, &plain, "").await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/runner");

    // Asked for by name: its own, and nobody else's.
    show(&by_app, None, &cart, "spiffe://cluster.local/ns/shop/cart")
        .await
        .unwrap();
    let id = "spiffe://cluster.local/ns/shop/pay";
    let other = (
        Code::PermissionDenied,
        "OTHER_IDENTITY",
        "is spiffe://cluster.local/ns/shop/cart, not",
    );
    let entry = assert_refused(&by_app, show(&by_app, None, &cart, id).await, other).await;
    assert_eq!(
        (entry.spiffe_id.as_str(), entry.attested.as_str()),
        (id, "kubernetes")
    );
    assert_eq!(entry.caller, "system:serviceaccount:shop:runner (pod cart-1)");

    let by_account = rig_of(&cluster, SvidForm::ServiceAccount).await;
    let given = show(&by_account, None, &cart, "").await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/sa/runner");
    let app = show(&by_account, None, &cart, "spiffe://cluster.local/ns/shop/cart").await;
    let other = (
        Code::PermissionDenied,
        "OTHER_IDENTITY",
        "/ns/shop/sa/runner, not",
    );
    assert_refused(&by_account, app, other).await;
}

#[tokio::test]
async fn each_thing_that_is_wrong_with_a_token_is_refused_by_its_reason() {
    type Change = fn(&mut Token);
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let cases: [(Change, &str, &str); 8] = [
        (|t| t.expired = true, "TOKEN_EXPIRED", "has expired"),
        (
            |t| t.audiences = vec!["https://kubernetes.default.svc".into()],
            "TOKEN_AUDIENCE",
            "target audiences",
        ),
        (|t| t.pod = None, "TOKEN_UNBOUND", "bound to no pod"),
        (
            |t| t.username = "system:node:n1".into(),
            "TOKEN_UNBOUND",
            "no service account",
        ),
        (
            |t| t.username = "jane".into(),
            "TOKEN_UNBOUND",
            "no service account",
        ),
        (
            |t| t.pod = Some(("cart-1".into(), "uid-older".into())),
            "POD_REPLACED",
            "replaced by another of its name",
        ),
        (
            |t| t.pod = Some(("cart-2".into(), "uid-cart-2".into())),
            "POD_GONE",
            "is gone",
        ),
        (
            |t| t.username = "system:serviceaccount:shop:admin".into(),
            "OTHER_IDENTITY",
            "runs as service account \"runner\"",
        ),
    ];
    for (change, reason, text) in cases {
        let token = cluster.token_with("shop", "cart-1", "runner", change);
        let outcome = show(&rig, None, &token, "").await;
        let entry = assert_refused(&rig, outcome, (Code::PermissionDenied, reason, text)).await;
        assert_eq!(entry.attested, "kubernetes");
    }
    let outcome = show(&rig, None, "made.up.token", "").await;
    let unknown = (
        Code::PermissionDenied,
        "TOKEN_INVALID",
        "does not vouch for the token",
    );
    assert_refused(&rig, outcome, unknown).await;
    for (token, text) in [
        (String::new(), "is empty"),
        ("x".repeat(16 * 1024 + 1), "at most 16384"),
    ] {
        let asked = cluster.state.lock().asked.len();
        let outcome = show(&rig, None, &token, "").await;
        assert_refused(&rig, outcome, (Code::InvalidArgument, "TOKEN_MALFORMED", text)).await;
        assert_eq!(
            cluster.state.lock().asked.len(),
            asked,
            "the API server is not bothered"
        );
    }
    // The same without anything wrong.
    let good = cluster.token_with("shop", "cart-1", "runner", |_| ());
    show(&rig, None, &good, "").await.unwrap();
    // Dapr's injector projects tokens for sentry.
    for audience in [
        "spiffe://cluster.local/ns/dapr-system/dapr-sentry",
        "dapr.io/sentry",
    ] {
        let token = cluster.token_with("shop", "cart-1", "runner", |t| {
            t.audiences = vec![audience.into()]
        });
        show(&rig, None, &token, "").await.unwrap();
    }
}

#[tokio::test]
async fn an_audience_that_is_set_is_the_only_one() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    let rig = rig_for(&cluster, SvidForm::AppId, &["mesh.example"]).await;
    let set = cluster.token_with("shop", "cart-1", "runner", |t| {
        t.audiences = vec!["mesh.example".into()];
    });
    show(&rig, None, &set, "").await.unwrap();
    let usual = cluster.token("shop", "cart-1", "runner");
    let other = (Code::PermissionDenied, "TOKEN_AUDIENCE", "target audiences");
    assert_refused(&rig, show(&rig, None, &usual, "").await, other).await;
}

#[tokio::test]
async fn a_pod_that_does_not_run_gets_nothing_however_good_its_token() {
    type Change = fn(&mut Value);
    let cluster = Cluster::start().await;
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let token = cluster.token("shop", "cart-1", "runner");
    let cases: [(Change, &str, &str); 5] = [
        (
            |p| p["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z"),
            "POD_GONE",
            "is being deleted",
        ),
        (
            |p| p["status"]["phase"] = json!("Succeeded"),
            "POD_GONE",
            "has ended (Succeeded)",
        ),
        (
            |p| p["status"]["phase"] = json!("Failed"),
            "POD_GONE",
            "has ended (Failed)",
        ),
        (
            |p| drop(p["spec"].as_object_mut().unwrap().remove("nodeName")),
            "POD_GONE",
            "is on no node yet",
        ),
        (
            |p| p["metadata"]["annotations"]["dapr.io/app-id"] = json!("../../weft/admin/ops"),
            "OTHER_IDENTITY",
            "annotation dapr.io/app-id",
        ),
    ];
    for (change, reason, text) in cases {
        cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
        show(&rig, None, &token, "").await.unwrap();
        cluster.change("shop", "cart-1", change);
        let outcome = show(&rig, None, &token, "").await;
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, text)).await;
    }
}

#[tokio::test]
async fn a_node_asks_only_for_pods_that_run_on_it() {
    let cluster = Cluster::start().await;
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("*", "*")]).await;
    cluster.pod("shop", "here", "runner", "n1", None);
    cluster.pod("shop", "there", "runner", "n2", None);
    let (here, there) = (
        cluster.token("shop", "here", "runner"),
        cluster.token("shop", "there", "runner"),
    );
    show(&rig, Some(&n1.svid), &here, "").await.unwrap();
    let outcome = show(&rig, Some(&n1.svid), &there, "").await;
    let elsewhere = (
        Code::PermissionDenied,
        "POD_ELSEWHERE",
        "runs on node \"n2\", not on \"n1\"",
    );
    assert_refused(&rig, outcome, elsewhere).await;
    // The pod itself may.
    show(&rig, None, &there, "").await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_away_or_mad_is_no_answer() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let token = cluster.token("shop", "cart-1", "runner");
    for (mood, text) in [
        (Mood::Status(429), "too many requests"),
        (Mood::Status(503), "status 503"),
        (Mood::Status(403), "does not permit it"),
        (Mood::Garbage, "no sensible answer"),
        (Mood::Silent, "did not answer"),
    ] {
        cluster.feel(mood);
        let outcome = show(&rig, None, &token, "").await;
        assert_refused(&rig, outcome, (Code::Unavailable, "ATTESTOR_AWAY", text)).await;
        cluster.feel(Mood::Fine);
        show(&rig, None, &token, "").await.unwrap();
    }
    drop(cluster);
    let outcome = show(&rig, None, &token, "").await;
    let away = (Code::Unavailable, "ATTESTOR_AWAY", "could not review the token");
    assert_refused(&rig, outcome, away).await;
}

/// The agent's pod makes its node a member.
pub async fn join_as_node(
    cluster: &Cluster,
    rig: &Rig,
    pod: &str,
    node: &str,
) -> (weft_enroll::Member, weft_drain::Trigger) {
    let folder = rig.dir.path().join(format!("projected-{pod}"));
    std::fs::create_dir(&folder).unwrap();
    let by = KubernetesJoin {
        token_file: folder.join("token"),
        trust_anchors_file: folder.join("ca.crt"),
    };
    std::fs::write(&by.token_file, cluster.token("weft-system", pod, "weft-agent")).unwrap();
    let (_, trust) = rig.handle.credentials();
    let root = pem::encode(&pem::Pem::new("CERTIFICATE", trust.bundle().roots[0].to_vec()));
    std::fs::write(&by.trust_anchors_file, root).unwrap();
    let (trigger, drain) = weft_drain::channel();
    let enrollment = rig.enrollment(td().node(node).unwrap(), &format!("{pod}-{node}"));
    (enrollment.kubernetes(by).enroll(drain).await.unwrap(), trigger)
}

#[tokio::test]
async fn an_agent_joins_as_the_node_that_its_pod_runs_on() {
    let cluster = Cluster::start().await;
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    cluster.pod("weft-system", "agent-1", "weft-agent", "n1", None);
    cluster.pod("weft-system", "other-1", "other", "n1", None);
    let folder = rig.dir.path().join("projected");
    std::fs::create_dir(&folder).unwrap();
    let by = KubernetesJoin {
        token_file: folder.join("token"),
        trust_anchors_file: folder.join("ca.crt"),
    };
    let (_, trust) = rig.handle.credentials();
    let root = pem::encode(&pem::Pem::new("CERTIFICATE", trust.bundle().roots[0].to_vec()));
    std::fs::write(&by.trust_anchors_file, root).unwrap();
    let join = async |pod: &str, account: &str, node: &str| {
        let token = cluster.token("weft-system", pod, account);
        std::fs::write(&by.token_file, format!("{token}\n")).unwrap();
        let (trigger, drain) = weft_drain::channel();
        let enrollment = rig.enrollment(td().node(node).unwrap(), &format!("{pod}-{node}"));
        let member = enrollment.kubernetes(by.clone()).enroll(drain).await?;
        Ok::<_, EnrollError>((member, trigger))
    };
    let no = |outcome: Result<_, EnrollError>| match outcome.map(|_: (weft_enroll::Member, _)| ()) {
        Err(EnrollError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let reason = no(join("agent-1", "weft-agent", "n2").await);
    assert!(reason.contains("is the agent of node \"n1\", not"), "{reason}");
    let reason = no(join("other-1", "other", "n1").await);
    assert!(reason.contains("is no node's agent"), "{reason}");
    assert_eq!(rig.refused("OTHER_IDENTITY"), 2);
    let (n1, _drain) = join("agent-1", "weft-agent", "n1").await.unwrap();
    assert_eq!(*n1.svid.get().unwrap().id(), td().node("n1").unwrap());
    let joined = rig.audit().await.swap_remove(0);
    assert_eq!(
        (joined.action.as_str(), joined.attested.as_str()),
        ("attest", "kubernetes")
    );

    // It gets what Kubernetes has placed on it, whatever it has registered: it may be compromised.
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    cluster.pod("shop", "pay-1", "runner", "n2", Some("pay"));
    cluster.pod("bank", "vault-1", "runner", "n1", Some("vault"));
    let claims = [
        ("shop", "cart"),
        ("shop", "pay"),
        ("bank", "vault"),
        ("shop", "late"),
    ];
    registered(&rig, claims.map(|(ns, app)| workload("n1", ns, app)).to_vec());
    let ask = async |id: &str| sign(&rig, &n1.svid, id, SvidUse::Workload).await;
    let given = ask("n1/shop/cart/1").await.unwrap();
    assert_eq!(given.spiffe_id, "spiffe://cluster.local/ns/shop/cart");
    for (id, reason, text) in [
        (
            "n1/shop/pay/1",
            "POD_NOT_ON_NODE",
            "no pod of shop/pay on node \"n1\"",
        ),
        (
            "n1/bank/vault/1",
            "HOSTING_NOT_PERMITTED",
            "may not host bank/vault",
        ),
    ] {
        let before = rig.refused(reason);
        let status = ask(id).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(text), "{status}");
        assert_eq!(rig.refused(reason), before + 1);
        let newest = rig.audit().await.swap_remove(0);
        assert_eq!(
            (newest.outcome.as_str(), newest.caller.as_str()),
            ("refuse", td().node("n1").unwrap().as_str())
        );
        assert!(newest.reason.contains(text), "{}", newest.reason);
    }
    // As soon as it is placed there, it is given.
    cluster.change("shop", "pay-1", |pod| pod["spec"]["nodeName"] = json!("n1"));
    ask("n1/shop/pay/1").await.unwrap();
    // An API server that is away is not taken for a yes.
    cluster.pod("shop", "late-1", "runner", "n1", Some("late"));
    cluster.feel(Mood::Silent);
    let status = ask("n1/shop/late/1").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    cluster.feel(Mood::Fine);
    ask("n1/shop/late/1").await.unwrap();
}

#[tokio::test]
async fn what_a_pod_needs_to_join_is_named() {
    let cluster = Cluster::start().await;
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    cluster.pod("weft-system", "agent-1", "weft-agent", "n1", None);
    let by = KubernetesJoin {
        token_file: rig.dir.path().join("token"),
        trust_anchors_file: rig.dir.path().join("ca.crt"),
    };
    let join = async || {
        let (_trigger, drain) = weft_drain::channel();
        let enrollment = rig.enrollment(td().node("n1").unwrap(), "n1");
        let joined = enrollment.kubernetes(by.clone()).enroll(drain).await;
        joined.map(|_| ()).map_err(|e| e.to_string())
    };
    assert!(join().await.unwrap_err().contains("ca.crt can not be used"));
    std::fs::write(&by.trust_anchors_file, "no certificate").unwrap();
    let error = join().await.unwrap_err();
    assert!(error.contains("ca.crt can not be used: "), "{error}");
    // The roots of another mesh: the token is not sent there.
    let other = Rig::new().await;
    let write = |rig: &Rig| {
        let (_, trust) = rig.handle.credentials();
        let root = pem::encode(&pem::Pem::new("CERTIFICATE", trust.bundle().roots[0].to_vec()));
        std::fs::write(&by.trust_anchors_file, root).unwrap();
    };
    write(&other);
    std::fs::write(
        &by.token_file,
        cluster.token("weft-system", "agent-1", "weft-agent"),
    )
    .unwrap();
    let error = join().await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    assert!(rig.audit().await.iter().all(|e| e.action != "attest"));
    write(&rig);
    std::fs::rename(&by.token_file, rig.dir.path().join("away")).unwrap();
    assert!(join().await.unwrap_err().contains("token can not be used"));
    std::fs::rename(rig.dir.path().join("away"), &by.token_file).unwrap();
    join().await.unwrap();
}
