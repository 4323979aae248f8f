//! A certificate authority for tests, and what both ends of a tunnel need of it.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_tls::{Bundle, Clock, NODE_EXTENSION_OID, Svid, SvidCell, Trust};

/// A root that signs SVIDs directly.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    /// A new root.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    /// The root's certificate.
    pub fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// What trusts this root, judged by `clock`.
    pub fn trust_with(&self, clock: Clock) -> Trust {
        let trust = Trust::new(Default::default(), clock);
        self.publish(&trust, 1);
        trust
    }

    /// Gives `trust` this root as bundle `version`.
    pub fn publish(&self, trust: &Trust, version: u64) {
        let bundle = Bundle {
            trust_domain: trust.trust_domain(),
            version,
            roots: vec![self.root()],
            jwks: Vec::new(),
        };
        trust.set(bundle).unwrap();
    }

    /// A certificate for `id`, held by `node`, valid for an hour.
    pub fn svid(&self, id: &str, node: Option<&str>) -> Svid {
        self.svid_until(id, node, SystemTime::now() + Duration::from_secs(3600))
    }

    /// As [`Ca::svid`], with its end.
    pub fn svid_until(&self, id: &str, node: Option<&str>, until: SystemTime) -> Svid {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let moment = |s| time::OffsetDateTime::from_unix_timestamp(s).unwrap();
        params.not_before = moment(seconds(SystemTime::now()) - 60);
        params.not_after = moment(seconds(until));
        if let Some(node) = node {
            let mut der = vec![0x0c, node.len() as u8];
            der.extend_from_slice(node.as_bytes());
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(NODE_EXTENSION_OID, der));
        }
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Svid::new(vec![cert.der().clone()], &key).unwrap()
    }

    /// A cell with a certificate for app `app_id` of namespace default on `node`.
    pub fn cell(&self, app_id: &str, node: &str) -> SvidCell {
        let cell = SvidCell::new();
        cell.set(self.svid(&spiffe(app_id), Some(node)));
        cell
    }
}

/// `spiffe://cluster.local/ns/default/<app_id>`.
pub fn spiffe(app_id: &str) -> String {
    format!("spiffe://cluster.local/ns/default/{app_id}")
}
