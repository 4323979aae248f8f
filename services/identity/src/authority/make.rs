//! Making the authority's own certificates: roots, issuers under them, and the issuer's key once
//! more under the root before.

use super::{AuthorityError, CertKey, date, serial, skew, uri, validity};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use weft_model::TrustDomain;
use zeroize::Zeroizing;

/// Kinds of keys that the authority makes for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    P256,
    /// Ed25519.
    Ed25519,
}

/// A certificate of the authority and its key in PKCS#8.
pub struct Made {
    /// DER.
    pub cert: CertificateDer<'static>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").finish_non_exhaustive()
    }
}

/// What all certificates of one authority have in common.
#[derive(Debug, Clone)]
pub struct Maker {
    /// Whose authority.
    pub trust_domain: TrustDomain,
    /// Of new keys.
    pub key_type: KeyType,
    /// Of new roots.
    pub root_lifetime: Duration,
    /// Of new issuers; none outlives its root.
    pub issuer_lifetime: Duration,
}

impl Maker {
    /// A self-signed root.
    pub fn root(&self, now: u64) -> Result<Made, AuthorityError> {
        let key = self.key()?;
        let name = common_name("root")?;
        let mut params = self.params(&name, now, self.root_lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let cert = params.self_signed(&key)?.der().clone();
        Ok(made(cert, &key))
    }

    /// An issuer under `root`.
    pub fn issuer(
        &self,
        root: &CertificateDer<'static>,
        root_key: &[u8],
        now: u64,
    ) -> Result<Made, AuthorityError> {
        let key = self.key()?;
        let cert = self.under(root, root_key, &common_name("issuer")?, &key, now)?;
        Ok(made(cert, &key))
    }

    /// The same issuer, by name and key, under another root: a leaf's chain that holds both is good
    /// for verifiers that know either root.
    pub fn cross(
        &self,
        issuer: &Made,
        root: &CertificateDer<'static>,
        root_key: &[u8],
        now: u64,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let damaged = |e: String| AuthorityError::Stored(format!("issuer: {e}"));
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&issuer.cert).map_err(|e| damaged(e.to_string()))?;
        let name = parsed.subject().iter_common_name().next();
        let name = name
            .and_then(|n| n.as_str().ok())
            .ok_or_else(|| damaged("it has no name".into()))?;
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(issuer.key.as_slice()))?;
        self.under(root, root_key, name, &key, now)
    }

    fn under(
        &self,
        root: &CertificateDer<'static>,
        root_key: &[u8],
        name: &str,
        key: &KeyPair,
        now: u64,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let (_, root_until) = validity("root", root, now)?;
        let root = CertKey::read("root", root, root_key, now)?;
        let mut params = self.params(name, now, self.issuer_lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        params.not_after = params.not_after.min(date(root_until)?);
        Ok(params.signed_by(key, &root.issuer)?.der().clone())
    }

    fn key(&self) -> Result<KeyPair, AuthorityError> {
        let algorithm = match self.key_type {
            KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::Ed25519 => &rcgen::PKCS_ED25519,
        };
        Ok(KeyPair::generate_for(algorithm)?)
    }

    fn params(&self, name: &str, now: u64, lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Weft");
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![uri(&format!("spiffe://{}", self.trust_domain))?];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(now.saturating_sub(skew(lifetime)))?;
        params.not_after = date(now + lifetime.as_secs())?;
        params.serial_number = Some(serial()?.0);
        Ok(params)
    }
}

/// Random digits make the name of each authority its own, so that verifiers never mix two up.
fn common_name(what: &str) -> Result<String, AuthorityError> {
    Ok(format!("{what} {}", &serial()?.1[..8]))
}

fn made(cert: CertificateDer<'static>, key: &KeyPair) -> Made {
    Made {
        cert,
        key: Zeroizing::new(key.serialize_der()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Order};
    use std::sync::Arc;
    use weft_tls::{
        Bundle, ClientAuth, Expect, ManualClock, Svid, SvidCell, Trust, client_config, server_config,
    };

    const NOW: u64 = 1_800_000_000;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn maker(key_type: KeyType) -> Maker {
        Maker {
            trust_domain: TrustDomain::default(),
            key_type,
            root_lifetime: 10 * DAY,
            issuer_lifetime: 2 * DAY,
        }
    }

    /// A handshake of a server with this chain, and of a client that trusts one root.
    fn handshake(authority: &Authority, root: &CertificateDer<'static>) -> Result<(), rustls::Error> {
        let id = TrustDomain::default().workload("default", "cart").unwrap();
        let key = KeyPair::generate().unwrap();
        let order = Order {
            id: &id,
            node: None,
            lifetime: DAY,
            earliest: 0,
            key: &key,
        };
        let issued = authority.issue(&order, NOW).unwrap();
        let svid = Svid::new(
            issued.chain,
            &PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
        let cell = SvidCell::new();
        cell.set(svid);
        let trust = Trust::new(TrustDomain::default(), ManualClock::at(NOW).shared());
        trust
            .set(Bundle {
                trust_domain: TrustDomain::default(),
                version: 1,
                roots: vec![root.clone()],
                jwks: Vec::new(),
            })
            .unwrap();
        let server = server_config(Arc::new(cell.clone()), &trust, ClientAuth::Required, &[]).unwrap();
        let client = client_config(Some(&cell), &trust, Expect::Member, &[]).unwrap();
        let name = rustls_pki_types::ServerName::try_from("weft").unwrap();
        let mut client = rustls::ClientConnection::new(client.into(), name).unwrap();
        let mut server = rustls::ServerConnection::new(server.into()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn either_kind_of_key_makes_chains_that_verify() {
        for key_type in [KeyType::P256, KeyType::Ed25519] {
            let maker = maker(key_type);
            let root = maker.root(NOW).unwrap();
            let issuer = maker.issuer(&root.cert, &root.key, NOW).unwrap();
            let authority = Authority::new(1, &issuer.cert, None, &issuer.key, NOW).unwrap();
            handshake(&authority, &root.cert).unwrap();
            let stranger = maker.root(NOW).unwrap();
            assert!(handshake(&authority, &stranger.cert).is_err(), "{key_type:?}");
        }
    }

    #[test]
    fn a_crossed_issuer_is_good_under_both_roots() {
        // Also when the new authority uses another kind of key.
        let (old, new) = (maker(KeyType::P256), maker(KeyType::Ed25519));
        let (old_root, new_root) = (old.root(NOW).unwrap(), new.root(NOW).unwrap());
        let issuer = new.issuer(&new_root.cert, &new_root.key, NOW).unwrap();
        let cross = new.cross(&issuer, &old_root.cert, &old_root.key, NOW).unwrap();
        let crossed = Authority::new(1, &issuer.cert, Some(&cross), &issuer.key, NOW).unwrap();
        handshake(&crossed, &new_root.cert).unwrap();
        handshake(&crossed, &old_root.cert).unwrap();
        // Without it, the old root alone does not do.
        let plain = Authority::new(1, &issuer.cert, None, &issuer.key, NOW).unwrap();
        assert!(handshake(&plain, &old_root.cert).is_err());
    }

    #[test]
    fn an_issuer_never_outlives_its_root() {
        let maker = maker(KeyType::P256);
        let root = maker.root(NOW).unwrap();
        let later = NOW + 9 * DAY.as_secs();
        let issuer = maker.issuer(&root.cert, &root.key, later).unwrap();
        let until = |cert| validity("any", cert, later).unwrap().1;
        assert_eq!(until(&issuer.cert), until(&root.cert));
    }
}
