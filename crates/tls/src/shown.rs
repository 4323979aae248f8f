//! Whom a caller's certificate named, also when the handshake came to nothing: rustls then tells the
//! server why it refused, and drops what was shown.

use crate::PeerIdentity;
use rustls::pki_types::CertificateDer;
use std::cell::RefCell;

tokio::task_local! {
    // Of the handshake that runs in this task: the verifier is called from inside of it.
    static SHOWN: RefCell<Option<PeerIdentity>>;
}

/// Runs a server's handshake. Answers beside its outcome whom the certificate named that was refused;
/// nothing if none was. Nothing vouches for it, except that a revoked one was valid otherwise.
pub async fn with_refused<F: Future>(handshake: F) -> (F::Output, Option<PeerIdentity>) {
    let noting = async {
        let outcome = handshake.await;
        (outcome, SHOWN.with(RefCell::take))
    };
    SHOWN.scope(RefCell::default(), noting).await
}

/// Notes what is being refused. Outside of [`with_refused`] nobody asks.
pub(crate) fn note_refused(leaf: &CertificateDer<'_>) {
    let _ = SHOWN.try_with(|shown| *shown.borrow_mut() = PeerIdentity::from_leaf(leaf).ok());
}
