//! The certificate authority itself: the issuer in use and the leaves it signs; `make` makes roots
//! and issuers. Decides nothing: whoever calls has checked that the leaf may be given out.

mod make;
mod names;

pub use make::{KeyType, Made, Maker};
use names::{dns_name, node_extension, uri};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::time::Duration;
use time::OffsetDateTime;
use weft_model::SpiffeId;

/// A certificate begins this long before it is made, for verifiers whose clock is behind: as much as
/// Dapr's sentry allows for.
const MAX_SKEW: Duration = Duration::from_secs(900);

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// rcgen or the key refused.
    #[error("certificate could not be signed: {0}")]
    Sign(#[from] rcgen::Error),
    /// A stored certificate or key that can not be read.
    #[error("a certificate or key of the authority is damaged: {0}; restore the database from a backup")]
    Stored(String),
    /// Before the beginning of a certificate of the authority.
    #[error(
        "the clock says {now}, but the {what} certificate of the authority is valid from {not_before}: set \
         the machine's clock"
    )]
    ClockBehind {
        /// Which certificate.
        what: &'static str,
        /// The clock.
        now: OffsetDateTime,
        /// The certificate's beginning.
        not_before: OffsetDateTime,
    },
    /// After the end of a certificate of the authority.
    #[error(
        "the clock says {now}, but the {what} certificate of the authority was valid until {not_after}: \
         set the machine's clock, or start a new authority with an empty state folder"
    )]
    Expired {
        /// Which certificate.
        what: &'static str,
        /// The clock.
        now: OffsetDateTime,
        /// The certificate's end.
        not_after: OffsetDateTime,
    },
    /// A time that X.509 can not express.
    #[error("the clock says {0} seconds since 1970, which no certificate can express")]
    Time(u64),
}

/// A certificate and the key it speaks for.
struct CertKey {
    issuer: Issuer<'static, KeyPair>,
    not_before: u64,
    not_after: u64,
}

/// What a leaf is made for.
#[derive(Debug)]
pub struct Order<'a, K> {
    /// The single URI name.
    pub id: &'a SpiffeId,
    /// The node that holds the certificate: tunnel certificates only.
    pub node: Option<&'a str>,
    /// Counted from now.
    pub lifetime: Duration,
    /// Its validity begins no earlier, however far a verifier's clock may be behind.
    pub earliest: u64,
    /// Whose private half the holder has.
    pub key: &'a K,
}

/// A signed leaf with its chain.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Whom it names.
    pub id: SpiffeId,
    /// Leaf, issuer, and the issuer under an older root while there is one. The roots are what
    /// verifiers hold.
    pub chain: Vec<CertificateDer<'static>>,
    /// Who signed it.
    pub issuer_id: i64,
    /// Seconds since the Unix epoch.
    pub not_before: u64,
    /// Seconds since the Unix epoch.
    pub not_after: u64,
    /// Lower-case hexadecimal.
    pub serial: String,
}

