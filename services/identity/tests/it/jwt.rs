//! JWT-SVIDs: for whom they are signed, and how their keys change.

use crate::{
    rig::{NOW, Rig, pattern},
    workloads::{registered, workload},
};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde_json::Value;
use std::time::Duration;
use tonic::{Code, Status};
use weft_enroll::Member;
use weft_identity::Kind;
use weft_proto::weft::identity::v1::{SignJwtRequest, certificates_client::CertificatesClient};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn ask(rig: &Rig, node: &Member, workload: &str, audience: &[&str]) -> Result<String, Status> {
    let request = SignJwtRequest {
        workload_id: workload.into(),
        audience: audience.iter().map(ToString::to_string).collect(),
    };
    let mut client = CertificatesClient::new(rig.channel(Some(&node.svid)));
    Ok(client.sign_jwt(request).await?.into_inner().token)
}

fn keys(node: &Member) -> JwkSet {
    serde_json::from_slice(&node.trust.bundle().jwks).unwrap()
}

/// What a token says, if one of the keys that the node was given has signed it.
fn verified(node: &Member, token: &str) -> Option<Value> {
    let header = decode_header(token).unwrap();
    let keys = keys(node);
    let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap())?).unwrap();
    // The clock of the test is another one.
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false;
    validation.validate_aud = false;
    Some(decode::<Value>(token, &key, &validation).unwrap().claims)
}

#[tokio::test]
async fn a_token_is_for_a_workload_that_the_node_hosts() {
    let rig = Rig::new().await;
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[pattern("shop", "cart*")]).await;
    let all = [
        ("n1", "shop", "cart"),
        ("n1", "shop", "pay"),
        ("n2", "shop", "cart"),
    ];
    registered(&rig, all.map(|(n, s, a)| workload(n, s, a)).to_vec());

    let token = ask(&rig, &n1, "n1/shop/cart/1", &["bank", "post"]).await.unwrap();
    let claims = verified(&n1, &token).unwrap();
    assert_eq!(claims["sub"], "spiffe://cluster.local/ns/shop/cart");
    assert_eq!(claims["aud"], serde_json::json!(["bank", "post"]));
    assert_eq!(
        (claims["iat"].as_u64(), claims["exp"].as_u64()),
        (Some(NOW), Some(NOW + 300))
    );

    let many = ["a"; 17];
    for (id, audience, code, reason) in [
        (
            "n1/shop/pay/1",
            &["bank"][..],
            Code::PermissionDenied,
            "may not host shop/pay",
        ),
        (
            "n2/shop/cart/1",
            &["bank"],
            Code::PermissionDenied,
            "runs on node \"n2\"",
        ),
        ("n1/shop/cart/2", &["bank"], Code::NotFound, "is not registered"),
        ("n1/shop/cart/1", &[], Code::InvalidArgument, "audience must have"),
        (
            "n1/shop/cart/1",
            &[""],
            Code::InvalidArgument,
            "audience must have",
        ),
        (
            "n1/shop/cart/1",
            &many,
            Code::InvalidArgument,
            "audience must have",
        ),
    ] {
        let status = ask(&rig, &n1, id, audience).await.unwrap_err();
        assert_eq!(status.code(), code, "{id}: {status}");
        assert!(status.message().contains(reason), "{id}: {}", status.message());
    }

    let audit = rig.audit().await;
    let mine: Vec<_> = audit.iter().filter(|e| e.action == "sign-jwt").collect();
    let issued: Vec<_> = mine.iter().filter(|e| e.outcome == "issue").collect();
    assert_eq!(issued.len(), 1);
    assert_eq!(
        (&*issued[0].serial, claims["jti"].as_str()),
        (&*issued[0].serial, Some(&*issued[0].serial))
    );
    assert_eq!(mine.iter().filter(|e| e.outcome == "refuse").count(), 6);
}

#[tokio::test]
async fn keys_are_replaced_at_half_of_their_lives() {
    let rig = Rig::new().await;
    let (n1, gone) = rig.join(Kind::Node, "n1", &[pattern("*", "*")]).await;
    registered(
        &rig,
        vec![workload("n1", "shop", "cart"), workload("n2", "shop", "cart")],
    );
    let kid = |token: &str| decode_header(token).unwrap().kid.unwrap();
    let first = kid(&ask(&rig, &n1, "n1/shop/cart/1", &["bank"]).await.unwrap());
    assert_eq!(keys(&n1).keys.len(), 1);
    gone.drain(Duration::from_secs(5)).await;

    let (own, _) = rig.handle.credentials();
    let mut renewed = own.subscribe();
    rig.clock.advance(31 * DAY);
    let renewed = renewed.changed();
    tokio::time::timeout(Duration::from_secs(30), renewed)
        .await
        .unwrap()
        .unwrap();
    let (n2, _drain) = rig.join(Kind::Node, "n2", &[pattern("*", "*")]).await;
    let replaced = async {
        loop {
            let token = ask(&rig, &n2, "n2/shop/cart/1", &["bank"]).await.unwrap();
            if kid(&token) != first {
                return token;
            }
            // Who left is waited for a few seconds, by this clock.
            rig.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let token = tokio::time::timeout(Duration::from_secs(30), replaced)
        .await
        .unwrap();
    // Whoever is asked knows the new key before the first token is signed with it.
    assert!(verified(&n2, &token).is_some());
}
