//! Calling other services: channels that connect when first used and again whenever they must.

use crate::RpcError;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_model::SpiffeId;
use weft_tls::{Clock, Expect, SvidCell, Trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// gRPC over TLS is HTTP/2 only.
const ALPN: &[&[u8]] = &[b"h2"];

/// A channel to `address` (`host:port`) over mTLS. It shows what `svid` holds at each connect
/// (nothing when `None`) and goes on only with `expect`. Nothing is sent until the first call.
pub fn channel(
    address: &str,
    svid: Option<&SvidCell>,
    trust: &Trust,
    expect: Expect,
) -> Result<Channel, RpcError> {
    over_tls(address, weft_tls::client_config(svid, trust, expect, ALPN)?)
}

/// A channel for the first contact: no certificate is shown, and the server must be `expect` under
/// the root with this SHA-256.
pub fn channel_pinned(
    address: &str,
    root_sha256: [u8; 32],
    expect: SpiffeId,
    clock: Clock,
) -> Result<Channel, RpcError> {
    over_tls(
        address,
        weft_tls::pinned_client_config(root_sha256, expect, clock, ALPN)?,
    )
}

/// A channel to a local socket.
pub fn channel_local(path: PathBuf) -> Result<Channel, RpcError> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&path)).await??;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint("localhost")?.connect_with_connector_lazy(connector))
}

fn endpoint(authority: &str) -> Result<Endpoint, RpcError> {
    let bad = |_| RpcError::Address(authority.to_owned());
    Ok(Endpoint::from_shared(format!("http://{authority}"))
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true))
}

fn over_tls(address: &str, mut config: rustls::ClientConfig) -> Result<Channel, RpcError> {
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| RpcError::Address(address.to_owned()))?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(RpcError::Address(address.to_owned()));
    }
    // Servers are known by SPIFFE ID; a name in clear would only tell onlookers who is called.
    config.enable_sni = false;
    let connector = TlsConnector::from(Arc::new(config));
    let to = address.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (connector, to) = (connector.clone(), to.clone());
        async move {
            let dial = async {
                let stream = TcpStream::connect(&to).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("weft.invalid").map_err(io::Error::other)?;
                connector.connect(name, stream).await
            };
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("connecting to {to}")))?
                .map_err(|e| io::Error::new(e.kind(), format!("connecting to {to}: {e}")))?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint(address)?.connect_with_connector_lazy(connector))
}
