//! What workloads get for JWTs of another issuer, and what they do not.

use crate::{
    attest::{assert_refused, attest},
    issuer::{Key, Publisher, claims, set},
    rig::{NOW, Rig, config},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_identity::{AttestationConfig, Config, JwtConfig};
use weft_proto::weft::identity::v1::{
    AttestRequest, Svid, attest_request::Evidence, bootstrap_client::BootstrapClient,
};
use weft_tls::{ManualClock, new_key_and_csr};

const CART: &str = "spiffe://cluster.local/ns/shop/cart";

/// What a file would say, read as it is read.
fn settings(dir: &TempDir, jwt: Value) -> Config {
    let jwt: JwtConfig = serde_json::from_value(jwt).unwrap();
    Config {
        attestation: AttestationConfig {
            kubernetes: None,
            jwt: Some(jwt),
        },
        ..config(dir)
    }
}

pub async fn rig_with(keys: &[&Key], change: impl FnOnce(&mut Value)) -> Rig {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("keys.json");
    std::fs::write(&place, set(keys)).unwrap();
    let mut jwt = json!({"jwks": place, "audiences": ["weft"]});
    change(&mut jwt);
    Rig::configured(settings(&dir, jwt), dir, ManualClock::at(NOW)).await
}

async fn show(rig: &Rig, token: &str, id: &str) -> Result<Svid, Status> {
    attest(rig, None, Some(Evidence::Jwt(token.into())), id).await
}

pub fn with(change: Value) -> Value {
    let mut all = claims(CART);
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value.clone(),
        }
    }
    all
}

#[tokio::test]
async fn a_token_gets_the_subject_that_it_names_and_no_other() {
    let key = Key::new("k1", Algorithm::ES256);
    let rig = rig_with(&[&key], |_| ()).await;
    let given = show(&rig, &key.sign(&claims(CART)), CART).await.unwrap();
    assert_eq!(given.spiffe_id, CART);
    let newest = rig.audit().await.swap_remove(0);
    assert_eq!(
        (newest.outcome.as_str(), newest.attested.as_str()),
        ("issue", "jwt")
    );
    assert_eq!(newest.serial, given.serial);
    assert_eq!(
        newest.caller,
        format!("jwt:{CART} (issuer https://issuer.example)")
    );

    let other = "spiffe://cluster.local/ns/shop/pay";
    let outcome = show(&rig, &key.sign(&claims(CART)), other).await;
    let subject = (
        Code::PermissionDenied,
        "TOKEN_SUBJECT",
        "the token is for \"spiffe://cluster.local/ns/shop/cart\"",
    );
    let entry = assert_refused(&rig, outcome, subject).await;
    assert_eq!(entry.spiffe_id, other);
    // Not even an issuer that says so makes somebody of the mesh itself.
    for id in [
        "spiffe://cluster.local/weft/admin/ops",
        "spiffe://cluster.local/weft/node/n1",
    ] {
        let outcome = show(&rig, &key.sign(&claims(id)), id).await;
        let no = (Code::PermissionDenied, "OTHER_IDENTITY", "is no workload");
        assert_refused(&rig, outcome, no).await;
    }
}

