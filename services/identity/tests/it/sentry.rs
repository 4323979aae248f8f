//! What Dapr's sidecars ask of Sentry, asked here: `dapr.proto.sentry.v1.CA/SignCertificate`.

use crate::{
    attest_kubernetes::rig_of,
    cluster::{Cluster, Mood},
    rig::{NOW, Rig, cell, config, td},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path, time::Duration};
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_identity::{AttestationConfig, Config, JwtConfig};
use weft_model::SvidForm;
use weft_proto::dapr::sentry::v1::{
    SignCertificateRequest, SignCertificateResponse, ca_client::CaClient,
    sign_certificate_request::TokenValidator,
};
use weft_rpc::StatusExt as _;
use weft_tls::{KeyAndCsr, ManualClock, PeerIdentity, new_key_and_csr};

/// As daprd asks for app `cart` in namespace `shop`.
fn request(made: &KeyAndCsr) -> SignCertificateRequest {
    let block = pem::Pem::new("CERTIFICATE REQUEST", made.csr_der.clone());
    SignCertificateRequest {
        id: "cart".into(),
        namespace: "shop".into(),
        certificate_signing_request: pem::encode(&block).into(),
        ..Default::default()
    }
}

async fn send(rig: &Rig, request: SignCertificateRequest) -> Result<SignCertificateResponse, Status> {
    let mut client = CaClient::new(rig.channel(None));
    Ok(client.sign_certificate(request).await?.into_inner())
}

/// Asks with a fresh key and a request that is changed first.
async fn ask(
    rig: &Rig,
    change: impl FnOnce(&mut SignCertificateRequest),
) -> Result<SignCertificateResponse, Status> {
    let mut asked = request(&new_key_and_csr().unwrap());
    change(&mut asked);
    send(rig, asked).await
}

fn certificates(text: &[u8]) -> Vec<Vec<u8>> {
    let blocks = pem::parse_many(text).unwrap().into_iter();
    blocks
        .inspect(|block| assert_eq!(block.tag(), "CERTIFICATE"))
        .map(pem::Pem::into_contents)
        .collect()
}

