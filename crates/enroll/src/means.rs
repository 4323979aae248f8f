//! What a newcomer shows: a join token, or the token that Kubernetes gave its pod.

use crate::{EnrollError, JoinToken};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};
use tonic::{Status, transport::Channel};
use weft_model::{SpiffeId, TrustDomain};
use weft_proto::weft::identity::v1::{
    AttestRequest, JoinRequest, Svid, TrustBundle, attest_request::Evidence,
    bootstrap_client::BootstrapClient,
};
use weft_rpc::{channel, channel_pinned};
use weft_tls::{Bundle, Clock, Expect, Trust, root_sha256};
use zeroize::Zeroizing;

/// No token file is longer.
const MAX_JOIN_TOKEN_FILE: u64 = 4096;
const MAX_KUBERNETES_TOKEN_FILE: u64 = 16 * 1024;
/// Some roots.
const MAX_ANCHORS_FILE: u64 = 256 * 1024;

/// Where a join token comes from. It is read only when it is needed.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Handed over in memory, by flag or environment.
    Given(JoinToken),
    /// The only content of a file.
    File(PathBuf),
}

impl TokenSource {
    /// From the text of a flag or environment variable.
    pub fn text(text: &str) -> Result<Self, EnrollError> {
        Ok(Self::Given(text.parse()?))
    }

    fn read(&self) -> Result<JoinToken, EnrollError> {
        let path = match self {
            Self::Given(token) => return Ok(token.clone()),
            Self::File(path) => path,
        };
        let text = read(path, MAX_JOIN_TOKEN_FILE)?;
        JoinToken::from_str(&text).map_err(|source| EnrollError::TokenFile {
            path: path.clone(),
            source,
        })
    }
}

/// How a pod of Kubernetes joins.
#[derive(Debug, Clone)]
pub struct KubernetesJoin {
    /// The service-account token that the kubelet projects for the identity service's audience. Read
    /// at each try: the kubelet replaces it.
    pub token_file: PathBuf,
    /// The roots that the identity service must be under, PEM.
    pub trust_anchors_file: PathBuf,
}

fn read(path: &Path, most: u64) -> Result<Zeroizing<String>, EnrollError> {
    let error = |source| EnrollError::File {
        path: path.to_path_buf(),
        source,
    };
    let length = fs::metadata(path).map_err(error)?.len();
    if length > most {
        let long = format!("it has {length} bytes, at most {most} are read");
        return Err(error(std::io::Error::other(long)));
    }
    Ok(Zeroizing::new(fs::read_to_string(path).map_err(error)?))
}

fn anchors(path: &Path, trust_domain: &TrustDomain, clock: &Clock) -> Result<Trust, EnrollError> {
    let unusable = |reason: String| EnrollError::TrustAnchors {
        path: path.to_path_buf(),
        reason,
    };
    let text = read(path, MAX_ANCHORS_FILE)?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let bundle = Bundle {
        trust_domain: trust_domain.clone(),
        version: 0,
        roots: roots.map_err(|e| unusable(e.to_string()))?,
        jwks: Vec::new(),
    };
    let trust = Trust::new(trust_domain.clone(), clock.clone());
    trust.set(bundle).map_err(|e| unusable(e.to_string()))?;
    Ok(trust)
}

/// What is shown, and how the server is known.
pub(crate) enum Means {
    Token(JoinToken),
    Kubernetes(KubernetesJoin),
}

/// The server's answer, not read yet.
pub(crate) type Answer = (Option<Svid>, Option<TrustBundle>);

impl Means {
    pub fn token(source: &TokenSource) -> Result<Self, EnrollError> {
        Ok(Self::Token(source.read()?))
    }

    /// A channel to the identity service, which nobody else can pass for.
    pub fn channel(
        &self,
        address: &str,
        trust_domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<Channel, EnrollError> {
        let expect = trust_domain.service("identity")?;
        Ok(match self {
            Self::Token(token) => channel_pinned(address, token.root_sha256(), expect, clock.clone())?,
            Self::Kubernetes(by) => {
                let trust = anchors(&by.trust_anchors_file, trust_domain, clock)?;
                channel(address, None, &trust, Expect::Id(expect))?
            }
        })
    }

    /// One try.
    pub async fn ask(
        &self,
        client: &mut BootstrapClient<Channel>,
        id: &SpiffeId,
        csr_der: Vec<u8>,
    ) -> Result<Result<Answer, Status>, EnrollError> {
        Ok(match self {
            Self::Token(token) => {
                let token = token.reveal().to_string();
                let reply = client.join(JoinRequest { token, csr_der }).await;
                reply.map(|r| r.into_inner()).map(|r| (r.svid, r.bundle))
            }
            Self::Kubernetes(by) => {
                let token = read(&by.token_file, MAX_KUBERNETES_TOKEN_FILE)?;
                let request = AttestRequest {
                    evidence: Some(Evidence::KubernetesToken(token.trim().to_owned())),
                    csr_der,
                    spiffe_id: id.to_string(),
                };
                let reply = client.attest(request).await;
                reply.map(|r| r.into_inner()).map(|r| (r.svid, r.bundle))
            }
        })
    }

    /// Whether the bundle belongs to the server that was meant.
    pub fn check(&self, bundle: &Bundle) -> Result<(), String> {
        match self {
            Self::Token(token) if !bundle.roots.iter().any(|r| root_sha256(r) == token.root_sha256()) => {
                Err("its trust bundle does not hold the root that the token pins".into())
            }
            // Of roots that were handed over, the server showed that it is under one.
            Self::Token(_) | Self::Kubernetes(_) => Ok(()),
        }
    }

    /// For the log.
    pub fn name(&self) -> &str {
        match self {
            Self::Token(token) => token.id(),
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}
