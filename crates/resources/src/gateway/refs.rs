//! References: to parents of routes, and to backends.

use super::{
    GROUP,
    text::{bounded, items, port},
};
use crate::fields::{Field, Object, Problems};
use weft_model::{check_dns_label, check_name};

/// Where a route wants to be attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParentRef {
    /// API group; empty for the core, as of Services.
    pub group: String,
    /// `Gateway` or `Service`, or what somebody else knows.
    pub kind: String,
    /// Absent: the route's own.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A listener of a Gateway, a port's name of a Service.
    pub section: Option<String>,
    /// Only this port.
    pub port: Option<u16>,
}

/// What receives requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTarget {
    /// Where it stands: `spec.rules[0].backendRefs[1]`.
    pub path: String,
    /// API group; empty for the core, as of Services.
    pub group: String,
    /// `Service`, or what somebody else knows.
    pub kind: String,
    /// Absent: the route's own.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Always there for Services.
    pub port: Option<u16>,
}

pub(super) fn group(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if !text.is_empty() && check_name(&text).is_err() {
        field.fail(problems, format_args!("{text:?} is no API group such as {GROUP}"));
        return None;
    }
    Some(text)
}

pub(super) fn kind(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = bounded(field, 1..=63, problems)?;
    let bytes = text.as_bytes();
    let sound = bytes[0].is_ascii_alphabetic()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    if !sound {
        field.fail(problems, format_args!("{text:?} is no kind such as HTTPRoute"));
        return None;
    }
    Some(text)
}

pub(super) fn name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    bounded(field, 1..=253, problems)
}

/// Takes what can be absent: `Some(None)` when it is, `None` when it is wrong.
fn optional<T>(
    object: &mut Object<'_>,
    name: &str,
    problems: &mut Problems,
    read: impl FnOnce(&Field<'_>, &mut Problems) -> Option<T>,
) -> Option<Option<T>> {
    match object.take(name) {
        Some(field) => read(&field, problems).map(Some),
        None => Some(None),
    }
}

pub(super) fn parents(spec: &mut Object<'_>, problems: &mut Problems) -> Vec<ParentRef> {
    let list = spec.take("parentRefs");
    let mut parents: Vec<ParentRef> = Vec::new();
    for field in items(list, 32, problems) {
        let Some(parent) = parent(&field, problems) else {
            continue;
        };
        let same = |p: &&ParentRef| {
            (&p.group, &p.kind, &p.namespace, &p.name)
                == (&parent.group, &parent.kind, &parent.namespace, &parent.name)
        };
        for other in parents.iter().filter(same) {
            if (other.section.is_some(), other.port.is_some())
                != (parent.section.is_some(), parent.port.is_some())
            {
                field.fail(
                    problems,
                    "refers to a parent again: then all of them name a sectionName (or a port)",
                );
            } else if (&other.section, other.port) == (&parent.section, parent.port) {
                field.fail(problems, "refers to the same part of a parent again");
            }
        }
        parents.push(parent);
    }
    parents
}

fn parent(field: &Field<'_>, problems: &mut Problems) -> Option<ParentRef> {
    let mut object = field.object(problems)?;
    let group = optional(&mut object, "group", problems, group);
    let kind = optional(&mut object, "kind", problems, kind);
    let namespace = optional(&mut object, "namespace", problems, |f, p| {
        f.checked(p, check_dns_label)
    });
    let name = object.need("name", problems).and_then(|f| name(&f, problems));
    let section = optional(&mut object, "sectionName", problems, |f, p| {
        f.checked(p, check_name)
    });
    let port = optional(&mut object, "port", problems, port);
    object.finish(problems);
    Some(ParentRef {
        group: group?.unwrap_or_else(|| GROUP.into()),
        kind: kind?.unwrap_or_else(|| "Gateway".into()),
        namespace: namespace?,
        name: name?,
        section: section?,
        port: port?,
    })
}

/// The fields that every reference to a backend has; what else the object has is left in it.
pub(super) fn backend(
    object: &mut Object<'_>,
    path: String,
    problems: &mut Problems,
) -> Option<BackendTarget> {
    let group = optional(object, "group", problems, group);
    let kind = optional(object, "kind", problems, kind);
    let namespace = optional(object, "namespace", problems, |f, p| {
        f.checked(p, check_dns_label)
    });
    let name = object.need("name", problems).and_then(|f| name(&f, problems));
    let port = optional(object, "port", problems, port);
    let (group, kind) = (
        group?.unwrap_or_default(),
        kind?.unwrap_or_else(|| "Service".into()),
    );
    let port = port?;
    if group.is_empty() && kind == "Service" && port.is_none() {
        problems.add(object.line, &format!("{path}.port"), "is required for a Service");
        return None;
    }
    Some(BackendTarget {
        path,
        group,
        kind,
        namespace: namespace?,
        name: name?,
        port,
    })
}