#[tokio::test]
async fn each_permitted_algorithm_is_taken_and_no_other() {
    use Algorithm::{ES256, ES384, EdDSA, RS256, RS384, RS512};
    let keys: Vec<Key> = [RS256, RS384, RS512, ES256, ES384, EdDSA]
        .into_iter()
        .map(|algorithm| Key::new(&format!("{algorithm:?}"), algorithm))
        .collect();
    let all: Vec<&Key> = keys.iter().collect();
    let (any, one) = (
        rig_with(&all, |_| ()).await,
        rig_with(&all, |jwt| jwt["algorithms"] = json!(["ES256"])).await,
    );
    for key in &keys {
        show(&any, &key.sign(&claims(CART)), CART).await.unwrap();
        let pinned = show(&one, &key.sign(&claims(CART)), CART).await;
        if key.algorithm == ES256 {
            pinned.unwrap();
        } else {
            let no = (Code::PermissionDenied, "TOKEN_ALGORITHM", "permitted are [ES256]");
            assert_refused(&one, pinned, no).await;
        }
    }
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(json!({"alg": "none"})), part(claims(CART)));
    // The public key as a shared secret: whoever takes that takes anybody's token.
    let public = keys[0].public();
    let secret = EncodingKey::from_secret(public["n"].as_str().unwrap().as_bytes());
    let header = Header {
        kid: Some("RS256".into()),
        ..Header::new(Algorithm::HS256)
    };
    let shared = encode(&header, &claims(CART), &secret).unwrap();
    let header = Header {
        kid: Some("RS256".into()),
        ..Header::new(Algorithm::PS256)
    };
    let rsa = format!(
        "{}.{}.c2ln",
        part(serde_json::to_value(&header).unwrap()),
        part(claims(CART))
    );
    for token in [none, shared, rsa] {
        let outcome = show(&any, &token, CART).await;
        let no = (
            Code::PermissionDenied,
            "TOKEN_ALGORITHM",
            "the token is signed with",
        );
        assert_refused(&any, outcome, no).await;
    }
    // One key's name, another one's signature.
    let forged = Key::new("ES256", ES256).sign(&claims(CART));
    let no = (Code::PermissionDenied, "TOKEN_INVALID", "signature does not fit");
    assert_refused(&any, show(&any, &forged, CART).await, no).await;
}

#[tokio::test]
async fn each_claim_that_is_wrong_is_refused_by_its_reason() {
    let key = Key::new("k1", Algorithm::ES256);
    let rig = rig_with(&[&key], |jwt| jwt["issuer"] = json!("https://issuer.example")).await;
    let denied = Code::PermissionDenied;
    // What is refused, and its twin that is not.
    for (refused, (code, reason, text), taken) in [
        (
            json!({"aud": "elsewhere"}),
            (denied, "TOKEN_AUDIENCE", "is none of weft"),
            json!({"aud": ["elsewhere", "weft"]}),
        ),
        (
            json!({"aud": null}),
            (denied, "TOKEN_AUDIENCE", "is none of weft"),
            json!({"aud": "weft"}),
        ),
        (
            json!({"exp": NOW - 10}),
            (denied, "TOKEN_EXPIRED", "expired 10 s ago"),
            json!({"exp": NOW - 9}),
        ),
        (
            json!({"nbf": NOW + 11}),
            (denied, "TOKEN_NOT_YET_VALID", "good only in 11 s"),
            json!({"nbf": NOW + 10}),
        ),
        (
            json!({"exp": NOW + 86_401}),
            (denied, "TOKEN_INVALID", "at most 86400"),
            json!({"exp": NOW + 86_400, "nbf": null}),
        ),
        (
            json!({"iss": "https://other.example"}),
            (denied, "TOKEN_INVALID", "issuer (iss)"),
            json!({"iss": "https://issuer.example"}),
        ),
        (
            json!({"iss": null}),
            (denied, "TOKEN_INVALID", "issuer (iss)"),
            json!({}),
        ),
        (
            json!({"exp": null}),
            (Code::InvalidArgument, "TOKEN_MALFORMED", "sub, exp"),
            json!({"exp": NOW as f64 + 0.5}),
        ),
        (
            json!({"exp": -1}),
            (Code::InvalidArgument, "TOKEN_MALFORMED", "a time in it"),
            json!({}),
        ),
        (
            json!({"sub": null}),
            (Code::InvalidArgument, "TOKEN_MALFORMED", "sub, exp"),
            json!({}),
        ),
        (
            json!({"jti": "x".repeat(257)}),
            (Code::InvalidArgument, "TOKEN_MALFORMED", "jti has 257"),
            json!({"jti": "x".repeat(256)}),
        ),
    ] {
        let outcome = show(&rig, &key.sign(&with(refused)), CART).await;
        assert_refused(&rig, outcome, (code, reason, text)).await;
        show(&rig, &key.sign(&with(taken.clone())), CART)
            .await
            .unwrap_or_else(|status| panic!("{taken}: {status}"));
    }
    for token in ["", "a", "a.b", "a.b.c.d", "!!.b.c", "e30.e30.e30"] {
        let outcome = show(&rig, token, CART).await;
        assert_eq!(outcome.unwrap_err().code(), Code::InvalidArgument, "{token:?}");
    }
    let mut critical = Header::new(Algorithm::ES256);
    critical.kid = Some("k1".into());
    let mut critical = serde_json::to_value(&critical).unwrap();
    critical["crit"] = json!(["b64"]);
    let token = format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(critical.to_string()));
    let no = (Code::InvalidArgument, "TOKEN_MALFORMED", "extensions (crit)");
    assert_refused(&rig, show(&rig, &token, CART).await, no).await;
}

