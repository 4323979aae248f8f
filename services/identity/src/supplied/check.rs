//! Whether certificates and keys are what they are brought as.

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use weft_model::TrustDomain;
use x509_parser::prelude::{GeneralName, X509Certificate};

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    x509_parser::parse_x509_certificate(cert)
        .map(|(_, parsed)| parsed)
        .map_err(|e| format!("a certificate can not be read: {e}"))
}

/// Whether it is an authority of this trust domain, signed by `by` or by itself.
pub fn check(
    cert: &CertificateDer<'_>,
    by: Option<&CertificateDer<'_>>,
    trust_domain: &TrustDomain,
) -> Result<(), String> {
    let parsed = parse(cert)?;
    let name = parsed.subject().to_string();
    if !parsed.is_ca() {
        return Err(format!(
            "{name:?} is no authority: its basic constraints do not say CA:TRUE"
        ));
    }
    let usage = parsed.key_usage().map_err(|e| e.to_string())?;
    if usage.is_some_and(|u| !u.value.key_cert_sign()) {
        return Err(format!(
            "{name:?} may not sign certificates: its key usage lacks keyCertSign"
        ));
    }
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.starts_with("spiffe://")
            && *uri != format!("spiffe://{trust_domain}")
        {
            return Err(format!("it is of {uri}, the trust domain is {trust_domain}"));
        }
    }
    let signer = by.map(|root| parse(root)).transpose()?;
    let signer_key = signer.as_ref().map_or(parsed.public_key(), |s| s.public_key());
    let issuer_name = signer.as_ref().map_or(parsed.subject(), |s| s.subject());
    if parsed.issuer().as_raw() != issuer_name.as_raw() || parsed.verify_signature(Some(signer_key)).is_err()
    {
        let by = if by.is_some() {
            "a root in ca.crt"
        } else {
            "itself"
        };
        return Err(format!("{name:?} is not signed by {by}"));
    }
    Ok(())
}

/// Whether the key is the certificate's, and of a kind that members verify.
pub fn fits(cert: &CertificateDer<'_>, key: &[u8]) -> Result<(), String> {
    use rcgen::PublicKeyData;
    let pair = KeyPair::try_from(key).map_err(|e| e.to_string())?;
    let known = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ];
    if !known.contains(&pair.algorithm()) {
        return Err("the key must be ECDSA P-256, ECDSA P-384 or Ed25519".into());
    }
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| e.to_string())?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.der_bytes() {
        return Err("it is not the certificate's key".into());
    }
    Ok(())
}

/// The kind of key that a certificate speaks for, for people.
pub fn key_name(cert: &CertificateDer<'_>) -> &'static str {
    use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else {
        return "unreadable";
    };
    let algorithm = &parsed.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if algorithm.algorithm == OID_SIG_ED25519 {
        "Ed25519"
    } else if curve == Some(OID_EC_P256) {
        "ECDSA P-256"
    } else if curve == Some(OID_NIST_EC_P384) {
        "ECDSA P-384"
    } else {
        "other"
    }
}