/// Asserts that nothing was signed, and why; the record says the same.
async fn assert_refused(
    rig: &Rig,
    outcome: Result<SignCertificateResponse, Status>,
    (code, reason, text): (Code, &str, &str),
) {
    let status = outcome.expect_err(reason);
    assert_eq!(status.code(), code, "{status}");
    let message = status.message();
    assert!(message.contains(text), "{text:?} is not in {message:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), (reason, "identity.weft.dev"));
    let newest = rig.audit().await.swap_remove(0);
    let record = (
        newest.action.as_str(),
        newest.outcome.as_str(),
        newest.serial.as_str(),
    );
    assert_eq!(record, ("sign-certificate", "refuse", ""), "{newest:?}");
    assert_eq!(newest.reason, message);
}

#[tokio::test]
async fn an_app_gets_its_certificate_as_dapr_reads_it() {
    let rig = Rig::insecure().await;
    let made = new_key_and_csr().unwrap();
    let answer = send(&rig, request(&made)).await.unwrap();
    let chain = certificates(&answer.workload_certificate);
    assert!(chain.len() >= 2, "leaf and issuer");
    // The key is that of the request, or this fails.
    cell(chain.clone(), &made.key);
    let leaf = PeerIdentity::from_leaf(&chain[0].clone().into()).unwrap();
    assert_eq!(leaf.id, td().workload("shop", "cart").unwrap());
    assert_eq!((leaf.node, leaf.not_after), (None, NOW + 86_400));
    let until = answer.valid_until.unwrap();
    assert_eq!(until.seconds.unsigned_abs(), leaf.not_after);
    let [roots] = &answer.trust_chain_certificates[..] else {
        panic!("{} trust chains", answer.trust_chain_certificates.len());
    };
    let roots = certificates(roots);
    let bundle = rig.handle.credentials().1.bundle();
    let held: Vec<_> = bundle.roots.iter().map(|root| root.to_vec()).collect();
    assert_eq!(roots, held);
    assert!(!chain.contains(&roots[0]), "the root is what verifiers hold");
    // No token was asked for.
    assert_eq!((answer.jwt, answer.per_audience_jwts.len()), (None, 0));

    let newest = rig.audit().await.swap_remove(0);
    assert_eq!(newest.action, "sign-certificate");
    assert_eq!(
        (newest.spiffe_id.as_str(), newest.serial),
        (leaf.id.as_str(), leaf.serial)
    );
}

#[tokio::test]
async fn tokens_come_for_the_audiences_that_are_asked_for() {
    let rig = Rig::insecure().await;
    let answer = ask(&rig, |r| r.jwt_audiences = vec!["bank".into(), "mail".into()])
        .await
        .unwrap();
    let bundle = rig.handle.credentials().1.bundle();
    let keys: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&bundle.jwks).unwrap();
    let claims = |token: &str, audience: &str| {
        let header = jsonwebtoken::decode_header(token).unwrap();
        let key = keys.find(&header.kid.unwrap()).unwrap();
        let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
        validation.set_audience(&[audience]);
        validation.validate_exp = false;
        let key = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
        jsonwebtoken::decode::<Value>(token, &key, &validation).map(|t| t.claims)
    };
    let all = answer.jwt.unwrap();
    let audiences = ["cluster.local", "bank", "mail"];
    for audience in audiences {
        assert!(claims(&all, audience).is_ok(), "{audience}");
        let own = &answer.per_audience_jwts[audience];
        let said = claims(own, audience).unwrap();
        assert_eq!(said["sub"], "spiffe://cluster.local/ns/shop/cart");
        assert_eq!(said["aud"], json!([audience]));
    }
    assert_eq!(answer.per_audience_jwts.len(), audiences.len());
    assert!(claims(&answer.per_audience_jwts["bank"], "mail").is_err());
    let issued = rig.audit().await;
    let tokens = issued
        .iter()
        .filter(|e| e.action == "sign-certificate" && e.outcome == "issue");
    assert_eq!(tokens.count(), 1 + 1 + audiences.len(), "each is in the record");
    let outcome = ask(&rig, |r| r.jwt_audiences = vec![String::new()]).await;
    assert_refused(
        &rig,
        outcome,
        (Code::InvalidArgument, "FIELD_INVALID", "jwt_audiences"),
    )
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_as_by_sentry() {
    let rig = Rig::insecure().await;
    type Change = fn(&mut SignCertificateRequest);
    let denied: [(Change, &str, &str, &str); 7] = [
        (|r| r.id.clear(), "id", "FIELD_INVALID", "app-id cannot be empty"),
        (
            |r| r.id = "a.b".into(),
            "id",
            "FIELD_INVALID",
            "app-id cannot contain dots",
        ),
        (
            |r| r.id = "a".repeat(65),
            "id",
            "FIELD_INVALID",
            "64 characters or less",
        ),
        (
            |r| r.namespace.clear(),
            "namespace",
            "FIELD_INVALID",
            "namespace is required",
        ),
        (
            |r| r.certificate_signing_request.clear(),
            "certificate_signing_request",
            "FIELD_INVALID",
            "CSR is required",
        ),
        (
            |r| r.trust_domain = "other.mesh".into(),
            "trust_domain",
            "OTHER_TRUST_DOMAIN",
            "not for \"other.mesh\"",
        ),
        (
            |r| r.id = "../../weft/admin/ops".into(),
            "id",
            "FIELD_INVALID",
            "dots",
        ),
    ];
    for (change, field, reason, text) in denied {
        let outcome = ask(&rig, change).await;
        let status = outcome.as_ref().unwrap_err();
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, field, "{text}");
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, text)).await;
    }
    // Names that no SPIFFE ID of a workload has.
    for (name, reason) in [
        ("a/b", "OTHER_IDENTITY"),
        ("cart%2f", "NOT_NAMEABLE"),
        ("Cart\u{e9}", "NOT_NAMEABLE"),
        (" cart", "NOT_NAMEABLE"),
    ] {
        let outcome = ask(&rig, |r| r.id = name.into()).await;
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, "")).await;
    }
    let invalid: [(Change, &str); 4] = [
        (
            |r| r.certificate_signing_request = b"hello".to_vec(),
            "CSR_MALFORMED",
        ),
        (
            |r| {
                let text = String::from_utf8(std::mem::take(&mut r.certificate_signing_request)).unwrap();
                r.certificate_signing_request = text.replace("CERTIFICATE REQUEST", "PUBLIC KEY").into();
            },
            "CSR_MALFORMED",
        ),
        (|r| r.certificate_signing_request.truncate(200), "CSR_MALFORMED"),
        (
            |r| r.certificate_signing_request.extend([b'\n'; 7000]),
            "CSR_TOO_LARGE",
        ),
    ];
    for (change, reason) in invalid {
        assert_refused(&rig, ask(&rig, change).await, (Code::InvalidArgument, reason, "")).await;
    }
    // Twins: as long as it may be, Dapr's name for no trust domain in particular, the block's older name.
    let good: [Change; 4] = [
        |r| r.id = "a".repeat(63),
        |r| r.trust_domain = "public".into(),
        |r| r.trust_domain = "cluster.local".into(),
        |r| {
            let text = String::from_utf8(std::mem::take(&mut r.certificate_signing_request)).unwrap();
            r.certificate_signing_request = text.replace("CERTIFICATE REQUEST", "CERTIFICATE").into();
        },
    ];
    for change in good {
        ask(&rig, change).await.unwrap();
    }
}

