//! Key pairs and the certificate requests that carry their public half.

use crate::TlsError;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A fresh ECDSA P-256 key and a PKCS#10 request signed with it.
#[derive(Debug)]
pub struct KeyAndCsr {
    /// PKCS#8. Never leaves the process that made it.
    pub key: PrivateKeyDer<'static>,
    /// What the CA is sent. Names nobody: the CA decides the SPIFFE ID.
    pub csr_der: Vec<u8>,
}

/// Makes a key pair and its request.
pub fn new_key_and_csr() -> Result<KeyAndCsr, TlsError> {
    let fail = |e: rcgen::Error| TlsError::Key(e.to_string());
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(fail)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(&pair).map_err(fail)?;
    Ok(KeyAndCsr {
        key: PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
        csr_der: csr.der().to_vec(),
    })
}
