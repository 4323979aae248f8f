//! What the API is answered from.

use crate::Jwks;
use rustls_pki_types::CertificateDer;
use std::{fmt, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_model::SpiffeId;
use zeroize::Zeroizing;

/// An X.509-SVID with its key, as it is given to the workload.
pub struct X509 {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for X509 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// A workload of this node that has a name.
#[derive(Debug, Clone)]
pub struct Workload {
    /// As the registry knows it.
    pub id: Arc<str>,
    /// Its name.
    pub spiffe_id: SpiffeId,
    /// Cancelled when it is taken away.
    pub gone: CancellationToken,
}

/// Who is there, and their documents.
pub trait Source: Send + Sync + 'static {
    /// The workload that one of these cgroups belongs to; the innermost comes first.
    fn find(&self, cgroups: &[u64]) -> Option<Workload>;

    /// The workload's certificate, now or as soon as there is one, and each that follows. It is
    /// kept fresh from the first time on.
    fn x509(&self, workload: &Workload) -> watch::Receiver<Option<Arc<X509>>>;

    /// A token of the workload for an audience.
    fn jwt(
        &self,
        workload: &Workload,
        audience: Vec<String>,
    ) -> impl Future<Output = Result<String, Status>> + Send;

    /// The keys that tokens are verified with.
    fn jwks(&self) -> watch::Receiver<Arc<Jwks>>;
}
