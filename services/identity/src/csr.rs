//! Certificate requests from outside: of a request only the public key is used, and only after
//! its signature has shown that the sender holds the private half.
//!
//! What the certificate says follows from what the sender has proven elsewhere. A request that asks
//! for names or powers itself is refused, rather than answered with less than it asks for: its
//! sender is mistaken, or tries something.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::ParsedExtension,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
    },
    prelude::FromDer,
};

/// A request with one key and no attributes takes under 300 bytes.
pub const MAX_CSR_BYTES: usize = 4096;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than [`MAX_CSR_BYTES`].
    #[error("the certificate request has {0} bytes, at most 4096 are read")]
    TooLarge(usize),
    /// Not PKCS#10, or followed by something else.
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    /// A key that members of the mesh do not use.
    #[error("the key of the certificate request must be ECDSA P-256, ECDSA P-384 or Ed25519")]
    KeyType,
    /// Asks for names.
    #[error("the certificate request asks for names; leave them out, they follow from who asks")]
    Names,
    /// Asks to be an authority.
    #[error("the certificate request asks for a certificate that signs others")]
    Authority,
    /// Made without the private key.
    #[error("the certificate request is not signed with its own key")]
    Signature,
}

/// Reads and checks a request; the result is the key that it proves possession of.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLarge(der.len()));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let spki = &csr.certification_request_info.subject_pki;
    let signed_with = &csr.signature_algorithm.algorithm;
    let fits = if spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let ecdsa = *signed_with == OID_SIG_ECDSA_WITH_SHA256 || *signed_with == OID_SIG_ECDSA_WITH_SHA384;
        ecdsa && curve.is_some_and(|c| c == OID_EC_P256 || c == OID_NIST_EC_P384)
    } else {
        spki.algorithm.algorithm == OID_SIG_ED25519 && *signed_with == OID_SIG_ED25519
    };
    if !fits {
        return Err(CsrError::KeyType);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    check_wishes(&csr)?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::KeyType)
}

/// Refuses what nobody is given for the asking. A subject is passed over, as by every SPIFFE
/// authority; so are key usages that a leaf has anyway.
fn check_wishes(csr: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    for attribute in csr.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            continue;
        };
        for extension in &asked.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(_) | ParsedExtension::IssuerAlternativeName(_) => {
                    return Err(CsrError::Names);
                }
                ParsedExtension::BasicConstraints(it) if it.ca => return Err(CsrError::Authority),
                ParsedExtension::KeyUsage(it) if it.key_cert_sign() || it.crl_sign() => {
                    return Err(CsrError::Authority);
                }
                ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData, SignatureAlgorithm};

    fn csr(algorithm: &'static SignatureAlgorithm) -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        (asking(&key, CertificateParams::default()), key)
    }

    fn asking(key: &KeyPair, params: CertificateParams) -> Vec<u8> {
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_request_that_asks_for_more_is_refused() {
        let key = KeyPair::generate().unwrap();
        let plain = CertificateParams::default;
        let mut usages = plain();
        usages.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        assert!(public_key(&asking(&key, usages)).is_ok());
        for name in [
            "evil.example",
            "spiffe://cluster.local/weft/admin/ops",
            "10.0.0.1",
        ] {
            let named = CertificateParams::new(vec![name.to_owned()]).unwrap();
            assert_eq!(public_key(&asking(&key, named)), Err(CsrError::Names), "{name}");
        }
        let mut authority = plain();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert_eq!(public_key(&asking(&key, authority)), Err(CsrError::Authority));
        let mut signs = plain();
        signs.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        assert_eq!(public_key(&asking(&key, signs)), Err(CsrError::Authority));
    }

    #[test]
    fn the_three_key_types_are_taken() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let (der, key) = csr(algorithm);
            assert_eq!(public_key(&der).unwrap().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let (p521, _) = csr(&rcgen::PKCS_ECDSA_P521_SHA512);
        assert_eq!(public_key(&p521), Err(CsrError::KeyType));
        let (rsa, _) = csr(&rcgen::PKCS_RSA_SHA256);
        assert_eq!(public_key(&rsa), Err(CsrError::KeyType));
    }

    #[test]
    fn a_request_for_somebody_elses_key_is_refused() {
        let (mut der, _) = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, other) = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
        // Put the other's public key in place: the signature no longer fits.
        let at = der.windows(2).position(|w| w == [0x00, 0x04]).unwrap() + 1;
        der[at..at + 65].copy_from_slice(other.der_bytes());
        assert_eq!(public_key(&der), Err(CsrError::Signature));
    }

    #[test]
    fn size_and_tail_are_bounded() {
        let (mut der, _) = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
        der.push(0);
        assert_eq!(public_key(&der), Err(CsrError::Malformed));
        assert_eq!(
            public_key(&[0x30; MAX_CSR_BYTES + 1]),
            Err(CsrError::TooLarge(MAX_CSR_BYTES + 1))
        );
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(public_key(&bytes).is_err());
        }

        #[test]
        fn no_changed_request_is_taken_for_another_key(at in 0usize..1000, flip in 1u8..) {
            let (mut der, key) = csr(&rcgen::PKCS_ECDSA_P256_SHA256);
            let at = at % der.len();
            der[at] ^= flip;
            // Bits outside of what is signed may change freely; the key may not.
            if let Ok(read) = public_key(&der) {
                prop_assert_eq!(read.der_bytes(), key.der_bytes());
            }
        }
    }
}
