//! `weft diff`: what `weft apply` would change, as `kubectl diff` shows it: object by object as YAML, by
//! diff(1) or what `KUBECTL_EXTERNAL_DIFF` names.

use super::apply::{Files, client, is_small_enough, meant};
use crate::{
    manifests::read,
    policy::{PolicyArgs, policy_error},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};
use weft_proto::weft::policy::v1::{AppliedObject, ApplyMode};

const DIFFERENT: u8 = 1;
/// So that a failure is never taken for a difference.
const FAILED: u8 = 2;

/// Show what apply would change.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 no differences, 1 differences, above 1 it could not be told.\n\nKUBECTL_EXTERNAL_DIFF \
                  names another program than `diff -u -N`, with its flags; it is given two folders."
)]
pub struct Diff {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        // mkdtemp(3): nobody else can have made it, and nobody else can read it.
        let template = std::env::temp_dir().join(format!("{name}-XXXXXX"));
        let path = nix::unistd::mkdtemp(&template)
            .with_context(|| format!("cannot make a folder {}", template.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Diff {
    /// Compares and prints the differences.
    pub async fn run(self) -> ExitCode {
        match self.compare().await {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("weft: {}", format!("{error:#}").replace('\n', " "));
                ExitCode::from(FAILED)
            }
        }
    }

    async fn compare(self) -> Result<u8> {
        let files = self.files.list()?;
        let (live, merged) = (Folder::new("LIVE")?, Folder::new("MERGED")?);
        let (channel, address) = self.policy.channel().await?;
        let mut client = client(channel);
        let (mut wrong, mut count) = (false, 0);
        for path in &files {
            let (name, content) = read(path)?;
            if !is_small_enough(&name, &content) {
                wrong = true;
                continue;
            }
            let request = self.files.request(name, content, ApplyMode::Compare, false);
            let answer = client.apply(request).await;
            let answer = answer
                .map_err(|status| policy_error(&status, &address))?
                .into_inner();
            for problem in &answer.problems {
                eprintln!("weft: {problem}");
            }
            wrong |= !answer.problems.is_empty();
            count += answer.objects.len();
            for object in &answer.objects {
                let name = file_name(object)?;
                write(&live.0.join(&name), &object.live_json)?;
                write(&merged.0.join(&name), &object.object_json)?;
            }
        }
        if count == 0 && !wrong {
            bail!("no objects passed to diff");
        }
        let code = show(&live.0, &merged.0)?;
        Ok(if wrong { FAILED } else { code })
    }
}

/// As kubectl calls them: group, version, kind, namespace, name.
fn file_name(object: &AppliedObject) -> Result<String> {
    let (kind, name) = meant(object.name.as_ref())?;
    let namespace = object.name.as_ref().map_or("", |n| n.namespace.as_str());
    let version = kind.api_version().replace('/', ".");
    // Names have no slashes: the policy service checks them.
    Ok(format!("{version}.{}.{namespace}.{name}", kind.name()).replace('/', "_"))
}

/// What is not there has no file.
fn write(path: &Path, json: &[u8]) -> Result<()> {
    if json.is_empty() {
        return Ok(());
    }
    let value: Value = serde_json::from_slice(json).context("the policy service sent no JSON")?;
    fs::write(path, serde_saphyr::to_string(&value)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn show(live: &Path, merged: &Path) -> Result<u8> {
    let own = std::env::var("KUBECTL_EXTERNAL_DIFF")
        .ok()
        .filter(|words| !words.trim().is_empty());
    let words = own.unwrap_or_else(|| "diff -u -N".to_owned());
    let mut words = words.split_whitespace();
    let program = words.next().unwrap_or("diff");
    let shown = Command::new(program)
        .args(words)
        .args([live, merged])
        .stdin(Stdio::null())
        .output();
    let shown = shown.with_context(|| {
        format!("cannot start {program}; install diffutils, or name another program in KUBECTL_EXTERNAL_DIFF")
    })?;
    // A reader that went away does not matter.
    let _ = io::stdout().write_all(&shown.stdout);
    let _ = io::stderr().write_all(&shown.stderr);
    match shown.status.code() {
        Some(0) => Ok(0),
        Some(1) => Ok(DIFFERENT),
        _ => bail!("{program} failed: {}", shown.status),
    }
}
