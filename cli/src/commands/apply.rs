//! `weft apply`: objects written into the policy service's own store, as `kubectl apply` writes them into a
//! cluster. Each file is taken whole or not at all.

use crate::{
    kinds::named,
    manifests::{list, read},
    output::{Format, print_text, print_value},
    policy::{PolicyArgs, policy_error},
};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};
use tonic::transport::Channel;
use weft_proto::weft::policy::v1::{
    AppliedObject, ApplyMode, ApplyRequest, ObjectName, Outcome, resources_client::ResourcesClient,
};
use weft_resources::{Kind, MAX_FILE_BYTES};

/// A file's objects with their statuses.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Write objects into the policy service's own store.
#[derive(Debug, Args)]
#[command(
    after_help = "A file is taken whole or not at all. What a file of the policy service's folder (--resources) has is \
                  changed there,\nand what a Kubernetes cluster has with kubectl.\n\nExamples:\n  \
                  weft apply -f shop/\n  cat policy.yaml | weft apply -n shop -f -\n  \
                  weft apply --dry-run=server -o yaml -f route.yaml"
)]
pub struct Apply {
    #[command(flatten)]
    files: Files,
    /// Form of the output [default: a line for each object]
    #[arg(long, short, value_enum)]
    output: Option<Form>,
    /// server: say what would be done and what is wrong, and do nothing
    #[arg(long, value_enum, default_value_t = DryRun::None, value_name = "none|server")]
    dry_run: DryRun,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Which manifests.
#[derive(Debug, Args)]
pub struct Files {
    /// File or folder of YAML or JSON, or - for standard input; may be given several times
    #[arg(long = "filename", short = 'f', value_name = "FILE", required = true)]
    pub filenames: Vec<PathBuf>,
    /// With the folders of a folder
    #[arg(long, short = 'R')]
    pub recursive: bool,
    /// Namespace of objects that name none; one that names another is a mistake [default: default]
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Whether an order is only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Do it
    None,
    /// Ask the policy service what would be done
    Server,
}

impl DryRun {
    /// What is said after what was done.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Server => " (server dry run)",
        }
    }
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Kind and name of each object
    Name,
    /// For scripts
    Json,
    /// For scripts
    Yaml,
}

impl Files {
    /// All of them, in order; a file that is named twice is there twice.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in &self.filenames {
            list(name, self.recursive, &mut files)?;
        }
        if files.is_empty() {
            bail!("there are no manifests (.yaml, .yml or .json) in what -f names");
        }
        Ok(files)
    }

    /// What orders something of one file.
    pub fn request(&self, name: String, content: Vec<u8>, mode: ApplyMode, objects: bool) -> ApplyRequest {
        ApplyRequest {
            file: name,
            content,
            namespace: self.namespace.clone().unwrap_or_default(),
            namespace_only: self.namespace.is_some(),
            mode: mode.into(),
            objects,
        }
    }
}

/// A client for answers with many objects.
pub fn client(channel: Channel) -> ResourcesClient<Channel> {
    ResourcesClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// Whether a file may be sent; said where it may not.
pub fn is_small_enough(name: &str, content: &[u8]) -> bool {
    let fits = content.len() <= MAX_FILE_BYTES;
    if !fits {
        eprintln!("weft: {name}: more than {MAX_FILE_BYTES} bytes; split the file");
    }
    fits
}

/// The kind and the name of an object that an answer names.
pub fn meant(name: Option<&ObjectName>) -> Result<(Kind, &str)> {
    let name = name.context("the policy service named no object")?;
    let kind = Kind::ALL.into_iter().find(|k| k.name() == name.kind);
    let kind = kind.with_context(|| format!("the policy service named a {}", name.kind))?;
    Ok((kind, &name.name))
}

impl Apply {
    /// Applies file after file. What is wrong with one does not keep others from being applied.
    pub async fn run(self) -> Result<ExitCode> {
        let files = self.files.list()?;
        let (channel, address) = self.policy.channel().await?;
        let mut client = client(channel);
        let mode = match self.dry_run {
            DryRun::None => ApplyMode::Unspecified,
            DryRun::Server => ApplyMode::DryRun,
        };
        let whole = matches!(self.output, Some(Form::Json | Form::Yaml));
        let (mut wrong, mut count, mut objects) = (false, 0, Vec::new());
        for path in &files {
            let (name, content) = read(path)?;
            if !is_small_enough(&name, &content) {
                wrong = true;
                continue;
            }
            let answer = client.apply(self.files.request(name, content, mode, whole)).await;
            let answer = answer
                .map_err(|status| policy_error(&status, &address))?
                .into_inner();
            for problem in &answer.problems {
                eprintln!("weft: {problem}");
            }
            wrong |= !answer.problems.is_empty();
            count += answer.objects.len();
            for object in &answer.objects {
                match whole {
                    true => objects.push(serde_json::from_slice::<Value>(&object.object_json)?),
                    false => self.tell(object)?,
                }
            }
        }
        match (self.output, &objects[..]) {
            (Some(Form::Json), all) if !all.is_empty() => print_value(&listed(all), Format::Json)?,
            (Some(Form::Yaml), all) if !all.is_empty() => print_value(&listed(all), Format::Yaml)?,
            _ => {}
        }
        if count == 0 && !wrong {
            bail!("no objects passed to apply");
        }
        Ok(ExitCode::from(u8::from(wrong)))
    }

    fn tell(&self, object: &AppliedObject) -> Result<()> {
        let (kind, name) = meant(object.name.as_ref())?;
        let named = named(kind, name);
        if self.output.is_some() {
            return print_text(&named);
        }
        let done = match object.outcome() {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
            other => bail!("the policy service answered {}", other.as_str_name()),
        };
        print_text(&format!("{named} {done}{}", self.dry_run.suffix()))
    }
}

/// One object as it is, several as a list.
fn listed(objects: &[Value]) -> Value {
    match objects {
        [one] => one.clone(),
        all => json!({"apiVersion": "v1", "kind": "List", "items": all, "metadata": {"resourceVersion": ""}}),
    }
}
