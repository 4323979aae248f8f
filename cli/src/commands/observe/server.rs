//! Which server is asked, and how it is known.

use crate::connect::{AgentArgs, nobody_answers, reason};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What every agent's certificate names.
const SERVER_NAME: &str = "weft-agent";

/// As Hubble's command line has them.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// unix:///path, host:port, or tls://host:port [default: the agent's socket, hubble.sock in its folder]
    #[arg(long, env = "HUBBLE_SERVER", value_name = "ADDRESS", help_heading = "Server")]
    server: Option<String>,
    /// Ask by TLS
    #[arg(long, env = "HUBBLE_TLS", help_heading = "Server")]
    tls: bool,
    /// Authorities that the server's certificate must come from (ca.pem of `weft admin cert`)
    #[arg(
        long,
        env = "HUBBLE_TLS_CA_CERT_FILES",
        value_name = "FILE",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    tls_ca_cert_files: Vec<PathBuf>,
    /// Own certificate (client.pem of `weft admin cert`)
    #[arg(
        long,
        env = "HUBBLE_TLS_CLIENT_CERT_FILE",
        value_name = "FILE",
        help_heading = "Server"
    )]
    tls_client_cert_file: Option<PathBuf>,
    /// Own key (client-key.pem of `weft admin cert`)
    #[arg(
        long,
        env = "HUBBLE_TLS_CLIENT_KEY_FILE",
        value_name = "FILE",
        help_heading = "Server"
    )]
    tls_client_key_file: Option<PathBuf>,
    /// Name that the server's certificate must have [default: weft-agent]
    #[arg(
        long,
        env = "HUBBLE_TLS_SERVER_NAME",
        value_name = "NAME",
        help_heading = "Server"
    )]
    tls_server_name: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Who was asked, for messages.
#[derive(Debug, Clone)]
pub struct Server {
    shown: String,
    socket: Option<PathBuf>,
}

impl ServerArgs {
    /// A channel that connects with the first call.
    pub fn connect(&self) -> Result<(Channel, Server)> {
        let by_tls = self.tls || self.server.as_ref().is_some_and(|s| s.starts_with("tls://"));
        let address = match &self.server {
            None if self.tls => bail!("--tls needs --server host:port"),
            None => return socket(self.agent.dir().join("hubble.sock")),
            Some(address) => address.strip_prefix("tls://").unwrap_or(address),
        };
        if let Some(path) = address
            .strip_prefix("unix://")
            .or_else(|| address.strip_prefix("unix:"))
        {
            return socket(path.into());
        }
        if by_tls == self.tls_ca_cert_files.is_empty() {
            bail!("TLS needs both --tls (or tls:// before the address) and --tls-ca-cert-files");
        }
        let server = Server {
            shown: address.to_owned(),
            socket: None,
        };
        let (_, port) = address.rsplit_once(':').unwrap_or_default();
        if port.parse::<u16>().is_err() {
            bail!("--server {address}: it is host:port, or unix:// and a path");
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("--server {address}"))?
            .connect_timeout(CONNECT_TIMEOUT);
        if !by_tls {
            return Ok((endpoint.connect_lazy(), server));
        }
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let name = self.tls_server_name.as_deref().unwrap_or(SERVER_NAME);
        let name =
            ServerName::try_from(name.to_owned()).with_context(|| format!("--tls-server-name {name}"))?;
        let to = address.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (connector, name, to) = (connector.clone(), name.clone(), to.clone());
            async move {
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&to)).await??;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Ok((endpoint.connect_with_connector_lazy(connector), server))
    }

    fn config(&self) -> Result<ClientConfig> {
        let read = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>> {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .with_context(|| format!("cannot read certificates from {}", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for path in &self.tls_ca_cert_files {
            for certificate in read(path)? {
                roots
                    .add(certificate)
                    .with_context(|| path.display().to_string())?;
            }
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match (&self.tls_client_cert_file, &self.tls_client_key_file) {
            (Some(certificate), Some(key)) => {
                let shown = key.display();
                let key =
                    PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {shown}"))?;
                builder.with_client_auth_cert(read(certificate)?, key)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => bail!("--tls-client-cert-file and --tls-client-key-file go together"),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn socket(path: PathBuf) -> Result<(Channel, Server)> {
    let server = Server {
        shown: format!("unix://{}", path.display()),
        socket: Some(path.clone()),
    };
    Ok((weft_rpc::channel_local(path)?, server))
}

impl Server {
    /// As Hubble's command line shows it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// What a failed call means for the user.
    pub fn error(&self, status: &Status) -> anyhow::Error {
        if !nobody_answers(status) {
            return anyhow!("{} refused: {}", self.shown, status.message());
        }
        match &self.socket {
            Some(path) => anyhow!(
                "no agent answers at {} ({}); start one with `weft dev`, or name its folder with --run-dir, or \
                 a server with --server",
                path.display(),
                reason(path)
            ),
            None => {
                let mut cause: &dyn std::error::Error = status;
                while let Some(next) = cause.source() {
                    cause = next;
                }
                anyhow!("no server answers at {}: {cause}", self.shown)
            }
        }
    }
}