#[tokio::test]
async fn an_issuers_clock_may_be_seconds_off_and_not_ten_minutes() {
    let key = Key::new("k1", Algorithm::ES256);
    let rig = rig_with(&[&key], |_| ()).await;
    let strict = rig_with(&[&key], |jwt| jwt["leeway_seconds"] = json!(0)).await;
    // What an issuer gives out for five minutes, by its own clock.
    let by_clock = |now: u64| key.sign(&with(json!({"nbf": now, "iat": now, "exp": now + 300})));
    for now in [NOW - 309, NOW, NOW + 10] {
        show(&rig, &by_clock(now), CART).await.unwrap();
    }
    show(&strict, &by_clock(NOW), CART).await.unwrap();
    for (now, reason) in [(NOW - 600, "TOKEN_EXPIRED"), (NOW + 600, "TOKEN_NOT_YET_VALID")] {
        let outcome = show(&rig, &by_clock(now), CART).await;
        assert_refused(&rig, outcome, (Code::PermissionDenied, reason, "the token ")).await;
    }
    for (now, reason) in [(NOW - 300, "TOKEN_EXPIRED"), (NOW + 1, "TOKEN_NOT_YET_VALID")] {
        let outcome = show(&strict, &by_clock(now), CART).await;
        assert_refused(&strict, outcome, (Code::PermissionDenied, reason, "the token ")).await;
    }
}

#[tokio::test]
async fn a_token_with_an_id_is_good_for_one_key() {
    let key = Key::new("k1", Algorithm::ES256);
    let rig = rig_with(&[&key], |_| ()).await;
    let token = key.sign(&with(json!({"jti": "one"})));
    let made = new_key_and_csr().unwrap();
    let ask = async |rig: &Rig| {
        let request = AttestRequest {
            evidence: Some(Evidence::Jwt(token.clone())),
            csr_der: made.csr_der.clone(),
            spiffe_id: CART.into(),
        };
        BootstrapClient::new(rig.channel(None)).attest(request).await
    };
    ask(&rig).await.unwrap();
    // Whoever did not hear the answer asks again.
    ask(&rig).await.unwrap();
    let replayed = (Code::PermissionDenied, "TOKEN_REPLAYED", "was used already");
    assert_refused(&rig, show(&rig, &token, CART).await, replayed).await;
    // Others differ in the ID, or have none.
    show(&rig, &key.sign(&with(json!({"jti": "two"}))), CART)
        .await
        .unwrap();
    let without = key.sign(&claims(CART));
    show(&rig, &without, CART).await.unwrap();
    show(&rig, &without, CART).await.unwrap();

    // A restart forgets nothing.
    let (dir, clock) = rig.stop().await;
    let again = settings(
        &dir,
        json!({"jwks": dir.path().join("keys.json"), "audiences": ["weft"]}),
    );
    let rig = Rig::configured(again, dir, clock).await;
    assert_refused(&rig, show(&rig, &token, CART).await, replayed).await;

    // For callers that show the same file again and again.
    let many = rig_with(&[&key], |jwt| jwt["single_use"] = json!(false)).await;
    show(&many, &token, CART).await.unwrap();
    show(&many, &token, CART).await.unwrap();
}

