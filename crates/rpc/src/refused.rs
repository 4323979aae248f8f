//! Connections that come to nothing: who was refused before any method could be asked, and why.

use crate::Caller;
use rustls::{CertificateError, Error as Tls};
use std::{fmt, io, net::IpAddr, sync::Arc};
use weft_tls::PeerIdentity;

/// Characters of a reason's text: it may quote the caller's certificate.
const MAX_TEXT: usize = 256;

/// A connection that is refused before any method can be asked.
#[derive(Debug, Clone)]
pub struct ConnectionRefused {
    /// The address.
    pub from: IpAddr,
    /// What the certificate says that was refused. Nothing vouches for it, except that one that is
    /// revoked, or that has too many connections, is valid otherwise.
    pub shown: Option<PeerIdentity>,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub text: String,
}

/// Hears of connections that are refused. Called on the server's threads: it must not wait.
#[derive(Clone, Default)]
pub(crate) struct ConnectionObserver(Option<Arc<dyn Fn(ConnectionRefused) + Send + Sync>>);

impl fmt::Debug for ConnectionObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionObserver")
    }
}

impl ConnectionObserver {
    pub fn new(told: impl Fn(ConnectionRefused) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    fn tell(&self, from: IpAddr, shown: Option<PeerIdentity>, reason: &'static str, text: &str) {
        tracing::debug!(%from, reason, text, "connection refused");
        if let Some(told) = &self.0 {
            told(ConnectionRefused {
                from,
                shown,
                reason,
                text: text.chars().take(MAX_TEXT).collect(),
            });
        }
    }

    pub fn too_many_handshakes(&self, from: IpAddr) {
        let text = "too many TLS handshakes run already";
        self.tell(from, None, "HANDSHAKES_TOO_MANY", text);
    }

    pub fn too_many_connections(&self, from: IpAddr, caller: &Caller) {
        let shown = match caller {
            Caller::Tls(peer) => Some(peer.clone()),
            Caller::Anonymous | Caller::Local { .. } | Caller::Loopback => None,
        };
        let text = "its caller has too many connections open";
        self.tell(from, shown, "CONNECTIONS_TOO_MANY", text);
    }

    pub fn timed_out(&self, from: IpAddr) {
        let text = "the TLS handshake took too long";
        self.tell(from, None, "HANDSHAKE_TIMED_OUT", text);
    }

    /// A handshake that failed. Callers that went away, and those that refused this server, were not
    /// refused by it.
    pub fn failed(&self, from: IpAddr, shown: Option<PeerIdentity>, error: &io::Error) {
        let tls = error.get_ref().and_then(|e| e.downcast_ref::<Tls>());
        match tls.and_then(why) {
            Some((reason, text)) => self.tell(from, shown, reason, &text),
            None => tracing::debug!(%from, %error, "TLS handshake given up"),
        }
    }
}

/// Why this side refuses; `None` when it was the other one.
fn why(error: &Tls) -> Option<(&'static str, String)> {
    use CertificateError as C;
    Some(match error {
        Tls::AlertReceived(_) => return None,
        Tls::NoCertificatesPresented => ("CERTIFICATE_REQUIRED", "no certificate was shown".into()),
        Tls::InvalidCertificate(wrong) => match wrong {
            C::Expired | C::ExpiredContext { .. } => {
                ("CERTIFICATE_EXPIRED", "the certificate has expired".into())
            }
            C::NotValidYet | C::NotValidYetContext { .. } => (
                "CERTIFICATE_NOT_YET_VALID",
                "the certificate is not valid yet".into(),
            ),
            C::Revoked => ("CERTIFICATE_REVOKED", "the certificate is revoked".into()),
            C::UnknownIssuer => {
                let text = "the certificate is under none of the mesh's roots";
                ("CERTIFICATE_UNKNOWN_ISSUER", text.into())
            }
            wrong => (
                "CERTIFICATE_INVALID",
                format!("the certificate can not be used: {wrong}"),
            ),
        },
        other => ("HANDSHAKE_FAILED", format!("the TLS handshake failed: {other}")),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustls::CertificateError as C;
    use std::sync::Mutex;

    #[test]
    fn what_the_other_side_does_is_no_refusal() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let observer = ConnectionObserver::new(move |it| heard.lock().unwrap().push((it.reason, it.text)));
        let from = IpAddr::from([10, 0, 0, 1]);
        let failed = |error: io::Error| observer.failed(from, None, &error);
        failed(io::ErrorKind::UnexpectedEof.into());
        failed(io::Error::other(Tls::AlertReceived(
            rustls::AlertDescription::UnknownCA,
        )));
        assert_eq!(*told.lock().unwrap(), []);
        failed(io::Error::other(Tls::InvalidCertificate(C::BadSignature)));
        failed(io::Error::other(Tls::General("x".repeat(1000))));
        let told = told.lock().unwrap();
        let reasons: Vec<_> = told.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, ["CERTIFICATE_INVALID", "HANDSHAKE_FAILED"]);
        assert_eq!(told[1].1.len(), MAX_TEXT);
    }
}