#[tokio::test]
async fn a_validator_is_used_only_where_it_is_enabled() {
    let (secure, insecure) = (Rig::new().await, Rig::insecure().await);
    let with = |validator: TokenValidator| {
        move |r: &mut SignCertificateRequest| {
            r.token_validator = validator.into();
            r.token = "a.b.c".into();
        }
    };
    use TokenValidator as V;
    for validator in [V::Insecure, V::Kubernetes, V::Jwks] {
        let outcome = ask(&secure, with(validator)).await;
        let off = (Code::InvalidArgument, "ATTESTATION_OFF", "is not enabled");
        assert_refused(&secure, outcome, off).await;
    }
    let outcome = ask(&secure, with(V::Unknown)).await;
    let name_one = (Code::InvalidArgument, "FIELD_INVALID", "must be specified");
    assert_refused(&secure, outcome, name_one).await;
    ask(&insecure, with(V::Insecure)).await.unwrap();
    ask(&insecure, with(V::Unknown)).await.unwrap();
    let outcome = ask(&insecure, with(V::Kubernetes)).await;
    assert_refused(
        &insecure,
        outcome,
        (Code::InvalidArgument, "ATTESTATION_OFF", "kubernetes"),
    )
    .await;
}

/// Another issuer, whose keys are in a file.
struct Issuer {
    key: EncodingKey,
    kid: &'static str,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        Self { key, kid }
    }

    fn publish(&self, file: &Path) {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.kid.into());
        std::fs::write(file, json!({ "keys": [jwk] }).to_string()).unwrap();
    }

    fn token(&self, changes: &[(&str, Value)]) -> String {
        let mut claims: BTreeMap<&str, Value> = BTreeMap::from([
            ("sub", json!("spiffe://cluster.local/ns/shop/cart")),
            ("aud", json!(["weft"])),
            ("exp", json!(NOW + 600)),
            ("nbf", json!(NOW - 60)),
        ]);
        claims.extend(changes.iter().cloned());
        claims.retain(|_, value| !value.is_null());
        let header = Header {
            kid: Some(self.kid.into()),
            ..Header::new(Algorithm::ES256)
        };
        encode(&header, &claims, &self.key).unwrap()
    }
}

