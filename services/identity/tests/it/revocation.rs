//! Certificates and identities that end before their time: on every member within two seconds.

use crate::rig::{Rig, cell, pattern, td};
use std::time::Duration;
use tonic::Code;
use weft_enroll::{Member, TokenSource};
use weft_identity::Kind;
use weft_proto::weft::{
    identity::v1::{
        ListRevocationsRequest, ReinstateRequest, RevokeRequest, SignWorkloadRequest, SvidUse,
        WatchBundleRequest, admin_client::AdminClient, certificates_client::CertificatesClient,
        trust_client::TrustClient,
    },
    policy::v1::{WatchResponse, Workload},
};
use weft_tls::{PeerIdentity, SvidCell, new_key_and_csr};

const LIMIT: Duration = Duration::from_secs(2);

async fn revoke(rig: &Rig, target: &str) {
    let request = RevokeRequest {
        target: target.into(),
        reason: "its key was copied".into(),
    };
    AdminClient::new(rig.local()).revoke(request).await.unwrap();
}

/// Waits until a member's verifier knows.
async fn refuses(member: &Member, peer: &PeerIdentity) {
    let mut changes = member.trust.revocations();
    let known = async {
        while !member.trust.is_revoked(peer) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, known)
        .await
        .expect("not within two seconds");
}

fn identity(svid: &SvidCell) -> PeerIdentity {
    svid.get().unwrap().identity().clone()
}

async fn sign(rig: &Rig, node: &SvidCell, r#use: SvidUse) -> Result<SvidCell, tonic::Status> {
    let made = new_key_and_csr().unwrap();
    let request = SignWorkloadRequest {
        workload_id: "n1/shop/cart/1".into(),
        csr_der: made.csr_der,
        r#use: r#use.into(),
    };
    let reply = CertificatesClient::new(rig.channel(Some(node)))
        .sign_workload(request)
        .await?;
    Ok(cell(reply.into_inner().svid.unwrap().chain_der, &made.key))
}

