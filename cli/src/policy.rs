//! Calling the policy service as an operator: by its socket on this machine, or over mTLS with a certificate
//! made for this call or from files.

use crate::connect::{AgentArgs, identity_error, is_unreachable};
use anyhow::{Context, Result, anyhow};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use tonic::{Status, transport::Channel};
use weft_proto::weft::{
    dataplane::v1::{GetRequest, status_client::StatusClient},
    identity::v1::{SignAdminRequest, admin_client::AdminClient},
};
use weft_tls::{Bundle, Expect, Svid, SvidCell, SystemClock, Trust};

/// Where the policy service listens unless somebody says otherwise.
const DEFAULT: &str = "127.0.0.1:7303";
/// Enough for one call.
const TTL_SECONDS: u32 = 60;

/// How to reach the policy service.
#[derive(Debug, Clone, clap::Args)]
pub struct PolicyArgs {
    /// Address of the policy service
    /// [default: its socket in --run-dir, else where the agent of this machine finds it, else 127.0.0.1:7303]
    #[arg(long, env = "WEFT_POLICY_SERVER", value_name = "HOST:PORT")]
    server: Option<String>,
    /// Folder with client.pem, client-key.pem and ca.pem, as `weft admin cert` writes them
    /// [default: a certificate for this call from the certificate authority of this machine]
    #[arg(long, env = "WEFT_CERT_DIR", value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// An operator's certificate and the roots to check the other side with.
struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl PolicyArgs {
    /// A channel to the policy service, and its address for messages.
    pub async fn channel(&self) -> Result<(Channel, String)> {
        let socket = self.agent.dir().join("policy.sock");
        // Its own socket lets its user and root in without a certificate.
        if self.server.is_none() && self.cert_dir.is_none() && socket.exists() {
            let name = socket.display().to_string();
            return Ok((weft_rpc::channel_local(socket)?, name));
        }
        let address = match &self.server {
            Some(address) => address.clone(),
            None => self.told_by_agent().await.unwrap_or_else(|| DEFAULT.to_owned()),
        };
        let credentials = match &self.cert_dir {
            Some(folder) => read(folder)?,
            None => self.made().await?,
        };
        let svid = Svid::new(credentials.chain, &credentials.key)?;
        let trust_domain = svid.id().trust_domain();
        let expect = Expect::Id(trust_domain.service("policy")?);
        let trust = Trust::new(trust_domain.clone(), SystemClock::shared());
        trust.set(Bundle {
            trust_domain,
            version: 1,
            roots: credentials.roots,
            jwks: Vec::new(),
        })?;
        let cell = SvidCell::new();
        cell.set(svid);
        Ok((weft_rpc::channel(&address, Some(&cell), &trust, expect)?, address))
    }

    async fn told_by_agent(&self) -> Option<String> {
        let (channel, _) = self.agent.agent().ok()?;
        let status = StatusClient::new(channel).get(GetRequest {}).await.ok()?;
        let mut all = status.into_inner().upstreams.into_iter();
        all.find(|u| u.name == "policy").map(|u| u.address)
    }

    async fn made(&self) -> Result<Credentials> {
        let (channel, socket) = self.agent.identity()?;
        let pair = weft_tls::new_key_and_csr()?;
        let request = SignAdminRequest {
            name: "weft-cli".into(),
            csr_der: pair.csr_der,
            ttl_seconds: TTL_SECONDS,
        };
        let signed = AdminClient::new(channel).sign_admin(request).await;
        let reply = signed.map_err(|status| {
            let hint = "or name a folder that `weft admin cert` wrote with --cert-dir";
            anyhow!("{}; {hint}", identity_error(&status, &socket))
        })?;
        let reply = reply.into_inner();
        let chain = reply
            .svid
            .context("the certificate authority sent no certificate")?;
        let bundle = reply
            .bundle
            .context("the certificate authority sent no trust bundle")?;
        Ok(Credentials {
            chain: chain.chain_der.into_iter().map(CertificateDer::from).collect(),
            key: pair.key,
            roots: bundle.roots_der.into_iter().map(CertificateDer::from).collect(),
        })
    }
}

fn read(folder: &Path) -> Result<Credentials> {
    let parts = |name: &str| {
        let path = folder.join(name);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let parts = pem::parse_many(text).with_context(|| format!("{} is no PEM", path.display()))?;
        anyhow::Ok(parts.into_iter().map(pem::Pem::into_contents).collect::<Vec<_>>())
    };
    let certificates = |name: &str| {
        let all = parts(name)?.into_iter().map(CertificateDer::from);
        anyhow::Ok(all.collect::<Vec<_>>())
    };
    let key = parts("client-key.pem")?.into_iter().next();
    let key =
        key.with_context(|| format!("there is no key in {}", folder.join("client-key.pem").display()))?;
    let key = PrivateKeyDer::try_from(key).map_err(|e| anyhow!("client-key.pem: {e}"))?;
    Ok(Credentials {
        chain: certificates("client.pem")?,
        key,
        roots: certificates("ca.pem")?,
    })
}

/// What a failed call to the policy service means for the user.
pub fn policy_error(status: &Status, address: &str) -> anyhow::Error {
    if is_unreachable(status) {
        return anyhow!(
            "the policy service does not answer at {address}: {}; name its address with --server",
            status.message()
        );
    }
    anyhow!("{}", status.message())
}
