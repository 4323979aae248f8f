//! What callers outside of the mesh get for evidence, by `Bootstrap.Attest`.

use crate::rig::{Rig, cell, td};
use tonic::{Code, Status};
use weft_proto::weft::identity::v1::{
    AttestRequest, AuditEntry, RevokeRequest, Svid, admin_client::AdminClient, attest_request::Evidence,
    bootstrap_client::BootstrapClient,
};
use weft_tls::{SvidCell, new_key_and_csr};

/// Asks with a fresh key.
pub async fn attest(
    rig: &Rig,
    svid: Option<&SvidCell>,
    evidence: Option<Evidence>,
    spiffe_id: &str,
) -> Result<Svid, Status> {
    let made = new_key_and_csr().unwrap();
    let request = AttestRequest {
        evidence,
        csr_der: made.csr_der,
        spiffe_id: spiffe_id.into(),
    };
    let mut client = BootstrapClient::new(rig.channel(svid));
    let svid = client.attest(request).await?.into_inner().svid.unwrap();
    // The key fits, or this fails.
    cell(svid.chain_der.clone(), &made.key);
    Ok(svid)
}

/// Asserts that nothing was given, why, that programs are told, and that record and metric know it.
pub async fn assert_refused(
    rig: &Rig,
    outcome: Result<Svid, Status>,
    (code, reason, text): (Code, &str, &str),
) -> AuditEntry {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(text),
        "{text:?} is not in {:?}",
        status.message()
    );
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(details.contains(reason), "{reason} is not in {details:?}");
    assert!(rig.refused(reason) >= 1, "{reason} is not counted");
    let newest = rig.audit().await.swap_remove(0);
    assert_eq!(
        (newest.action.as_str(), newest.outcome.as_str()),
        ("attest", "refuse")
    );
    assert!(newest.reason.contains(text), "{}", newest.reason);
    assert_eq!(newest.serial, "");
    newest
}

#[tokio::test]
async fn without_evidence_only_a_process_that_asked_for_it_gives_anything() {
    let (secure, insecure) = (Rig::new().await, Rig::insecure().await);
    let cart = "spiffe://cluster.local/ns/shop/cart";
    let given = attest(&insecure, None, None, cart).await.unwrap();
    assert_eq!(given.spiffe_id, cart);
    let newest = insecure.audit().await.swap_remove(0);
    assert_eq!(
        (newest.attested.as_str(), newest.serial.as_str()),
        ("insecure", given.serial.as_str())
    );
    let refused = attest(&secure, None, None, cart).await;
    let off = (Code::PermissionDenied, "ATTESTATION_OFF", "nothing was shown");
    assert_refused(&secure, refused, off).await;

    // Nobody becomes somebody of the mesh itself, or of another one.
    for id in [
        td().admin("ops").unwrap().to_string(),
        td().node("n1").unwrap().to_string(),
        td().service("policy").unwrap().to_string(),
        "spiffe://other.mesh/ns/shop/cart".into(),
        "spiffe://cluster.local/ns/shop/sa/cart".into(),
    ] {
        let outcome = attest(&insecure, None, None, &id).await;
        let no = (
            Code::PermissionDenied,
            "OTHER_IDENTITY",
            "is no workload of this mesh",
        );
        assert_refused(&insecure, outcome, no).await;
    }
    for (id, text) in [("", "say which"), ("cart", "does not start with spiffe://")] {
        let outcome = attest(&insecure, None, None, id).await;
        let no = (Code::InvalidArgument, "FIELD_INVALID", text);
        assert_refused(&insecure, outcome, no).await;
    }
}

#[tokio::test]
async fn a_revoked_identity_gets_nothing_whatever_is_shown() {
    let rig = Rig::insecure().await;
    let (cart, pay) = (
        "spiffe://cluster.local/ns/shop/cart",
        "spiffe://cluster.local/ns/shop/pay",
    );
    let request = RevokeRequest {
        target: cart.into(),
        reason: "its key was copied".into(),
    };
    AdminClient::new(rig.local()).revoke(request).await.unwrap();
    let outcome = attest(&rig, None, None, cart).await;
    let revoked = (Code::PermissionDenied, "IDENTITY_REVOKED", "revoked");
    assert_refused(&rig, outcome, revoked).await;
    attest(&rig, None, None, pay).await.unwrap();
}

#[tokio::test]
async fn evidence_that_is_not_configured_is_refused_by_its_setting() {
    let rig = Rig::new().await;
    for (evidence, setting) in [
        (
            Evidence::KubernetesToken("a.b.c".into()),
            "`attestation.kubernetes` is not set",
        ),
        (Evidence::Jwt("a.b.c".into()), "`attestation.jwt` is not set"),
    ] {
        let outcome = attest(&rig, None, Some(evidence), "spiffe://cluster.local/ns/shop/cart").await;
        let off = (Code::PermissionDenied, "ATTESTATION_OFF", setting);
        assert_refused(&rig, outcome, off).await;
    }
}
