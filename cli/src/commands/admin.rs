//! `weft admin cert`: a short-lived operator certificate, and the flags to use it with grpcurl.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{print_text, time},
};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use weft_proto::weft::identity::v1::{SignAdminRequest, admin_client::AdminClient};

/// Operators' own credentials.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Write a short-lived client certificate for grpcurl and other tools
    Cert(Cert),
}

/// Write a client certificate.
#[derive(Debug, Args)]
pub struct Cert {
    /// Name inside the certificate: spiffe://<trust domain>/weft/admin/<name>
    #[arg(long, default_value = "operator")]
    name: String,
    /// Seconds until it expires
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(60..=86_400))]
    ttl: u32,
    /// Folder for client.pem, client-key.pem and ca.pem
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Admin {
    /// Runs the chosen command.
    pub async fn run(self) -> Result<()> {
        let Self::Cert(cert) = self;
        cert.run().await
    }
}

impl Cert {
    async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let pair = weft_tls::new_key_and_csr()?;
        let request = SignAdminRequest {
            name: self.name.clone(),
            csr_der: pair.csr_der,
            ttl_seconds: self.ttl,
        };
        let reply = AdminClient::new(channel)
            .sign_admin(request)
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner();
        let svid = reply
            .svid
            .context("the certificate authority sent no certificate")?;
        let bundle = reply
            .bundle
            .context("the certificate authority sent no trust bundle")?;

        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let path = |name: &str| self.out.join(name);
        write(&path("client.pem"), &certificates(&svid.chain_der), 0o644)?;
        let key = pem::encode(&pem::Pem::new("PRIVATE KEY", pair.key.secret_der()));
        write(&path("client-key.pem"), &key, 0o600)?;
        write(&path("ca.pem"), &certificates(&bundle.roots_der), 0o644)?;
        print_text(&format!(
            "{} until {}\n\nCall a service, for example the certificate authority:\n  \
             grpcurl -cacert {} -cert {} -key {} -authority weft-identity 127.0.0.1:7301 list\n\
             The others: -authority weft-placement 127.0.0.1:7302, -authority weft-policy 127.0.0.1:7303, \
             -authority weft-agent 127.0.0.1:7304",
            svid.spiffe_id,
            time(svid.not_after),
            path("ca.pem").display(),
            path("client.pem").display(),
            path("client-key.pem").display(),
        ))
    }
}

fn certificates(der: &[Vec<u8>]) -> String {
    der.iter()
        .map(|d| pem::encode(&pem::Pem::new("CERTIFICATE", d.clone())))
        .collect()
}

/// Writes beside the place and renames, so that a full disk leaves no half of a key.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let beside = path.with_extension("tmp");
    let put = || {
        // A left-over may have other permissions than `mode` asks for.
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}
