//! Verification of peers: the chain by webpki against the present bundle, the name as a SPIFFE ID.
//! DNS names play no part: who the peer is stands in its URI name.

use crate::{Clock, PeerIdentity, Trust, root_sha256, shown::note_refused};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::{sync::Arc, time::Duration};
use webpki::{EndEntityCert, KeyUsage};
use weft_model::SpiffeId;

/// Whom a client expects at the other end.
#[derive(Debug, Clone)]
pub enum Expect {
    /// Exactly this SPIFFE ID.
    Id(SpiffeId),
    /// Any of the trust domain; the caller looks at [`PeerIdentity`] after the handshake.
    Member,
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

fn other(text: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(
        std::io::Error::other(text),
    ))))
}

fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), Error> {
    let cert = EndEntityCert::try_from(leaf).map_err(pki_error)?;
    cert.verify_for_usage(algorithms().all, anchors, intermediates, now, usage, None, None)
        .map_err(pki_error)?;
    Ok(())
}

fn pki_error(e: webpki::Error) -> Error {
    use webpki::Error as E;
    match e {
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        e => other(format!("certificate chain: {e}")),
    }
}

fn member(leaf: &CertificateDer<'_>, trust: &Trust) -> Result<PeerIdentity, Error> {
    let peer = PeerIdentity::from_leaf(leaf).map_err(|e| other(e.to_string()))?;
    let ours = trust.trust_domain();
    if peer.id.trust_domain() != ours {
        return Err(other(format!("{} is not of trust domain {ours}", peer.id)));
    }
    if trust.is_revoked(&peer) {
        return Err(CertificateError::Revoked.into());
    }
    Ok(peer)
}

fn signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
}

fn tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
}

impl Trust {
    /// Whether a chain that a caller showed (leaf first) would be taken now: for connections that
    /// outlive the bundle they were made under.
    pub fn accepts_client(&self, shown: &[CertificateDer<'_>]) -> bool {
        self.accepts(shown, KeyUsage::client_auth())
    }

    /// The same for a chain that a server showed.
    pub fn accepts_server(&self, shown: &[CertificateDer<'_>]) -> bool {
        self.accepts(shown, KeyUsage::server_auth())
    }

    fn accepts(&self, shown: &[CertificateDer<'_>], usage: KeyUsage) -> bool {
        let Some((leaf, intermediates)) = shown.split_first() else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.clock.unix_seconds()));
        let sound = chain(leaf, intermediates, &self.state().anchors, now, usage);
        sound.is_ok() && member(leaf, self).is_ok()
    }
}

/// Verifies the caller of a server.
#[derive(Debug)]
pub(crate) struct Clients {
    pub trust: Trust,
    pub mandatory: bool,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let state = self.trust.state();
        chain(leaf, intermediates, &state.anchors, now, KeyUsage::client_auth())
            .and_then(|()| member(leaf, &self.trust))
            .inspect_err(|_| note_refused(leaf))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies the server a client called.
#[derive(Debug)]
pub(crate) struct Servers {
    pub trust: Trust,
    pub expect: Expect,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        chain(
            leaf,
            intermediates,
            &self.trust.state().anchors,
            now,
            KeyUsage::server_auth(),
        )?;
        let peer = member(leaf, &self.trust)?;
        match &self.expect {
            Expect::Id(id) if *id != peer.id => Err(other(format!("expected {id}, found {}", peer.id))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies a server by the SHA-256 of the root it shows in its chain: for the first contact,
/// when no bundle is held yet.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub sha256: [u8; 32],
    pub expect: SpiffeId,
    pub clock: Clock,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|c| root_sha256(c) == self.sha256)
            .ok_or_else(|| {
                other(format!(
                    "the server's root certificate is not the one the join token pins (sha256 {}); \
                 is this the right server, and is the token of its present root?",
                    hex::encode(self.sha256)
                ))
            })?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(pki_error)?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.clock.unix_seconds()));
        chain(leaf, intermediates, &[anchor], now, KeyUsage::server_auth())?;
        let peer = PeerIdentity::from_leaf(leaf).map_err(|e| other(e.to_string()))?;
        if peer.id != self.expect {
            return Err(other(format!("expected {}, found {}", self.expect, peer.id)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
