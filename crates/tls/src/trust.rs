//! The roots a process trusts, replaceable while it runs.

use crate::{Clock, PeerIdentity, Revoked, TlsError};
use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::watch;
use weft_model::TrustDomain;

/// The roots of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Whose roots they are.
    pub trust_domain: TrustDomain,
    /// Rises with each change.
    pub version: u64,
    /// Self-signed certificates, DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// The keys that JWT-SVIDs are verified with, as a JWK set (RFC 7517); empty for none.
    pub jwks: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct TrustState {
    pub bundle: Bundle,
    pub anchors: Vec<TrustAnchor<'static>>,
}

/// The present bundle, what is revoked under it, and the clock that certificates are judged by.
/// Clones share.
#[derive(Debug, Clone)]
pub struct Trust {
    state: Arc<ArcSwap<TrustState>>,
    changed: watch::Sender<u64>,
    revoked: Arc<ArcSwap<Revoked>>,
    revocations: watch::Sender<u64>,
    renewal: watch::Sender<u64>,
    pub(crate) clock: Clock,
}

impl Trust {
    /// Trusts nobody until [`Trust::set`].
    pub fn new(trust_domain: TrustDomain, clock: Clock) -> Self {
        let bundle = Bundle {
            trust_domain,
            version: 0,
            roots: Vec::new(),
            jwks: Vec::new(),
        };
        let state = TrustState {
            bundle,
            anchors: Vec::new(),
        };
        Self {
            state: Arc::new(ArcSwap::from_pointee(state)),
            changed: watch::Sender::new(0),
            revoked: Arc::default(),
            revocations: watch::Sender::new(0),
            renewal: watch::Sender::new(0),
            clock,
        }
    }

    /// Replaces the bundle. Refused whole if it is for another trust domain, older than the present one
    /// (going back would trust roots again that were taken away), or has a root that is unusable.
    pub fn set(&self, bundle: Bundle) -> Result<(), TlsError> {
        let ours = self.trust_domain();
        if bundle.trust_domain != ours {
            return Err(TlsError::Certificate(format!(
                "bundle is for trust domain {}, this process is in {ours}",
                bundle.trust_domain
            )));
        }
        let mut anchors = Vec::with_capacity(bundle.roots.len());
        for root in &bundle.roots {
            let anchor = webpki::anchor_from_trusted_cert(root)
                .map_err(|e| TlsError::Certificate(format!("root certificate: {e}")))?;
            anchors.push(anchor.to_owned());
        }
        if anchors.is_empty() {
            return Err(TlsError::EmptyBundle(ours.to_string()));
        }
        let mut outcome = Ok(());
        // Compared and stored under the channel's lock: of two at once the newer one stays.
        self.changed.send_if_modified(|changed| {
            let (held, offered) = (self.version(), bundle.version);
            if offered < held {
                outcome = Err(TlsError::OldBundle { held, offered });
                return false;
            }
            self.state.store(Arc::new(TrustState { bundle, anchors }));
            *changed = offered;
            true
        });
        outcome
    }

    /// The present bundle.
    pub fn bundle(&self) -> Bundle {
        self.state.load().bundle.clone()
    }

    /// The version of the present bundle; 0 before the first.
    pub fn version(&self) -> u64 {
        self.state.load().bundle.version
    }

    /// The trust domain that is verified against.
    pub fn trust_domain(&self) -> TrustDomain {
        self.state.load().bundle.trust_domain.clone()
    }

    /// The clock that certificates are judged by.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Notified with the version after each [`Trust::set`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces the list of what is revoked: handshakes that show any of it fail from now on, and
    /// who listens by [`Trust::revocations`] closes what is open.
    pub fn set_revoked(&self, revoked: Revoked) {
        self.revoked.store(Arc::new(revoked));
        self.revocations.send_modify(|n| *n += 1);
    }

    /// [`Trust::set_revoked`], unless that is the list already.
    pub fn set_revoked_if_changed(&self, revoked: Revoked) {
        if *self.revoked.load_full() != revoked {
            self.set_revoked(revoked);
        }
    }

    /// What is revoked.
    pub fn revoked(&self) -> Arc<Revoked> {
        self.revoked.load_full()
    }

    /// Whether a certificate is revoked.
    pub fn is_revoked(&self, peer: &PeerIdentity) -> bool {
        self.revoked.load().contains(peer)
    }

    /// Notified after each [`Trust::set_revoked`].
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.revocations.subscribe()
    }

    /// Has certificates renewed at once that begin before this time (seconds since the Unix epoch);
    /// an earlier time takes nothing back.
    pub fn set_renewal(&self, before: u64) {
        self.renewal.send_if_modified(|held| {
            let later = before > *held;
            *held = before.max(*held);
            later
        });
    }

    /// Certificates that begin before this time are to be renewed now, whatever is left of them.
    /// For whoever keeps certificates current.
    pub fn renewal(&self) -> watch::Receiver<u64> {
        self.renewal.subscribe()
    }

    pub(crate) fn state(&self) -> Arc<TrustState> {
        self.state.load_full()
    }
}

/// SHA-256 of a root certificate's DER: what join tokens pin.
pub fn root_sha256(root: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(root).into()
}
