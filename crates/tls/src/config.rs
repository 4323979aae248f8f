//! rustls configurations: TLS 1.3, no resumption, no tickets, certificates read at each handshake.

use crate::{
    Clock, Expect, SvidCell, TlsError, Trust,
    clock::RustlsClock,
    verify::{Clients, Pinned, Servers},
};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::aws_lc_rs::default_provider,
    server::{NoServerSessionStorage, ResolvesServerCert},
    version::TLS13,
};
use std::sync::Arc;
use weft_model::SpiffeId;

/// Whether a server talks to callers without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// The handshake fails without one.
    Required,
    /// A caller may show none (the identity service's join); what it shows must be valid.
    Optional,
}

/// For a server whose certificate comes from `certificates`, verifying callers against `trust`.
/// `alpn` in order of preference.
pub fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    trust: &Trust,
    auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let clients = Clients {
        trust: trust.clone(),
        mandatory: auth == ClientAuth::Required,
    };
    let clock = Arc::new(RustlsClock(trust.clock()));
    let mut config = ServerConfig::builder_with_details(Arc::new(default_provider()), clock)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(certificates);
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // rustls sends two tickets by default; nobody may use them here, so making them is waste.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For a client that shows the SVID in `svid` (nothing, when it is `None`) and expects `expect`.
pub fn client_config(
    svid: Option<&SvidCell>,
    trust: &Trust,
    expect: Expect,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let servers = Servers {
        trust: trust.clone(),
        expect,
    };
    let builder = ClientConfig::builder_with_details(
        Arc::new(default_provider()),
        Arc::new(RustlsClock(trust.clock())),
    )
    .with_protocol_versions(&[&TLS13])?
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(servers));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(svid.clone())),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For the first contact of a process that holds only a join token: the server must be `expect`
/// under the root whose SHA-256 is pinned, and must send that root in its chain.
pub fn pinned_client_config(
    sha256: [u8; 32],
    expect: SpiffeId,
    clock: Clock,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(
        Arc::new(default_provider()),
        Arc::new(RustlsClock(clock.clone())),
    )
    .with_protocol_versions(&[&TLS13])?
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(Pinned {
        sha256,
        expect,
        clock,
    }))
    .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}
