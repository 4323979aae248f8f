//! `BackendTLSPolicy`: that connections to a Service are to be TLS, and whom they must reach.

use super::{
    refs,
    text::{hostname, items},
};
use crate::fields::{Field, Object, Problems};
use weft_model::check_name;

/// What is demanded of connections to Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTls {
    /// Of which Services, in the policy's namespace.
    pub targets: Vec<BackendTlsTarget>,
    /// Whether it names certificates of authorities, and not those of the system.
    pub has_certificates: bool,
}

/// A Service, or one of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendTlsTarget {
    /// API group; empty for the core, as of Services.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Only the port of this name.
    pub section: Option<String>,
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<BackendTls> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let list = spec.need("targetRefs", problems);
    let fields = items(list.clone(), 16, problems);
    if let Some(list) = list.filter(|_| fields.is_empty()) {
        list.fail(problems, "must have an element");
    }
    let mut targets: Vec<BackendTlsTarget> = Vec::new();
    for field in &fields {
        let Some(new) = target(field, problems) else {
            continue;
        };
        let of_one =
            |t: &&BackendTlsTarget| (&t.group, &t.kind, &t.name) == (&new.group, &new.kind, &new.name);
        if let Some(old) = targets.iter().find(of_one) {
            if old.section.is_some() != new.section.is_some() {
                field.fail(
                    problems,
                    "refers to a target again: then all of them name a sectionName",
                );
            } else if targets.contains(&new) {
                field.fail(problems, "refers to the same part of a target again");
            }
        }
        targets.push(new);
    }
    let has_certificates = spec
        .need("validation", problems)
        .and_then(|f| validation(&f, problems));
    // What only some implementation knows.
    spec.ignore(&["options"]);
    spec.finish(problems);
    Some(BackendTls {
        targets,
        has_certificates: has_certificates?,
    })
}

fn target(field: &Field<'_>, problems: &mut Problems) -> Option<BackendTlsTarget> {
    let mut object = field.object(problems)?;
    let group = object
        .need("group", problems)
        .and_then(|f| refs::group(&f, problems));
    let kind = object
        .need("kind", problems)
        .and_then(|f| refs::kind(&f, problems));
    let name = object
        .need("name", problems)
        .and_then(|f| refs::name(&f, problems));
    let section = object
        .take("sectionName")
        .map(|f| f.checked(problems, check_name));
    object.finish(problems);
    Some(BackendTlsTarget {
        group: group?,
        kind: kind?,
        name: name?,
        section: match section {
            Some(section) => Some(section?),
            None => None,
        },
    })
}

/// Whether it names certificates.
fn validation(field: &Field<'_>, problems: &mut Problems) -> Option<bool> {
    let mut object = field.object(problems)?;
    let list = object.take("caCertificateRefs");
    let references = items(list, 8, problems);
    for reference in &references {
        let Some(mut one) = reference.object(problems) else {
            continue;
        };
        one.need("group", problems)
            .and_then(|f| refs::group(&f, problems));
        one.need("kind", problems).and_then(|f| refs::kind(&f, problems));
        one.need("name", problems).and_then(|f| refs::name(&f, problems));
        one.finish(problems);
    }
    let system = object.take("wellKnownCACertificates").map(|f| {
        f.checked(problems, |text| match text {
            "System" => Ok(()),
            _ => Err(format!("{text:?} is not System")),
        })
    });
    match (references.is_empty(), system.is_some()) {
        (false, true) => field.fail(problems, "has both caCertificateRefs and wellKnownCACertificates"),
        (true, false) => field.fail(problems, "needs caCertificateRefs or wellKnownCACertificates"),
        _ => {}
    }
    object
        .need("hostname", problems)
        .and_then(|f| hostname(&f, false, problems));
    let list = object.take("subjectAltNames");
    for name in items(list, 5, problems) {
        alternative(&name, problems);
    }
    object.finish(problems);
    Some(!references.is_empty())
}

fn alternative(field: &Field<'_>, problems: &mut Problems) -> Option<()> {
    let mut object = field.object(problems)?;
    let kind = object.need("type", problems).and_then(|f| {
        f.checked(problems, |text| match text {
            "Hostname" | "URI" => Ok(()),
            _ => Err(format!("{text:?} is neither Hostname nor URI")),
        })
    });
    let name = object.take("hostname").map(|f| hostname(&f, true, problems));
    let uri = object.take("uri").map(|f| f.text(problems));
    object.finish(problems);
    match (kind?.as_str(), name.is_some(), uri.is_some()) {
        ("Hostname", true, false) | ("URI", false, true) => {}
        (kind, ..) => field.fail(
            problems,
            format_args!(
                "type {kind} needs {} and nothing else",
                if kind == "URI" { "uri" } else { "hostname" }
            ),
        ),
    }
    Some(())
}