#[tokio::test]
async fn a_token_of_the_configured_issuer_speaks_for_its_subject_alone() {
    let dir = TempDir::new().unwrap();
    let (issuer, stranger) = (Issuer::new("k1"), Issuer::new("k1"));
    let file = dir.path().join("jwks.json");
    issuer.publish(&file);
    let jwt: JwtConfig = serde_json::from_value(json!({ "jwks": file, "audiences": ["weft"] })).unwrap();
    let settings = Config {
        attestation: AttestationConfig {
            jwt: Some(jwt),
            ..Default::default()
        },
        ..config(&dir)
    };
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let with = |token: String| {
        |r: &mut SignCertificateRequest| {
            r.token_validator = TokenValidator::Jwks.into();
            r.token = token;
        }
    };
    ask(&rig, with(issuer.token(&[]))).await.unwrap();
    let newest = rig.audit().await.swap_remove(0);
    assert_eq!(
        (newest.attested.as_str(), newest.action.as_str()),
        ("jwt", "sign-certificate")
    );
    assert!(
        newest.caller.contains("spiffe://cluster.local/ns/shop/cart"),
        "{}",
        newest.caller
    );

    let unsigned = {
        let token = issuer.token(&[]);
        let (claims, _) = token.split_once('.').unwrap().1.split_once('.').unwrap();
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    };
    for (token, reason) in [
        (issuer.token(&[("exp", json!(NOW - 60))]), "TOKEN_EXPIRED"),
        (issuer.token(&[("nbf", json!(NOW + 60))]), "TOKEN_NOT_YET_VALID"),
        (issuer.token(&[("aud", json!(["bank"]))]), "TOKEN_AUDIENCE"),
        (issuer.token(&[("aud", Value::Null)]), "TOKEN_AUDIENCE"),
        (
            issuer.token(&[("sub", json!("spiffe://cluster.local/ns/shop/pay"))]),
            "TOKEN_SUBJECT",
        ),
        (
            issuer.token(&[("sub", json!("spiffe://public/ns/shop/cart"))]),
            "TOKEN_SUBJECT",
        ),
        (stranger.token(&[]), "TOKEN_INVALID"),
        (unsigned, "TOKEN_ALGORITHM"),
        ("no token".into(), "TOKEN_MALFORMED"),
        (String::new(), "TOKEN_MALFORMED"),
        ("x".repeat(20_000), "TOKEN_MALFORMED"),
    ] {
        let outcome = ask(&rig, with(token)).await;
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, "")).await;
    }
    // One token for one key: the same request again is the same app, another key is somebody else.
    let once = issuer.token(&[("jti", json!("t1"))]);
    let made = new_key_and_csr().unwrap();
    for _ in 0..2 {
        let mut asked = request(&made);
        with(once.clone())(&mut asked);
        send(&rig, asked).await.unwrap();
    }
    let outcome = ask(&rig, with(once)).await;
    assert_refused(&rig, outcome, (Code::PermissionDenied, "TOKEN_REPLAYED", "")).await;
    // What was good is good no more when its time has passed.
    let short = issuer.token(&[("exp", json!(NOW + 30))]);
    ask(&rig, with(short.clone())).await.unwrap();
    rig.clock.advance(Duration::from_secs(90));
    let outcome = ask(&rig, with(short)).await;
    assert_refused(&rig, outcome, (Code::PermissionDenied, "TOKEN_EXPIRED", "")).await;
}

#[tokio::test]
async fn a_pods_token_speaks_for_its_app_alone() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let token = cluster.token("shop", "cart-1", "runner");
    let with = |token: &str| {
        let token = token.to_owned();
        |r: &mut SignCertificateRequest| {
            r.token_validator = TokenValidator::Kubernetes.into();
            r.token = token;
            // Kubernetes' validator passes over it, in Dapr as well.
            r.trust_domain = "other.mesh".into();
        }
    };
    ask(&rig, with(&token)).await.unwrap();
    // The only one that is enabled is the default.
    ask(&rig, |r| r.token = token.clone()).await.unwrap();
    let newest = rig.audit().await.swap_remove(0);
    assert_eq!(
        (newest.attested.as_str(), newest.outcome.as_str()),
        ("kubernetes", "issue")
    );
    assert_eq!(newest.caller, "system:serviceaccount:shop:runner (pod cart-1)");

    for (id, namespace) in [("pay", "shop"), ("cart", "bank"), ("cart-1", "shop")] {
        let outcome = ask(&rig, |r| {
            with(&token)(r);
            (r.id, r.namespace) = (id.into(), namespace.into());
        });
        let other = (Code::PermissionDenied, "OTHER_IDENTITY", "is app shop/cart");
        assert_refused(&rig, outcome.await, other).await;
    }
    let expired = cluster.token_with("shop", "cart-1", "runner", |t| t.expired = true);
    let elsewhere = cluster.token_with("shop", "cart-1", "runner", |t| t.audiences = vec!["vault".into()]);
    for (token, reason) in [
        (expired.as_str(), "TOKEN_EXPIRED"),
        (&elsewhere, "TOKEN_AUDIENCE"),
        ("", "TOKEN_MALFORMED"),
    ] {
        let outcome = ask(&rig, with(token)).await;
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, "")).await;
    }
    // While the API server does not answer nobody is refused for good.
    cluster.feel(Mood::Status(500));
    let outcome = ask(&rig, with(&token)).await;
    let again = outcome.as_ref().unwrap_err().get_details_retry_info().unwrap();
    assert_eq!(again.retry_delay, Some(Duration::from_secs(1)));
    assert_refused(&rig, outcome, (Code::Unavailable, "ATTESTOR_AWAY", "")).await;
    cluster.feel(Mood::Fine);
    ask(&rig, with(&token)).await.unwrap();
    // A pod that is deleted takes its token with it.
    let pod = ("shop".to_owned(), "cart-1".to_owned());
    cluster.state.lock().pods.remove(&pod);
    let outcome = ask(&rig, with(&token)).await;
    assert_refused(&rig, outcome, (Code::PermissionDenied, "POD_GONE", "")).await;
}
