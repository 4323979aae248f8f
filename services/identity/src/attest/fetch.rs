//! A small document from a file or by HTTPS, with bounds on size and time.

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::TlsConnector;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither a path nor an address that is taken.
    #[error("{0:?} must be a file or an https:// address without user and password")]
    Place(String),
    /// Nobody says whom to believe.
    #[error("{0} needs ca_file: the certificate authorities that it is believed by")]
    NoAuthority(String),
    /// The authorities' file.
    #[error("{}: {cause}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The document's file.
    #[error("{} can not be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server, or the way to it.
    #[error("{place}: {cause}")]
    Server {
        /// The address.
        place: String,
        /// What went wrong.
        cause: String,
    },
    /// Larger than is read.
    #[error("{place} has more than {limit} bytes")]
    TooLarge {
        /// Where it is.
        place: String,
        /// What is read at most.
        limit: usize,
    },
    /// Nothing in time.
    #[error("{place} did not answer within {after:?}")]
    Late {
        /// Where it is.
        place: String,
        /// How long was waited.
        after: Duration,
    },
}

/// Where the document is.
pub(super) enum Place {
    File(PathBuf),
    Https(Https),
}

pub(super) struct Https {
    uri: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Https(https) => write!(f, "{}", https.uri),
        }
    }
}

fn authorities(path: &PathBuf) -> Result<RootCertStore, FetchError> {
    let unusable = |cause: String| FetchError::Authority {
        path: path.clone(),
        cause,
    };
    let mut store = RootCertStore::empty();
    let all = CertificateDer::pem_file_iter(path).map_err(|e| unusable(e.to_string()))?;
    for one in all {
        let one = one.map_err(|e| unusable(e.to_string()))?;
        store.add(one).map_err(|e| unusable(e.to_string()))?;
    }
    if store.is_empty() {
        return Err(unusable("no certificate is in it".into()));
    }
    Ok(store)
}

impl Place {
    /// Reads what `text` means; asks nobody.
    pub fn new(text: &str, ca_file: Option<&PathBuf>) -> Result<Self, FetchError> {
        let bad = || FetchError::Place(text.to_owned());
        if !text.contains("://") {
            return match text {
                "" => Err(bad()),
                path => Ok(Self::File(path.into())),
            };
        }
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@'));
        let (Some("https"), Some(authority)) = (uri.scheme_str(), authority) else {
            return Err(bad());
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
        let ca_file = ca_file.ok_or_else(|| FetchError::NoAuthority(text.to_owned()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| FetchError::Server {
                place: text.to_owned(),
                cause: e.to_string(),
            })?
            .with_root_certificates(authorities(ca_file)?)
            .with_no_client_auth();
        Ok(Self::Https(Https {
            uri,
            host,
            port,
            name,
            tls: tls.into(),
        }))
    }

    /// The document.
    pub async fn get(&self, limit: usize, within: Duration) -> Result<Vec<u8>, FetchError> {
        let got = tokio::time::timeout(within, async {
            match self {
                Self::File(path) => {
                    let error = |source| FetchError::File {
                        path: path.clone(),
                        source,
                    };
                    let file = tokio::fs::File::open(path).await.map_err(error)?;
                    let mut read = Vec::new();
                    // One more than is allowed, to see that it is too long.
                    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
                    file.take(most).read_to_end(&mut read).await.map_err(error)?;
                    if read.len() > limit {
                        return Err(self.too_large(limit));
                    }
                    Ok(read)
                }
                Self::Https(https) => self.download(https, limit).await,
            }
        });
        got.await.map_err(|_| FetchError::Late {
            place: self.to_string(),
            after: within,
        })?
    }

    fn too_large(&self, limit: usize) -> FetchError {
        FetchError::TooLarge {
            place: self.to_string(),
            limit,
        }
    }

    async fn download(&self, https: &Https, limit: usize) -> Result<Vec<u8>, FetchError> {
        let error = |cause: &dyn std::fmt::Display| FetchError::Server {
            place: self.to_string(),
            cause: cause.to_string(),
        };
        let stream = TcpStream::connect((https.host.as_str(), https.port))
            .await
            .map_err(|e| error(&e))?;
        let stream = TlsConnector::from(https.tls.clone())
            .connect(https.name.clone(), stream)
            .await
            .map_err(|e| error(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| error(&e))?;
        let path = https.uri.path_and_query().map_or("/", |p| p.as_str());
        let host = https.uri.authority().map_or("", |a| a.as_str());
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|e| error(&e))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| error(&e))?;
            // Whoever moved it is not followed: the configuration names the place.
            if response.status() != StatusCode::OK {
                return Err(error(&format!("status {}", response.status())));
            }
            match Limited::new(response.into_body(), limit).collect().await {
                Ok(body) => Ok(body.to_bytes().to_vec()),
                Err(e) if e.is::<LengthLimitError>() => Err(self.too_large(limit)),
                Err(e) => Err(error(&e)),
            }
        };
        tokio::pin!(exchange);
        tokio::select! {
            done = &mut exchange => done,
            ended = connection => match ended {
                // All of the answer may be there already.
                Ok(()) => exchange.await,
                Err(e) => Err(error(&e)),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_https_with_an_authority_are_places() {
        let error = |text: &str| Place::new(text, None).err().map(|e| e.to_string());
        assert_eq!(error("/etc/weft/keys.json"), None);
        for bad in [
            "",
            "http://issuer/keys",
            "ftp://issuer/keys",
            "https://",
            "https://u:p@issuer/",
        ] {
            assert!(error(bad).unwrap().contains("must be a file"), "{bad}");
        }
        let unbelieved = error("https://issuer/keys").unwrap();
        assert!(unbelieved.contains("needs ca_file"), "{unbelieved}");
        let dir = tempfile::TempDir::new().unwrap();
        let empty = dir.path().join("ca.pem");
        std::fs::write(&empty, "").unwrap();
        let none = Place::new("https://issuer/keys", Some(&empty)).err().unwrap();
        assert!(none.to_string().contains("no certificate is in it"), "{none}");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(&empty, cert.pem()).unwrap();
        assert!(Place::new("https://issuer/keys", Some(&empty)).is_ok());
    }
}