/// The issuer in use, with what verifiers need between it and their roots.
pub struct Authority {
    issuer_id: i64,
    issuer: CertKey,
    /// What follows the leaf in each chain: the issuer, and the issuer's key under an older root
    /// that some verifiers may still hold alone.
    path: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("issuer_id", &self.issuer_id)
            .field("issuer_until", &self.issuer.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Puts together what was stored. Refused when the clock is outside of the issuer's life.
    pub fn new(
        issuer_id: i64,
        cert: &CertificateDer<'static>,
        cross: Option<&CertificateDer<'static>>,
        key: &[u8],
        now: u64,
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            issuer_id,
            issuer: CertKey::read("issuer", cert, key, now)?,
            path: std::iter::once(cert).chain(cross).cloned().collect(),
        })
    }

    /// The issuer as the database knows it.
    pub fn issuer_id(&self) -> i64 {
        self.issuer_id
    }

    /// Signs a leaf. It never outlives the issuer.
    pub fn issue<K: PublicKeyData>(&self, order: &Order<'_, K>, now: u64) -> Result<Issued, AuthorityError> {
        check_clock("issuer", now, self.issuer.not_before, self.issuer.not_after)?;
        let not_before = (now - skew(order.lifetime))
            .max(order.earliest.min(now))
            .max(self.issuer.not_before);
        let not_after = (now + order.lifetime.as_secs()).min(self.issuer.not_after);
        let (serial, serial_hex) = serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Weft");
        params.subject_alt_names = vec![uri(order.id.as_str())?];
        params.subject_alt_names.extend(dns_name(order.id)?);
        params.not_before = date(not_before)?;
        params.not_after = date(not_after)?;
        params.serial_number = Some(serial);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        if let Some(node) = order.node {
            params.custom_extensions.push(node_extension(node)?);
        }
        let leaf = params.signed_by(order.key, &self.issuer.issuer)?.der().clone();
        Ok(Issued {
            id: order.id.clone(),
            chain: std::iter::once(leaf).chain(self.path.iter().cloned()).collect(),
            issuer_id: self.issuer_id,
            not_before,
            not_after,
            serial: serial_hex,
        })
    }
}

impl CertKey {
    fn read(
        what: &'static str,
        cert: &CertificateDer<'static>,
        key: &[u8],
        now: u64,
    ) -> Result<Self, AuthorityError> {
        let (not_before, not_after) = validity(what, cert, now)?;
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key))
            .map_err(|e| AuthorityError::Stored(format!("{what}: {e}")))?;
        let issuer = Issuer::from_ca_cert_der(cert, key)
            .map_err(|e| AuthorityError::Stored(format!("{what}: {e}")))?;
        Ok(Self {
            issuer,
            not_before,
            not_after,
        })
    }
}

pub(crate) fn validity(
    what: &'static str,
    cert: &CertificateDer<'_>,
    now: u64,
) -> Result<(u64, u64), AuthorityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert)
        .map_err(|e| AuthorityError::Stored(format!("{what}: {e}")))?;
    let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    check_clock(what, now, not_before, not_after)?;
    Ok((not_before, not_after))
}

fn check_clock(what: &'static str, now: u64, not_before: u64, not_after: u64) -> Result<(), AuthorityError> {
    if now < not_before {
        return Err(AuthorityError::ClockBehind {
            what,
            now: date(now)?,
            not_before: date(not_before)?,
        });
    }
    if now > not_after {
        return Err(AuthorityError::Expired {
            what,
            now: date(now)?,
            not_after: date(not_after)?,
        });
    }
    Ok(())
}

/// A tenth of the lifetime, so that a short one still has most of its life before it.
fn skew(lifetime: Duration) -> u64 {
    MAX_SKEW.min(lifetime / 10).as_secs()
}

/// Sixteen random bytes, positive and without leading zeros, and how they are written down.
fn serial() -> Result<(SerialNumber, String), AuthorityError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok((SerialNumber::from_slice(&bytes), hex::encode(bytes)))
}

