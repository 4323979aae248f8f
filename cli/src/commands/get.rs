//! `weft get`: the objects that the policy service read, with their status, as `kubectl get` shows them.

use crate::{
    connect::{AgentArgs, policy_error},
    kinds::{kinds, named, resource},
    output::{Format, print_text, print_value, table},
};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};
use tonic::transport::Channel;
use weft_proto::weft::policy::v1::{ListRequest, ListResponse, resources_client::ResourcesClient};
use weft_resources::Kind;

mod columns;

/// A page of objects is at most about 2 MiB, a single one at most a file's 1 MiB.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Show objects and their status.
#[derive(Debug, Args)]
#[command(
    after_help = "Kinds: services (svc), gateways (gtw), gatewayclasses (gc), httproutes, grpcroutes, referencegrants (refgrant),\n\
                  ciliumnetworkpolicies (cnp), ciliumclusterwidenetworkpolicies (ccnp), networkpolicies (netpol), ciliumlocalredirectpolicies (clrp),\n\
                  components, configurations, subscriptions, resiliencies, httpendpoints, namespaces (ns), ingresses (ing), tlsroutes,\n\
                  backendtlspolicies (btlspolicy), ciliumcidrgroups (ccg), ciliumenvoyconfigs (cec), ciliumclusterwideenvoyconfigs (ccec)"
)]
pub struct Get {
    /// Kind, as its name, plural or short name; several with commas between them
    #[arg(value_name = "KIND")]
    kinds: String,
    /// Names; none for all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Namespace
    #[arg(long, short, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Objects of every namespace
    #[arg(long, short = 'A', conflicts_with_all = ["namespace", "names"])]
    all_namespaces: bool,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    agent: AgentArgs,
}

/// What was found of one kind.
struct Found {
    kind: Kind,
    objects: Vec<Value>,
}

impl Get {
    /// Prints what was asked for.
    pub async fn run(self) -> Result<ExitCode> {
        let kinds = kinds(&self.kinds)?;
        let (channel, socket) = self.agent.policy()?;
        let mut client = ResourcesClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let (mut all, mut bad, mut missing) = (Vec::new(), BTreeSet::new(), Vec::new());
        for kind in kinds {
            let names = self.names.iter().map(String::as_str);
            let names: BTreeSet<&str> = if self.names.is_empty() {
                [""].into()
            } else {
                names.collect()
            };
            let mut found = Found {
                kind,
                objects: Vec::new(),
            };
            for name in names {
                let listed = self.list(&mut client, kind, name).await;
                let (objects, files) = listed.map_err(|status| match status {
                    Failed::Call(status) => policy_error(&status, &socket),
                    Failed::Answer(error) => error,
                })?;
                bad.extend(files);
                if objects.is_empty() && !name.is_empty() {
                    missing.push(format!("{} {name:?} not found", resource(kind)));
                }
                found.objects.extend(objects);
            }
            all.push(found);
        }
        self.print(&all, missing.is_empty())?;
        match bad.len() {
            0 => {}
            1 => eprintln!("weft: 1 manifest file is not in force; see weft status"),
            n => eprintln!("weft: {n} manifest files are not in force; see weft status"),
        }
        for text in &missing {
            eprintln!("weft: {text}");
        }
        Ok(ExitCode::from(u8::from(!missing.is_empty())))
    }

    /// The objects, and the files that are not in force.
    async fn list(
        &self,
        client: &mut ResourcesClient<Channel>,
        kind: Kind,
        name: &str,
    ) -> Result<(Vec<Value>, Vec<String>), Failed> {
        let everywhere = self.all_namespaces || kind.is_of_cluster();
        let mut request = ListRequest {
            kind: kind.name().to_owned(),
            namespace: if everywhere {
                String::new()
            } else {
                self.namespace.clone()
            },
            name: name.to_owned(),
            objects: true,
            after: String::new(),
        };
        let (mut objects, mut files) = (Vec::new(), Vec::new());
        loop {
            let call = client.list(request.clone()).await.map_err(Failed::Call)?;
            let ListResponse { resources, next, .. } = call.into_inner();
            for found in resources {
                if found.kind == "File" {
                    files.push(found.name);
                } else {
                    let object = serde_json::from_slice(&found.object_json);
                    objects.push(
                        object
                            .context("the policy service sent no JSON")
                            .map_err(Failed::Answer)?,
                    );
                }
            }
            if next.is_empty() || next == request.after {
                return Ok((objects, files));
            }
            request.after = next;
        }
    }

    fn print(&self, all: &[Found], complete: bool) -> Result<()> {
        let count: usize = all.iter().map(|found| found.objects.len()).sum();
        if self.output != Format::Table {
            let objects: Vec<&Value> = all.iter().flat_map(|found| &found.objects).collect();
            return match objects[..] {
                [one] if self.names.len() == 1 => print_value(one, self.output),
                // What is not there is an error, and no list.
                [] if !complete => Ok(()),
                _ => {
                    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects, "metadata": {"resourceVersion": ""}});
                    print_value(&list, self.output)
                }
            };
        }
        if count == 0 {
            if complete {
                let cluster = all.iter().all(|found| found.kind.is_of_cluster());
                if self.all_namespaces || cluster {
                    eprintln!("No resources found");
                } else {
                    eprintln!("No resources found in {} namespace.", self.namespace);
                }
            }
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_secs());
        let several = all.len() > 1;
        let mut tables = Vec::new();
        for Found { kind, objects } in all.iter().filter(|found| !found.objects.is_empty()) {
            let mut header: Vec<&str> = columns::header(*kind).to_vec();
            let with_namespace = self.all_namespaces && !kind.is_of_cluster();
            if with_namespace {
                header.insert(0, "NAMESPACE");
            }
            let mut rows = Vec::new();
            for object in objects {
                let mut row = columns::row(*kind, object, now);
                if let Some(name) = row.first_mut().filter(|_| several) {
                    *name = named(*kind, name);
                }
                if with_namespace {
                    row.insert(0, columns::text(&object["metadata"]["namespace"]));
                }
                rows.push(row);
            }
            tables.push(table(&header, &rows));
        }
        print_text(&tables.join("\n\n"))
    }
}

enum Failed {
    Call(tonic::Status),
    Answer(anyhow::Error),
}
