//! Certificate requests that are nearly right. Whatever is taken must be, by another reading of the
//! same bytes, a request with one of the three keys, signed with it, that asks for nothing.

use super::{CsrError, MAX_CSR_BYTES, public_key};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    UnparsedPublicKey, VerificationAlgorithm,
};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use std::path::{Path, PathBuf};
use weft_fuzz::Corpus;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

type Read = fn(&[u8]) -> Result<SubjectPublicKeyInfo, CsrError>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/csr")
}

fn corpus() -> Corpus {
    // Names in requests, and object identifiers of keys and signatures.
    let words: [&[u8]; 6] = [
        b"spiffe://cluster.local/weft/admin/ops",
        b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
        b"\x06\x05\x2b\x81\x04\x00\x22",
        b"\x06\x03\x2b\x65\x70",
        b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
        b"\x01\x01\xff",
    ];
    Corpus::read(&folder()).words(words)
}

/// Text that is in a request only as what it asks for.
fn asks_for(der: &[u8], what: &[u8]) -> bool {
    der.windows(what.len()).any(|window| window == what)
}

fn holds(read: Read, der: &[u8]) {
    let Ok(key) = read(der) else { return };
    assert!(der.len() <= MAX_CSR_BYTES, "{} bytes were read", der.len());
    let (rest, csr) = X509CertificationRequest::from_der(der).expect("PKCS#10");
    assert!(rest.is_empty(), "something follows the request");
    let verifies = |algorithm: &'static dyn VerificationAlgorithm| {
        let signer = UnparsedPublicKey::new(algorithm, key.der_bytes());
        let signed = csr.certification_request_info.raw;
        signer.verify(signed, &csr.signature_value.data).is_ok()
    };
    let known: [&'static dyn VerificationAlgorithm; 5] = [
        &ECDSA_P256_SHA256_ASN1,
        &ECDSA_P256_SHA384_ASN1,
        &ECDSA_P384_SHA256_ASN1,
        &ECDSA_P384_SHA384_ASN1,
        &ED25519,
    ];
    assert!(known.into_iter().any(verifies), "not signed with its own key");
    for extension in csr.requested_extensions().into_iter().flatten() {
        let text = format!("{extension:?}");
        let harmless = !text.contains("AlternativeName") && !text.contains("ca: true");
        assert!(harmless, "it asks for {text}");
    }
}

#[test]
fn fuzz_csr() {
    weft_fuzz::target!(corpus(), |der: &[u8]| holds(public_key, der));
}

#[test]
fn the_target_notices_when_signatures_are_not_verified() {
    fn believes(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() || der.len() > MAX_CSR_BYTES || asks_for(der, b"\x55\x1d") {
            return Err(CsrError::Malformed);
        }
        let key = csr.certification_request_info.subject_pki.raw;
        SubjectPublicKeyInfo::from_der(key).map_err(|_| CsrError::KeyType)
    }
    assert!(weft_fuzz::finds!(20_000, corpus(), |der: &[u8]| holds(
        believes, der
    )));
}

/// As OpenSSL writes them: what is taken, and why the others are not.
#[test]
fn requests_by_openssl_are_judged_by_what_they_ask_for() {
    let judge = |name: &str| public_key(&std::fs::read(folder().join(name)).expect(name)).map(|_| ());
    for good in [
        "p256",
        "p256-sha384",
        "p256-subject",
        "p256-usage",
        "p384",
        "ed25519",
    ] {
        assert_eq!(judge(&format!("{good}.der")), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("rsa1024", CsrError::KeyType),
        ("rsa2048", CsrError::KeyType),
        ("p192", CsrError::KeyType),
        ("p224", CsrError::KeyType),
        ("p521", CsrError::KeyType),
        ("secp256k1", CsrError::KeyType),
        ("p256-dns", CsrError::Names),
        ("p256-uri", CsrError::Names),
        ("p256-ca", CsrError::Authority),
        ("p256-signs", CsrError::Authority),
    ] {
        assert_eq!(judge(&format!("{bad}.der")), Err(why), "{bad}");
    }
}
