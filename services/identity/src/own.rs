//! The service's own certificate. A copy is kept beside the database: one that the database knows
//! nothing of shows that the database was put back to an older state.

use crate::{
    authority::{AuthorityError, Order},
    core::{Core, OWN_NAME},
    db::{Recorded, StoredTrust},
    error::StartError,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{fs, io, path::Path};
use weft_tls::{PeerIdentity, Svid};

impl Core {
    /// A fresh certificate for the service itself. Its chain ends with the roots, one of which
    /// newcomers compare with the hash in their token.
    pub async fn own_svid(&self) -> Result<Svid, StartError> {
        let id = self.trust_domain.service(OWN_NAME)?;
        let key =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::from)?;
        let live = self.live.load_full();
        let order = Order {
            id: &id,
            node: None,
            lifetime: self.settings.service_ttl(),
            earliest: live.trust.renew_before,
            key: &key,
        };
        let issued = live.authority.issue(&order, self.now())?;
        let recorded = Recorded {
            entry: self.issuance("own-certificate", "local", "local", &issued),
            issuer_id: issued.issuer_id,
        };
        self.recorder
            .record_own(recorded, issued.not_before)
            .await
            .map_err(|refused| StartError::NotRecorded(refused.to_string()))?;
        self.counts.issued("own-certificate");
        self.counts.own_certificate(issued.not_after);
        if let Some(leaf) = issued.chain.first()
            && let Err(error) = keep(&self.own_certificate, leaf)
        {
            tracing::warn!(%error, path = %self.own_certificate.display(), "own certificate could not be kept");
        }
        let chain: Vec<CertificateDer<'static>> =
            issued.chain.into_iter().chain(live.pinned_roots()).collect();
        Ok(Svid::new(
            chain,
            &PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?)
    }
}

fn keep(path: &Path, leaf: &CertificateDer<'_>) -> io::Result<()> {
    let aside = path.with_extension("new");
    fs::write(&aside, pem::encode(&pem::Pem::new("CERTIFICATE", leaf.to_vec())))?;
    fs::rename(&aside, path)
}

/// Refuses a database that knows nothing of the certificate kept at `path`.
pub fn check(path: &Path, trust: &StoredTrust, database: &str) -> Result<(), StartError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(StartError::OwnCertificate {
                path: path.into(),
                cause: e.to_string(),
            });
        }
    };
    let read = CertificateDer::from_pem_slice(&text).map_err(|e| e.to_string());
    let held = read.and_then(|leaf| PeerIdentity::from_leaf(&leaf).map_err(|e| e.to_string()));
    let held = held.map_err(|cause| StartError::OwnCertificate {
        path: path.into(),
        cause,
    })?;
    if held.not_before > trust.newest_own {
        return Err(StartError::OlderDatabase {
            database: database.to_owned(),
            seconds: held.not_before - trust.newest_own,
            path: path.into(),
        });
    }
    Ok(())
}
