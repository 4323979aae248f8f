//! JWTs that are nearly right. Whatever is taken must, by another reading of the same bytes, be
//! signed by one of the issuer's keys, be for this service, for this moment and for its subject.

use super::*;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use weft_fuzz::Corpus;
use weft_tls::ManualClock;

/// When the corpus was good.
const NOW: u64 = 1_800_000_000;
const AUDIENCE: &str = "weft";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn corpus() -> Corpus {
    let words = [
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVzIn0",
        ".",
        "..",
        "=",
        "InN1YiI6",
    ];
    Corpus::read(&folder().join("jwt")).words(words)
}

/// The service's side, with its own thread of execution: a target runs beside no others.
struct Service {
    jwt: Jwt,
    keys: Vec<Value>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Service {
    fn new() -> Self {
        let dir = tempfile::TempDir::new().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let file = folder().join("jwt-keys.json");
        let keys: Value = serde_json::from_slice(&std::fs::read(&file).expect("keys")).expect("JSON");
        let settings = serde_json::json!({ "jwks": file, "audiences": [AUDIENCE], "refresh_seconds": 86400 });
        let settings: JwtConfig = serde_json::from_value(settings).expect("settings");
        let jwt = runtime.block_on(async {
            let db = Db::open(&dir.path().join("identity.db"))
                .await
                .expect("a database");
            Jwt::new(&settings, ManualClock::at(NOW).shared(), db).expect("keys")
        });
        Self {
            jwt,
            keys: keys["keys"].as_array().expect("a list").clone(),
            runtime,
            _dir: dir,
        }
    }

    fn check(&self, token: &str) -> Decision<Shown> {
        self.runtime.block_on(self.jwt.check(token, &mut String::new()))
    }

    /// Whether one of the keys signed it, read by hand.
    fn is_signed(&self, signed: &str, signature: &[u8]) -> bool {
        let bytes = |key: &Value, name: &str| {
            URL_SAFE_NO_PAD
                .decode(key[name].as_str().unwrap_or_default())
                .unwrap_or_default()
        };
        self.keys.iter().any(|key| {
            let by = |algorithm: &'static dyn VerificationAlgorithm, public: Vec<u8>| {
                UnparsedPublicKey::new(algorithm, public)
                    .verify(signed.as_bytes(), signature)
                    .is_ok()
            };
            match key["kty"].as_str() {
                Some("EC") => by(
                    &ECDSA_P256_SHA256_FIXED,
                    [vec![4], bytes(key, "x"), bytes(key, "y")].concat(),
                ),
                Some("OKP") => by(&ED25519, bytes(key, "x")),
                _ => {
                    let public = RsaPublicKeyComponents {
                        n: bytes(key, "n"),
                        e: bytes(key, "e"),
                    };
                    public
                        .verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), signature)
                        .is_ok()
                }
            }
        })
    }

    fn holds(&self, check: impl Fn(&str) -> Decision<Shown>, bytes: &[u8]) {
        let Ok(token) = std::str::from_utf8(bytes) else {
            return;
        };
        let Ok(shown) = check(token) else { return };
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        assert!(self.is_signed(signed, &signature), "nobody signed it");
        let (_, claims) = signed.split_once('.').expect("three parts");
        let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64url");
        let claims: Value = serde_json::from_slice(&claims).expect("JSON");
        assert_eq!(claims["sub"], shown.subject.as_str());
        let audience = &claims["aud"];
        let ours = audience == AUDIENCE
            || audience
                .as_array()
                .is_some_and(|all| all.iter().any(|a| a == AUDIENCE));
        assert!(ours, "it is for {audience}");
        let ends = claims["exp"].as_f64().expect("an end");
        assert!(ends > (NOW - 10) as f64, "it ended at {ends}");
    }
}

#[test]
fn fuzz_jwt() {
    let service = Service::new();
    weft_fuzz::target!(corpus(), |token: &[u8]| service
        .holds(|t| service.check(t), token));
}

#[test]
fn the_target_notices_when_signatures_are_not_verified() {
    let service = Service::new();
    let believes = |token: &str| -> Decision<Shown> {
        header(token)?;
        let claims = token.split('.').nth(1).unwrap_or_default();
        service.jwt.judge(part(claims, "claims")?, &mut String::new())
    };
    assert!(weft_fuzz::finds!(20_000, corpus(), |token: &[u8]| service.holds(believes, token)));
}

/// Which of the corpus are good, and why the others are not.
#[test]
fn tokens_of_other_libraries_are_judged_by_what_they_say() {
    let service = Service::new();
    let judge = |name: &str| {
        let path = folder().join("jwt").join(format!("{name}.jwt"));
        let token = std::fs::read_to_string(path).expect(name);
        service
            .check(&token)
            .map(|_| ())
            .map_err(|refused| refused.reason())
    };
    for good in ["es", "ed", "rs", "one-audience", "issuer-and-id", "fraction"] {
        assert_eq!(judge(good), Ok(()), "{good}");
    }
    for (bad, reason) in [
        ("expired", Reason::TokenExpired),
        ("early", Reason::TokenNotYetValid),
        ("other-audience", Reason::TokenAudience),
        ("no-end", Reason::TokenMalformed),
        ("critical", Reason::TokenMalformed),
        ("unsigned", Reason::TokenAlgorithm),
        ("hmac", Reason::TokenAlgorithm),
        ("other-key", Reason::TokenKey),
    ] {
        assert_eq!(judge(bad), Err(reason), "{bad}");
    }
}
