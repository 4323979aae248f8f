//! Requests to validate tokens that are nearly right, from their bytes on. Whatever is taken must, by
//! another reading of the same bytes, be signed by one of the keys, be for the audience that was named,
//! for this moment and of this trust domain; and what is told of it must be what it says.

use super::*;
use crate::api::to_struct;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use prost::Message as _;
use std::path::{Path, PathBuf};
use weft_fuzz::Corpus;
use weft_proto::spiffe::ValidateJwtsvidRequest;

/// When the corpus was good.
const NOW: u64 = 1_800_000_000;
const AUDIENCE: &str = "weft";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn keys() -> Vec<u8> {
    std::fs::read(folder().join("jwt-keys.json")).expect("keys")
}

/// Each token as a client asks about it, for the right audience and for another.
fn corpus() -> Corpus {
    let tokens = Corpus::read(&folder().join("jwt"));
    let asked = tokens.seeds().iter().flat_map(|token| {
        let svid = String::from_utf8(token.clone()).expect("text");
        [AUDIENCE, "bank"].map(|audience| {
            let audience = audience.to_owned();
            let svid = svid.trim().to_owned();
            ValidateJwtsvidRequest { audience, svid }.encode_to_vec()
        })
    });
    Corpus::of(asked).words([
        "weft",
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVzIn0",
        ".",
        "=",
        "\n\u{4}weft",
        "\u{12}",
    ])
}

fn holds(verify: impl Fn(&ValidateJwtsvidRequest) -> Result<Claims, JwtError>, keys: &[Value], bytes: &[u8]) {
    let Ok(request) = ValidateJwtsvidRequest::decode(bytes) else {
        return;
    };
    let Ok(claims) = verify(&request) else { return };
    let (signed, signature) = request.svid.rsplit_once('.').expect("three parts");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    assert!(is_signed(keys, signed, &signature), "nobody signed it");
    let (header, body) = signed.split_once('.').expect("three parts");
    let part = |text: &str| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(text).expect("base64url");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let (header, said) = (part(header), part(body));
    assert!(header.get("crit").is_none(), "{header} has extensions");
    let meant = match &said["aud"] {
        Value::String(one) => *one == request.audience,
        many => many
            .as_array()
            .expect("a list")
            .iter()
            .any(|a| *a == request.audience),
    };
    assert!(meant, "it is for {}", said["aud"]);
    assert!(said["exp"].as_f64().expect("an end") > (NOW - SKEW) as f64);
    assert_eq!(said["sub"], claims.subject.as_str());
    assert!(claims.subject.as_str().starts_with("spiffe://cluster.local/"));
    let told = to_struct(&claims.all);
    assert_eq!(told.fields.len(), said.as_object().expect("an object").len());
    let again = prost_types::Struct::decode(&*told.encode_to_vec());
    assert_eq!(again.as_ref(), Ok(&told));
}

/// Whether one of the keys signed it, read by hand.
fn is_signed(keys: &[Value], signed: &str, signature: &[u8]) -> bool {
    let bytes = |key: &Value, name: &str| {
        let text = key[name].as_str().unwrap_or_default();
        URL_SAFE_NO_PAD.decode(text).unwrap_or_default()
    };
    keys.iter().any(|key| match key["kty"].as_str() {
        Some("EC") => {
            let public = [vec![4], bytes(key, "x"), bytes(key, "y")].concat();
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public);
            key.verify(signed.as_bytes(), signature).is_ok()
        }
        Some("RSA") => {
            let public = RsaPublicKeyComponents {
                n: bytes(key, "n"),
                e: bytes(key, "e"),
            };
            public
                .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), signature)
                .is_ok()
        }
        _ => false,
    })
}

fn set() -> (Jwks, Vec<Value>) {
    let all: Value = serde_json::from_slice(&keys()).expect("JSON");
    let jwks = Jwks::parse(&keys()).expect("keys");
    (jwks, all["keys"].as_array().expect("a list").clone())
}

#[test]
fn fuzz_validate_jwt() {
    let (jwks, keys) = set();
    let domain = TrustDomain::default();
    weft_fuzz::target!(corpus(), |bytes: &[u8]| holds(
        |r| jwks.verify(&r.svid, &r.audience, &domain, NOW),
        &keys,
        bytes
    ));
}

#[test]
fn the_target_notices_when_the_audience_is_not_compared() {
    let (jwks, keys) = set();
    let domain = TrustDomain::default();
    assert!(weft_fuzz::finds!(20_000, corpus(), |bytes: &[u8]| holds(
        |r| jwks.verify(&r.svid, AUDIENCE, &domain, NOW),
        &keys,
        bytes
    )));
}

#[test]
fn what_of_the_corpus_is_good_is_taken() {
    let (jwks, _) = set();
    let judge = |name: &str| {
        let file = folder().join("jwt").join(format!("{name}.jwt"));
        let token = std::fs::read_to_string(file).expect(name);
        jwks.verify(token.trim(), AUDIENCE, &TrustDomain::default(), NOW)
    };
    for good in ["es", "rs", "one-audience", "issuer-and-id", "fraction"] {
        assert!(judge(good).is_ok(), "{good}: {:?}", judge(good));
    }
    for bad in [
        "expired",
        "early",
        "other-audience",
        "no-end",
        "critical",
        "unsigned",
        "hmac",
        "other-key",
        // Not one of the standard's.
        "ed",
    ] {
        assert!(judge(bad).is_err(), "{bad}");
    }
}

/// A set of keys that is taken names each of them, and comes back as it was read.
fn is_sound(parse: impl Fn(&[u8]) -> Result<Jwks, JwtError>, json: &[u8]) {
    let Ok(jwks) = parse(json) else { return };
    assert!(json.len() <= MAX_KEYS, "{} bytes", json.len());
    assert_eq!(jwks.json(), json);
    let read: Value = serde_json::from_slice(json).expect("JSON");
    for key in read["keys"].as_array().expect("a list") {
        assert!(key["kid"].is_string(), "{key}");
    }
}

fn sets() -> Corpus {
    Corpus::of([keys(), Jwks::empty().json().to_vec()]).words(["\"kid\"", "\"keys\"", "null", "[", "{", "}"])
}

#[test]
fn fuzz_jwks() {
    weft_fuzz::target!(sets(), |json: &[u8]| is_sound(Jwks::parse, json));
}

#[test]
fn a_list_is_no_set_of_keys() {
    assert_eq!(
        Jwks::parse(b"[[]]").map(|set| set.json),
        Err(JwtError::Keys("it is no JSON object".into()))
    );
    assert!(Jwks::parse(b" \n{\"keys\":[]}").is_ok());
}

#[test]
fn what_is_skipped_is_readable_as_well() {
    assert!(Jwks::parse(br#"{"note":"\ud83d\ude00","keys":[]}"#).is_ok());
    for bad in [
        &br#"{"note":"\ud83d","keys":[]}"#[..],
        b"{\"note\":\"\xff\",\"keys\":[]}",
        br#"{"n":1e999,"keys":[]}"#,
    ] {
        let error = Jwks::parse(bad).map(|set| set.json).expect_err("unreadable");
        assert!(matches!(error, JwtError::Keys(_)), "{error}");
    }
}

#[test]
fn the_target_notices_a_key_without_a_name() {
    let careless = |json: &[u8]| {
        let set = serde_json::from_slice(json).map_err(|e| JwtError::Keys(e.to_string()))?;
        Ok(Jwks {
            json: json.to_vec(),
            set,
        })
    };
    assert!(weft_fuzz::finds!(20_000, sets(), |json: &[u8]| is_sound(
        careless, json
    )));
}
