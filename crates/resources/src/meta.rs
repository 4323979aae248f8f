//! `metadata`.

use crate::{
    fields::{Field, Problems},
    tree::Value,
};
use std::{collections::BTreeMap, fmt};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_model::{check_dns_label, check_name};

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// `default` where the manifest names none; empty for what belongs to the cluster.
    pub namespace: String,
    /// Unique per kind and namespace.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp`, in seconds since the Unix epoch: what came from a cluster says so.
    pub created: Option<u64>,
    /// `generation`, likewise.
    pub generation: Option<u64>,
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The namespace of a file's objects that name none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home<'a> {
    /// Its name.
    pub namespace: &'a str,
    /// Whether an object of another one is a mistake.
    pub only: bool,
}

impl Default for Home<'_> {
    fn default() -> Self {
        Self {
            namespace: "default",
            only: false,
        }
    }
}

pub(crate) fn read(
    field: &Field<'_>,
    of_cluster: bool,
    home: Home<'_>,
    problems: &mut Problems,
) -> Option<Meta> {
    let mut object = field.object(problems)?;
    let name = object
        .need("name", problems)
        .and_then(|f| f.checked(problems, check_name));
    let namespace = match object.take("namespace") {
        Some(f) if of_cluster => {
            f.fail(problems, "objects of this kind have no namespace");
            None
        }
        Some(f) => {
            let own = f.checked(problems, check_dns_label);
            if let Some(own) = own.as_deref().filter(|own| home.only && *own != home.namespace) {
                f.fail(
                    problems,
                    format_args!(
                        "the object is of namespace {own}, and {} was asked for; leave out one of them",
                        home.namespace
                    ),
                );
            }
            own
        }
        None if of_cluster => Some(String::new()),
        None => Some(home.namespace.to_owned()),
    };
    let mut map = |name: &str, problems: &mut Problems| {
        object
            .take(name)
            .and_then(|f| f.text_map(problems))
            .unwrap_or_default()
    };
    let labels = map("labels", problems);
    let annotations = map("annotations", problems);
    let created = object.take("creationTimestamp").and_then(|f| {
        let text = f.text(problems)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).ok();
        let seconds = time.and_then(|t| u64::try_from(t.unix_timestamp()).ok());
        if seconds.is_none() {
            f.fail(
                problems,
                format_args!("{text:?} is no time such as 2026-01-31T12:00:00Z"),
            );
        }
        seconds
    });
    let generation = object.take("generation").and_then(|f| {
        let number = match f.node.value {
            Value::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        };
        if number.is_none() {
            f.fail(problems, "must be a number that is not negative");
        }
        number
    });
    // Written by clusters, present in what `kubectl get -o yaml` prints.
    object.ignore(&[
        "uid",
        "generateName",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
    ]);
    object.finish(problems);
    Some(Meta {
        namespace: namespace?,
        name: name?,
        labels,
        annotations,
        created,
        generation,
    })
}