async fn with_a_workload() -> (Rig, Member, weft_drain::Trigger) {
    let rig = Rig::new().await;
    let snapshot = WatchResponse {
        snapshot: true,
        upserts: vec![Workload {
            id: "n1/shop/cart/1".into(),
            node: "n1".into(),
            namespace: "shop".into(),
            app_id: "cart".into(),
            ..Default::default()
        }],
        removed_ids: vec![],
    };
    rig.handle.registry().apply(snapshot).unwrap();
    let (n1, drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    (rig, n1, drain)
}

#[tokio::test]
async fn one_certificate_ends_everywhere_and_the_next_is_good() {
    let (rig, n1, _d1) = with_a_workload().await;
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let (policy, _d3) = rig.join(Kind::Service, "policy", &[]).await;
    let stolen = identity(&sign(&rig, &n1.svid, SvidUse::Tunnel).await.unwrap());
    let other = identity(&sign(&rig, &n1.svid, SvidUse::Tunnel).await.unwrap());
    // As `openssl x509 -serial` and browsers print it.
    revoke(&rig, &stolen.serial.to_uppercase()).await;
    for member in [&n1, &n2, &policy] {
        refuses(member, &stolen).await;
        assert!(!member.trust.is_revoked(&other));
    }
    let next = sign(&rig, &n1.svid, SvidUse::Tunnel).await.unwrap();
    assert!(!n2.trust.is_revoked(&identity(&next)));
    // Forgotten when it would have ended by itself.
    while weft_tls::Now::unix_seconds(&rig.clock) <= stolen.not_after {
        rig.clock.advance(Duration::from_secs(3600));
        // As much time as the members need to stay members.
        let late = || {
            let soon = weft_tls::Now::unix_seconds(&rig.clock) + 6 * 3600;
            [&n1, &n2, &policy]
                .iter()
                .any(|m| identity(&m.svid).not_after < soon)
        };
        while late() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let gone = async {
        while !n2.trust.revoked().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_revoked_identity_gets_nothing_until_it_is_reinstated() {
    let (rig, n1, _d1) = with_a_workload().await;
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let before = identity(&sign(&rig, &n1.svid, SvidUse::Workload).await.unwrap());
    let id = before.id.to_string();
    revoke(&rig, &id).await;
    refuses(&n2, &before).await;
    let status = sign(&rig, &n1.svid, SvidUse::Workload).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("its key was copied"), "{status}");
    let mut admin = AdminClient::new(rig.local());
    let listed = admin
        .list_revocations(ListRevocationsRequest {})
        .await
        .unwrap()
        .into_inner()
        .revocations;
    assert_eq!((listed.len(), listed[0].target.as_str()), (1, id.as_str()));

    rig.clock.advance(Duration::from_secs(60));
    let request = ReinstateRequest {
        spiffe_id: id.clone(),
    };
    admin.reinstate(request.clone()).await.unwrap();
    let after = identity(&sign(&rig, &n1.svid, SvidUse::Workload).await.unwrap());
    // What was copied is as bad as before.
    let told = async {
        while n2.trust.is_revoked(&after) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    assert!(n2.trust.is_revoked(&before));
    assert_eq!(admin.reinstate(request).await.unwrap_err().code(), Code::NotFound);
    let audit = rig.audit().await;
    let actions = ["revoke", "reinstate"].map(|a| {
        audit
            .iter()
            .filter(|e| e.action == a && e.outcome == "issue")
            .count()
    });
    assert_eq!(actions, [1, 1]);
    assert!(
        audit
            .iter()
            .any(|e| e.outcome == "refuse" && e.reason.contains("its key was copied"))
    );
}

#[tokio::test]
async fn a_revoked_node_loses_its_connections_and_what_it_holds() {
    let (rig, n1, d1) = with_a_workload().await;
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let tunnel = identity(&sign(&rig, &n1.svid, SvidUse::Tunnel).await.unwrap());
    let watch = async |member: &Member| {
        let mut trust = TrustClient::new(rig.channel(Some(&member.svid)));
        let mut stream = trust
            .watch_bundle(WatchBundleRequest::default())
            .await
            .unwrap()
            .into_inner();
        stream.message().await.unwrap().unwrap();
        stream
    };
    let (mut bad, mut good) = (watch(&n1).await, watch(&n2).await);
    revoke(&rig, &n1.id.to_string()).await;
    refuses(&n2, &identity(&n1.svid)).await;
    refuses(&n2, &tunnel).await;
    // The revocation itself may still arrive.
    let ended = async { while let Ok(Some(_)) = bad.message().await {} };
    tokio::time::timeout(LIMIT, ended)
        .await
        .expect("the connection goes on");
    assert!(good.message().await.unwrap().unwrap().revocations.is_some());
    assert!(sign(&rig, &n1.svid, SvidUse::Tunnel).await.is_err());
    d1.drain(Duration::from_secs(5)).await;

    // Reinstated, it has to join anew.
    let request = ReinstateRequest {
        spiffe_id: n1.id.to_string(),
    };
    AdminClient::new(rig.local()).reinstate(request).await.unwrap();
    let token = rig.token(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let (_trigger, drain) = weft_drain::channel();
    let again = rig
        .enrollment(n1.id.clone(), "n1-again")
        .token(TokenSource::Given(token))
        .enroll(drain)
        .await
        .unwrap();
    sign(&rig, &again.svid, SvidUse::Tunnel).await.unwrap();
    assert!(sign(&rig, &n1.svid, SvidUse::Tunnel).await.is_err());
}

#[tokio::test]
async fn what_is_revoked_stays_so_over_restarts_of_both_sides() {
    let (rig, _n1, _d1) = with_a_workload().await;
    let (n2, d2) = rig.join(Kind::Node, "n2", &[]).await;
    let bad = td().workload("shop", "bad").unwrap();
    revoke(&rig, bad.as_str()).await;
    let mut peer = identity(&n2.svid);
    peer.id = bad;
    refuses(&n2, &peer).await;
    d2.drain(Duration::from_secs(5)).await;
    let enrollment = rig.enrollment(n2.id.clone(), "node-n2");
    let (dir, clock) = rig.stop().await;
    // Without the identity service.
    let (trigger, drain) = weft_drain::channel();
    let again = enrollment.enroll(drain).await.unwrap();
    assert!(again.trust.is_revoked(&peer));
    trigger.drain(Duration::from_secs(5)).await;
    let rig = Rig::with(dir, clock).await;
    let (_, trust) = rig.handle.credentials();
    assert!(trust.is_revoked(&peer));
    let (n3, _d3) = rig.join(Kind::Node, "n3", &[]).await;
    refuses(&n3, &peer).await;
}

#[tokio::test]
async fn what_can_not_be_revoked_is_told() {
    let rig = Rig::new().await;
    let long = "x".repeat(513);
    let own = td().service("identity").unwrap().to_string();
    for (target, reason, problem) in [
        ("nonsense", "r", "neither a SPIFFE ID nor"),
        ("spiffe://elsewhere/ns/a/b", "r", "not of trust domain"),
        (own.as_str(), "r", "can not revoke itself"),
        ("0a0b", "", "reason"),
        ("0a0b", "two\nlines", "reason"),
        ("0a0b", long.as_str(), "reason"),
    ] {
        let request = RevokeRequest {
            target: target.into(),
            reason: reason.into(),
        };
        let status = AdminClient::new(rig.local()).revoke(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{target}");
        assert!(status.message().contains(problem), "{status}");
    }
    revoke(&rig, "0a0b").await;
}