#[tokio::test]
async fn keys_are_read_anew_within_bounds_and_kept_while_their_source_is_away() {
    let (first, second, third) = (
        Key::new("k1", Algorithm::ES256),
        Key::new("k2", Algorithm::ES256),
        Key::new("k3", Algorithm::RS256),
    );
    let publisher = Publisher::start(set(&[&first])).await;
    let dir = TempDir::new().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &publisher.ca).unwrap();
    let jwt = json!({"jwks": publisher.url, "ca_file": ca, "audiences": ["weft"], "refresh_seconds": 300});
    let rig = Rig::configured(settings(&dir, jwt), dir, ManualClock::at(NOW)).await;
    let token = |key: &Key| key.sign(&with(json!({"exp": NOW + 3600})));
    let (one, two, three) = (token(&first), token(&second), token(&third));
    assert_eq!(publisher.asked(), 0);
    show(&rig, &one, CART).await.unwrap();
    show(&rig, &one, CART).await.unwrap();
    assert_eq!(publisher.asked(), 1);

    // A key that is not known is looked for, once in ten seconds.
    let unknown = (Code::PermissionDenied, "TOKEN_KEY", "key \"k2\"");
    for _ in 0..3 {
        assert_refused(&rig, show(&rig, &two, CART).await, unknown).await;
    }
    assert_eq!(publisher.asked(), 1);
    publisher.answer(200, set(&[&first, &second]));
    rig.clock.advance(Duration::from_secs(9));
    assert_refused(&rig, show(&rig, &two, CART).await, unknown).await;
    rig.clock.advance(Duration::from_secs(1));
    show(&rig, &two, CART).await.unwrap();
    assert_eq!(publisher.asked(), 2);

    // The source fails: what was known stays, and the tries become rare.
    for (status, document) in [
        (503, set(&[&third])),
        (302, set(&[&third])),
        (200, b"{}".to_vec()),
        (200, vec![b' '; 300 * 1024]),
    ] {
        publisher.answer(status, document);
        let before = publisher.asked();
        rig.clock.advance(Duration::from_secs(300));
        show(&rig, &one, CART).await.unwrap();
        assert_eq!(publisher.asked(), before + 1, "{status}");
        show(&rig, &two, CART).await.unwrap();
        assert_eq!(publisher.asked(), before + 1, "{status}");
    }
    // The fourth failure in a row is followed by eight seconds of rest.
    let before = publisher.asked();
    rig.clock.advance(Duration::from_secs(7));
    show(&rig, &one, CART).await.unwrap();
    assert_eq!(publisher.asked(), before);
    publisher.answer(200, set(&[&third]));
    rig.clock.advance(Duration::from_secs(1));
    show(&rig, &three, CART).await.unwrap();
    assert_eq!(publisher.asked(), before + 1);
    // What the issuer has withdrawn is gone.
    let withdrawn = (Code::PermissionDenied, "TOKEN_KEY", "key \"k1\"");
    assert_refused(&rig, show(&rig, &one, CART).await, withdrawn).await;
}

#[tokio::test]
async fn keys_come_only_from_a_server_that_is_believed() {
    let key = Key::new("k1", Algorithm::ES256);
    let publisher = Publisher::start(set(&[&key])).await;
    let another = Publisher::start(set(&[&key])).await;
    let rig = async |ca: &str| {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, ca).unwrap();
        let jwt = json!({"jwks": publisher.url, "ca_file": file, "audiences": ["weft"]});
        Rig::configured(settings(&dir, jwt), dir, ManualClock::at(NOW)).await
    };
    let deceived = rig(&another.ca).await;
    let outcome = show(&deceived, &key.sign(&claims(CART)), CART).await;
    let away = (Code::Unavailable, "ATTESTOR_AWAY", "have not been read yet");
    assert_refused(&deceived, outcome, away).await;
    let right = rig(&publisher.ca).await;
    show(&right, &key.sign(&claims(CART)), CART).await.unwrap();
}

#[tokio::test]
async fn a_token_without_a_key_id_needs_an_issuer_with_one_key() {
    let (first, second) = (Key::new("k1", Algorithm::ES256), Key::new("k2", Algorithm::ES256));
    let token = first.unnamed(&claims(CART));
    let one = rig_with(&[&first], |_| ()).await;
    show(&one, &token, CART).await.unwrap();
    let two = rig_with(&[&first, &second], |_| ()).await;
    let no = (Code::PermissionDenied, "TOKEN_KEY", "names no key");
    assert_refused(&two, show(&two, &token, CART).await, no).await;
}