fn date(unix_seconds: u64) -> Result<OffsetDateTime, AuthorityError> {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .ok_or(AuthorityError::Time(unix_seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_model::TrustDomain;
    use weft_tls::PeerIdentity;

    const NOW: u64 = 1_800_000_000;

    const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

    fn authority(now: u64) -> Result<Authority, AuthorityError> {
        let maker = Maker {
            trust_domain: TrustDomain::default(),
            key_type: KeyType::P256,
            root_lifetime: 10 * ISSUER_LIFETIME,
            issuer_lifetime: ISSUER_LIFETIME,
        };
        let root = maker.root(NOW)?;
        let issuer = maker.issuer(&root.cert, &root.key, NOW)?;
        Authority::new(1, &issuer.cert, None, &issuer.key, now)
    }

    fn issue(lifetime: u64, now: u64, node: Option<&str>) -> Result<Issued, AuthorityError> {
        let id = TrustDomain::default().workload("default", "cart").unwrap();
        let key = KeyPair::generate().unwrap();
        let order = Order {
            id: &id,
            node,
            lifetime: Duration::from_secs(lifetime),
            earliest: 0,
            key: &key,
        };
        authority(NOW)?.issue(&order, now)
    }

    #[test]
    fn a_leaf_says_what_was_ordered() {
        let issued = issue(3600, NOW, Some("n1")).unwrap();
        let peer = PeerIdentity::from_leaf(&issued.chain[0]).unwrap();
        assert_eq!(peer.id.as_str(), "spiffe://cluster.local/ns/default/cart");
        assert_eq!(peer.node.as_deref(), Some("n1"));
        assert_eq!((peer.not_before, peer.not_after), (NOW - 360, NOW + 3600));
        assert_eq!(
            (peer.serial.as_str(), peer.serial.len()),
            (issued.serial.as_str(), 32)
        );
        let day = issue(86_400, NOW, None).unwrap();
        assert_eq!(day.not_before, NOW - 900);
        let plain = issue(3600, NOW, None).unwrap();
        assert_eq!(PeerIdentity::from_leaf(&plain.chain[0]).unwrap().node, None);
        assert_ne!(plain.serial, issued.serial);
    }

    #[test]
    fn a_workload_has_its_spiffe_id_and_a_name_for_dns() {
        let names = |id: &SpiffeId| {
            let key = KeyPair::generate().unwrap();
            let order = Order {
                id,
                node: None,
                lifetime: Duration::from_secs(3600),
                earliest: 0,
                key: &key,
            };
            let issued = authority(NOW).unwrap().issue(&order, NOW).unwrap();
            let (_, cert) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
            let names = cert.subject_alternative_name().unwrap().unwrap().value;
            names
                .general_names
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let domain = TrustDomain::default();
        let id = domain.workload("shop", "cart").unwrap();
        let both = [
            "URI(spiffe://cluster.local/ns/shop/cart)",
            "DNSName(cart.shop.svc.cluster.local)",
        ];
        assert_eq!(names(&id), both);
        let id = SpiffeId::new(&domain, "/ns/shop/sa/runner").unwrap();
        let both = [
            "URI(spiffe://cluster.local/ns/shop/sa/runner)",
            "DNSName(runner.shop.svc.cluster.local)",
        ];
        assert_eq!(names(&id), both);
        // Not a name that DNS has.
        let id = domain.workload("shop", "Cart_1").unwrap();
        assert_eq!(names(&id), ["URI(spiffe://cluster.local/ns/shop/Cart_1)"]);
    }

    #[test]
    fn a_short_life_is_mostly_ahead() {
        let issued = issue(120, NOW, None).unwrap();
        assert_eq!((issued.not_before, issued.not_after), (NOW - 12, NOW + 120));
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let end = NOW + ISSUER_LIFETIME.as_secs();
        assert_eq!(issue(3600, end - 60, None).unwrap().not_after, end);
        let error = issue(3600, end + 1, None).unwrap_err();
        assert!(
            matches!(error, AuthorityError::Expired { what: "issuer", .. }),
            "{error}"
        );
    }

    #[test]
    fn a_clock_that_is_behind_is_told() {
        let error = authority(NOW - 3600).unwrap_err();
        assert!(
            matches!(error, AuthorityError::ClockBehind { what: "issuer", .. }),
            "{error}"
        );
        assert!(!error.to_string().contains('\n'));
        assert!(authority(NOW - 600).is_ok());
    }

    #[test]
    fn a_node_name_that_does_not_fit_is_refused() {
        assert!(issue(60, NOW, Some(&"n".repeat(128))).is_err());
        assert!(issue(60, NOW, Some(&"n".repeat(127))).is_ok());
    }
}
