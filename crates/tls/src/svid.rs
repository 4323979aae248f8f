//! X.509-SVIDs: the one a process holds, and the one its peer showed.

use crate::TlsError;
use arc_swap::ArcSwapOption;
use rustls::{
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{str::FromStr, sync::Arc};
use tokio::sync::watch;
use weft_model::SpiffeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The part of a life over which renewals are spread.
const SPREAD: f64 = 0.1;

/// A certificate chain with its key, and what its leaf says.
#[derive(Debug)]
pub struct Svid {
    peer: PeerIdentity,
    certified: Arc<CertifiedKey>,
}

/// What a verified leaf certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The single SPIFFE ID among the URI names.
    pub id: SpiffeId,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// The node that holds a tunnel certificate ([`crate::NODE_EXTENSION_OID`]).
    pub node: Option<String>,
    /// Seconds since the Unix epoch.
    pub not_before: u64,
    /// Seconds since the Unix epoch.
    pub not_after: u64,
}

impl PeerIdentity {
    /// Reads a leaf. The chain must have been verified before the result means anything.
    pub fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let unreadable = |e: String| TlsError::Certificate(e);
        let (_, cert) = X509Certificate::from_der(leaf).map_err(|e| unreadable(e.to_string()))?;
        let san = cert
            .subject_alternative_name()
            .map_err(|e| unreadable(e.to_string()))?;
        let uris: Vec<&str> = san
            .iter()
            .flat_map(|san| &san.value.general_names)
            .filter_map(|name| {
                if let GeneralName::URI(uri) = name {
                    Some(*uri)
                } else {
                    None
                }
            })
            .collect();
        // X509-SVID, section 2: exactly one URI name, and it is the SPIFFE ID.
        let [uri] = uris[..] else {
            return Err(TlsError::SpiffeIds(uris.len()));
        };
        let oid = x509_parser::der_parser::oid::Oid::from(crate::NODE_EXTENSION_OID)
            .map_err(|e| unreadable(format!("{e:?}")))?;
        let node = cert
            .get_extension_unique(&oid)
            .map_err(|e| unreadable(e.to_string()))?
            .map(|ext| utf8_string(ext.value).ok_or_else(|| unreadable("node extension".into())))
            .transpose()?;
        Ok(Self {
            id: SpiffeId::from_str(uri)?,
            serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            node,
            not_before: u64::try_from(cert.validity().not_before.timestamp()).unwrap_or(0),
            not_after: u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0),
        })
    }
}

/// A DER UTF8String of at most 127 bytes.
fn utf8_string(der: &[u8]) -> Option<String> {
    match der {
        [0x0c, len, rest @ ..] if usize::from(*len) == rest.len() && *len < 0x80 => {
            String::from_utf8(rest.to_vec()).ok()
        }
        _ => None,
    }
}

impl Svid {
    /// Takes a chain (leaf first) and its key, and checks that they belong together.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let leaf = chain
            .first()
            .ok_or_else(|| TlsError::Certificate("the chain is empty".into()))?;
        let peer = PeerIdentity::from_leaf(leaf)?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(key)
            .map_err(|e| TlsError::Key(e.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|e| TlsError::Key(e.to_string()))?;
        Ok(Self {
            peer,
            certified: Arc::new(certified),
        })
    }

    /// What the leaf says.
    pub fn identity(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.peer.id
    }

    /// Chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Chain and signer in the form rustls' resolvers return.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// When to renew: at half of the validity, in seconds since the Unix epoch.
    pub fn renew_at(&self) -> u64 {
        self.peer.not_before + self.life() / 2
    }

    /// When to renew, spread over a tenth of the validity around its half, so that those that got
    /// their certificates together do not come back together: `share` 0 is the earliest moment, 1
    /// the latest.
    pub fn renew_at_spread(&self, share: f64) -> u64 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let part = |of: f64| (self.life() as f64 * of) as u64;
        self.renew_at() - part(SPREAD / 2.0) + part(SPREAD * share.clamp(0.0, 1.0))
    }

    fn life(&self) -> u64 {
        self.peer.not_after.saturating_sub(self.peer.not_before)
    }
}

/// Holds the present SVID of one identity. Handshakes read it; rotation replaces it. Clones share.
#[derive(Debug, Clone)]
pub struct SvidCell {
    current: Arc<ArcSwapOption<Svid>>,
    changed: watch::Sender<u64>,
}

impl Default for SvidCell {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl SvidCell {
    /// Empty: handshakes fail until [`SvidCell::set`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the SVID; running connections keep the old one.
    pub fn set(&self, svid: Svid) {
        self.current.store(Some(Arc::new(svid)));
        self.changed.send_modify(|n| *n += 1);
    }

    /// The present SVID.
    pub fn get(&self) -> Option<Arc<Svid>> {
        self.current.load_full()
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.current.load().is_some()
    }

    /// Notified after each [`SvidCell::set`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl ResolvesServerCert for SvidCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get().map(|s| s.certified_key())
    }
}

impl ResolvesClientCert for SvidCell {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get().map(|s| s.certified_key())
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}

/// Reads who is at the other end of a finished handshake; `None` when it showed no certificate.
pub fn peer_identity(connection: &rustls::CommonState) -> Result<Option<PeerIdentity>, TlsError> {
    connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(PeerIdentity::from_leaf)
        .transpose()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivatePkcs8KeyDer;

    #[test]
    fn renewals_are_spread_around_half_of_the_life() {
        const BEGIN: i64 = 1_800_000_000;
        const LIFE: i64 = 86_400;
        let at = |unix| time::OffsetDateTime::from_unix_timestamp(unix).unwrap();
        let mut params = rcgen::CertificateParams::default();
        let id = "spiffe://cluster.local/ns/default/cart".to_owned();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        (params.not_before, params.not_after) = (at(BEGIN), at(BEGIN + LIFE));
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.self_signed(&key).unwrap().der().clone();
        let svid = Svid::new(vec![leaf], &PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap();
        let shares = |seconds: u64| (seconds - BEGIN as u64) as f64 / LIFE as f64;
        assert_eq!(shares(svid.renew_at()), 0.5);
        let [first, middle, last] = [0.0, 0.5, 1.0].map(|share| shares(svid.renew_at_spread(share)));
        assert_eq!((first, middle, last), (0.45, 0.5, 0.55));
        // A share that is none does not lead out of it.
        assert_eq!(svid.renew_at_spread(7.0), svid.renew_at_spread(1.0));
    }
}
