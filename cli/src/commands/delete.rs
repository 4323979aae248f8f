//! `weft delete`: objects that were applied go, named by files or by their names.

use super::apply::{DryRun, meant};
use crate::{
    kinds::{kind, kinds, named, one, resource},
    manifests::{list, read},
    output::print_text,
    policy::{PolicyArgs, policy_error},
};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::{path::PathBuf, process::ExitCode};
use weft_proto::weft::policy::v1::{DeleteRequest, ObjectName, Outcome, resources_client::ResourcesClient};
use weft_resources::{Home, Kind, MAX_DOCUMENTS};

/// Remove objects that were applied.
#[derive(Debug, Args)]
#[command(
    override_usage = "weft delete [OPTIONS] (-f <FILE>... | <KIND> <NAME>... | <KIND>/<NAME>...)",
    after_help = "What a file of the policy service's folder has is removed there. The objects of a file, or those \
                  named at once, go all or none.\n\nExamples:\n  \
                  weft delete -f shop/\n  weft delete httproute web -n shop\n  weft delete cnp/front svc/cart"
)]
pub struct Delete {
    /// Kind and names, or each as KIND/NAME
    #[arg(
        value_name = "KIND NAME",
        required_unless_present = "filenames",
        conflicts_with = "filenames"
    )]
    names: Vec<String>,
    /// File or folder of YAML or JSON, or - for standard input; may be given several times
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    filenames: Vec<PathBuf>,
    /// With the folders of a folder
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Namespace [default: what the files say, else default]
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// What is not there is no failure
    #[arg(long)]
    ignore_not_found: bool,
    /// name: only kind and name of each object
    #[arg(long, short, value_enum)]
    output: Option<NameOnly>,
    /// server: say what would be done, and do nothing
    #[arg(long, value_enum, default_value_t = DryRun::None, value_name = "none|server")]
    dry_run: DryRun,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NameOnly {
    /// Kind and name of each object
    Name,
}

impl Delete {
    /// Deletes order after order.
    pub async fn run(self) -> Result<ExitCode> {
        let mut wrong = false;
        let mut orders = Vec::new();
        if self.filenames.is_empty() {
            orders.push(self.named()?);
        } else {
            for objects in self.of_files()? {
                match objects {
                    Some(objects) => orders.push(objects),
                    None => wrong = true,
                }
            }
        }
        let (channel, address) = self.policy.channel().await?;
        let mut client = ResourcesClient::new(channel);
        for objects in orders {
            let request = DeleteRequest {
                objects,
                dry_run: self.dry_run == DryRun::Server,
            };
            let answer = client.delete(request).await;
            let answer = answer
                .map_err(|status| policy_error(&status, &address))?
                .into_inner();
            for problem in &answer.problems {
                eprintln!("weft: {problem}");
            }
            wrong |= !answer.problems.is_empty();
            for object in &answer.objects {
                let (kind, name) = meant(object.name.as_ref())?;
                match object.outcome() {
                    Outcome::Deleted => self.tell(kind, object.name.as_ref())?,
                    Outcome::NotFound if self.ignore_not_found => {}
                    Outcome::NotFound => {
                        eprintln!("weft: {} {name:?} not found", resource(kind));
                        wrong = true;
                    }
                    other => bail!("the policy service answered {}", other.as_str_name()),
                }
            }
        }
        Ok(ExitCode::from(u8::from(wrong)))
    }

    fn tell(&self, kind: Kind, object: Option<&ObjectName>) -> Result<()> {
        let Some(ObjectName { namespace, name, .. }) = object else {
            return Ok(());
        };
        if self.output.is_some() {
            return print_text(&named(kind, name));
        }
        let from = match namespace.as_str() {
            "" => String::new(),
            namespace => format!(" from {namespace} namespace"),
        };
        print_text(&format!(
            "{} {name:?} deleted{from}{}",
            one(kind),
            self.dry_run.suffix()
        ))
    }

    fn object(&self, kind: Kind, name: &str) -> ObjectName {
        let namespace = match kind.is_of_cluster() {
            true => "",
            false => self.namespace.as_deref().unwrap_or("default"),
        };
        ObjectName {
            kind: kind.name().to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// `KIND NAME...`, or `KIND/NAME...`.
    fn named(&self) -> Result<Vec<ObjectName>> {
        let mut objects = Vec::new();
        if self.names.iter().any(|word| word.contains('/')) {
            for word in &self.names {
                let Some((of, name)) = word.split_once('/').filter(|(_, name)| !name.contains('/')) else {
                    bail!("there is no need to say a kind beside objects written as KIND/NAME: {word:?}");
                };
                let Some(kind) = kind(of) else {
                    bail!("there is no resource type {of:?}; see weft get --help");
                };
                objects.push(self.object(kind, name));
            }
        } else if let Some((words, names)) = self.names.split_first() {
            if names.is_empty() {
                bail!("name the objects to delete: weft delete {words} <name>");
            }
            for kind in kinds(words)? {
                objects.extend(names.iter().map(|name| self.object(kind, name)));
            }
        }
        if objects.len() > MAX_DOCUMENTS {
            bail!("more than {MAX_DOCUMENTS} objects at once");
        }
        Ok(objects)
    }

    /// What each file names, whatever else is wrong in it; `None` where not even that can be read.
    fn of_files(&self) -> Result<Vec<Option<Vec<ObjectName>>>> {
        let mut files = Vec::new();
        for name in &self.filenames {
            list(name, self.recursive, &mut files)?;
        }
        let home = Home {
            namespace: self.namespace.as_deref().unwrap_or("default"),
            only: self.namespace.is_some(),
        };
        let mut orders = Vec::new();
        for path in &files {
            let (file, content) = read(path)?;
            orders.push(match weft_resources::names(&file, &content, home) {
                Ok(objects) => {
                    let name = |(kind, namespace, name): (Kind, String, String)| ObjectName {
                        kind: kind.name().to_owned(),
                        namespace,
                        name,
                    };
                    Some(objects.into_iter().map(name).collect())
                }
                Err(problems) => {
                    for problem in problems {
                        eprintln!("weft: {problem}");
                    }
                    None
                }
            });
        }
        Ok(orders)
    }
}
