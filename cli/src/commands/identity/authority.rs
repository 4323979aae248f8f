//! `weft identity show` and `rotate`.

use crate::{
    connect::{AgentArgs, identity_error},
    output::{Format, age, print_done, print_text, print_value, table, time},
};
use anyhow::Result;
use clap::Args;
use serde_json::json;
use weft_proto::weft::identity::v1::{
    Authority, GetAuthorityRequest, RotateRequest, RotateTarget, admin_client::AdminClient,
};

/// Show the authority.
#[derive(Debug, Args)]
pub struct Show {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Begin a rotation.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("target").required(true),
    after_help = "A new root signs when every connected member knows it, and the old one goes when nothing \
                  depends on it any more: `weft identity show` says how far it is."
)]
pub struct Rotate {
    /// A new root, and an issuer under it
    #[arg(long, group = "target")]
    root: bool,
    /// A new issuer under the present root
    #[arg(long, group = "target")]
    issuer: bool,
    /// New certificates for all members and workloads, now
    #[arg(long, group = "target")]
    leaves: bool,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

impl Show {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let shown = AdminClient::new(channel)
            .get_authority(GetAuthorityRequest {})
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner();
        if !matches!(self.output, Format::Table) {
            let all = |list: &[Authority]| list.iter().map(authority_json).collect::<Vec<_>>();
            let replicas = shown.replicas.iter().map(|r| {
                json!({
                    "name": r.name, "seen": time(r.seen), "members": r.members, "ackedVersion": r.acked_version,
                })
            });
            let value = json!({
                "trustDomain": shown.trust_domain, "bundleVersion": shown.bundle_version,
                "phase": shown.phase, "members": shown.members, "waitingFor": shown.waiting_for,
                "roots": all(&shown.roots),
                "issuers": shown.issuers.iter().map(issuer_json).collect::<Vec<_>>(),
                "replicas": replicas.collect::<Vec<_>>(),
            });
            return print_value(&value, self.output);
        }
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let row = |kind: &str, a: &Authority| {
            vec![
                kind.to_owned(),
                a.state.clone(),
                a.key.clone(),
                age(a.not_before, now),
                time(a.not_before),
                time(a.not_after),
                a.needed_until
                    .filter(|t| t.seconds > 0)
                    .map_or_else(|| "-".into(), |t| time(Some(t))),
                short(&a.sha256),
                under(a),
            ]
        };
        let rows: Vec<_> = shown
            .roots
            .iter()
            .map(|a| row("root", a))
            .chain(shown.issuers.iter().map(|a| row("issuer", a)))
            .collect();
        let header = [
            "KIND",
            "STATE",
            "KEY",
            "AGE",
            "FROM",
            "UNTIL",
            "NEEDED UNTIL",
            "SHA-256",
            "UNDER ROOT",
        ];
        print_text(&table(&header, &rows))?;
        let mut line = format!(
            "Trust domain {}, bundle {}, {} connected members",
            shown.trust_domain, shown.bundle_version, shown.members
        );
        match shown.phase.as_str() {
            "distributing" if shown.waiting_for.is_empty() => {
                line.push_str("; a new root is about to be used");
            }
            "distributing" => {
                line.push_str("; a new root waits until it is known to ");
                line.push_str(&shown.waiting_for);
            }
            "retiring" => line.push_str("; the old root goes when nothing depends on it"),
            _ => {}
        }
        print_text(&line)
    }
}

fn authority_json(a: &Authority) -> serde_json::Value {
    json!({
        "sha256": a.sha256, "state": a.state, "key": a.key, "notBefore": time(a.not_before),
        "notAfter": time(a.not_after), "neededUntil": time(a.needed_until), "hasKey": a.has_key,
    })
}

/// An issuer says what it is under as well.
fn issuer_json(a: &Authority) -> serde_json::Value {
    let cross = Some(&a.cross_root_sha256).filter(|sha256| !sha256.is_empty());
    let mut value = authority_json(a);
    value["rootSha256"] = json!(a.root_sha256);
    value["crossRootSha256"] = json!(cross);
    value
}

/// As much of a SHA-256 as people compare.
fn short(sha256: &str) -> String {
    sha256.chars().take(16).collect()
}

/// The root that an issuer is under, and the older one that its key is certified under as well.
fn under(a: &Authority) -> String {
    match (a.root_sha256.as_str(), a.cross_root_sha256.as_str()) {
        ("", _) => "-".into(),
        (root, "") => short(root),
        (root, cross) => format!("{}, also {}", short(root), short(cross)),
    }
}

impl Rotate {
    pub(super) async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.identity()?;
        let target = if self.root {
            RotateTarget::Root
        } else if self.issuer {
            RotateTarget::Issuer
        } else {
            RotateTarget::Leaves
        };
        let reply = AdminClient::new(channel)
            .rotate(RotateRequest {
                target: target.into(),
            })
            .await
            .map_err(|status| identity_error(&status, &socket))?
            .into_inner();
        let (name, text) = match (target, reply.phase.as_str()) {
            (RotateTarget::Root, "distributing") => (
                "root",
                "A new root is given to the members; `weft identity show` says how far it is",
            ),
            (RotateTarget::Root, _) => (
                "root",
                "A new root is in use; the old one goes when nothing depends on it",
            ),
            (RotateTarget::Issuer, _) => ("issuer", "A new issuer is in use"),
            _ => ("leaves", "Members and workloads are told to get new certificates"),
        };
        let value = json!({ "target": name, "phase": reply.phase });
        print_done(text, &value, self.output)
    }
}
