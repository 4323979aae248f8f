//! `Ingress`: requests from outside, by host and path.
//!
//! Only those of the classes that are served are read: what other controllers make of theirs is their
//! business.

use super::{
    http::wrong_path,
    refs,
    route::PathMatch,
    text::{Reader, bounded, hostname, items, port},
};
use crate::fields::{Field, Object, Problems};
use std::collections::BTreeMap;

/// The classes that are served.
const CLASSES: [&str; 2] = ["cilium", "weft"];
/// Where the class stood before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Annotations of Cilium that would mean TLS.
const TLS_ANNOTATIONS: [&str; 2] = [
    "ingress.cilium.io/tls-passthrough",
    "ingress.cilium.io/force-https",
];
/// Rules, and paths of one: the schema has no bound.
const MAX_RULES: usize = 256;
const MAX_PATHS: usize = 256;

/// Requests from outside and where they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Its class; empty for none.
    pub class: String,
    /// Whether that is one of ours. Of others nothing more is read.
    pub is_ours: bool,
    /// For requests that no rule means.
    pub default: Option<IngressBackend>,
    /// In order.
    pub rules: Vec<IngressRule>,
}

/// The paths of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRule {
    /// Absent for every host.
    pub host: Option<String>,
    /// In order.
    pub paths: Vec<IngressPath>,
}

/// Where requests for a path go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPath {
    /// Which paths. `ImplementationSpecific` is a regular expression, as Cilium has it.
    pub path: PathMatch,
    /// To whom.
    pub backend: IngressBackend,
}

/// A port of a Service of the Ingress's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressBackend {
    /// Its name.
    pub service: String,
    /// Its port.
    pub port: IngressPort,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngressPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

pub(crate) fn read(
    object: &mut Object<'_>,
    metadata: Option<&Field<'_>>,
    problems: &mut Problems,
) -> Option<Ingress> {
    // Read for its own sake elsewhere: here nothing of it is a problem twice.
    let mut unheard = Problems::new("");
    let annotations = metadata
        .and_then(|f| f.object(&mut unheard))
        .and_then(|mut meta| meta.take("annotations"));
    let values: BTreeMap<String, String> = annotations
        .as_ref()
        .and_then(|f| f.text_map(&mut unheard))
        .unwrap_or_default();
    let spec = object.need("spec", problems)?;
    let mut fields = spec.object(problems)?;
    let class = match fields.take("ingressClassName") {
        Some(f) => f.text(problems)?,
        None => values.get(CLASS_ANNOTATION).cloned().unwrap_or_default(),
    };
    if !CLASSES.contains(&class.as_str()) {
        return Some(Ingress {
            class,
            ..Ingress::default()
        });
    }
    if let Some(annotations) = annotations {
        for name in TLS_ANNOTATIONS {
            if values.get(name).is_some_and(|v| v != "disabled" && v != "false") {
                let path = format!("{}[{name}]", annotations.path);
                problems.add(annotations.node.line, &path, "is not supported yet");
            }
        }
    }
    let list = fields.take("tls");
    let secure = items(list.clone(), MAX_RULES, problems);
    if let Some(field) = list.filter(|_| !secure.is_empty()) {
        field.fail(
            problems,
            "is not supported yet: only requests without TLS are served",
        );
    }
    let default = fields.take("defaultBackend").map(|f| backend(&f, problems));
    let list = fields.take("rules");
    let rules: Vec<IngressRule> = items(list, MAX_RULES, problems)
        .iter()
        .filter_map(|f| rule(f, problems))
        .collect();
    fields.finish(problems);
    if default.is_none() && rules.is_empty() {
        spec.fail(problems, "needs rules or a defaultBackend");
    }
    Some(Ingress {
        class,
        is_ours: true,
        default: match default {
            Some(default) => Some(default?),
            None => None,
        },
        rules,
    })
}

fn rule(field: &Field<'_>, problems: &mut Problems) -> Option<IngressRule> {
    let mut object = field.object(problems)?;
    let host = object.take("host").map(|f| hostname(&f, true, problems));
    let mut paths = Vec::new();
    // A rule without paths sends all to the default backend, as no rule would.
    if let Some(mut http) = object.take("http").and_then(|f| f.object(problems)) {
        let list = http.need("paths", problems);
        for field in items(list, MAX_PATHS, problems) {
            paths.extend(path(&field, problems));
        }
        http.finish(problems);
    }
    object.finish(problems);
    Some(IngressRule {
        host: match host {
            Some(host) => Some(host?),
            None => None,
        },
        paths,
    })
}

fn path(field: &Field<'_>, problems: &mut Problems) -> Option<IngressPath> {
    let mut object = field.object(problems)?;
    let kind = object.need("pathType", problems).and_then(|f| {
        f.checked(problems, |text| match text {
            "Exact" | "Prefix" | "ImplementationSpecific" => Ok(()),
            _ => Err(format!(
                "{text:?} is none of Exact, Prefix, ImplementationSpecific"
            )),
        })
    });
    let written = object.take("path");
    let text = match &written {
        Some(f) => bounded(f, 0..=1024, problems),
        None => Some(String::new()),
    };
    let backend = object
        .need("backend", problems)
        .and_then(|f| backend(&f, problems));
    object.finish(problems);
    let (kind, text) = (kind?, text?);
    let at = written.as_ref().unwrap_or(field);
    let path = match kind.as_str() {
        "ImplementationSpecific" if text.is_empty() => PathMatch::Prefix("/".into()),
        "ImplementationSpecific" => {
            let mut reader = Reader::new(problems);
            reader.pattern(at, &text);
            for wrong in std::mem::take(&mut reader.unsupported) {
                let wrong = wrong
                    .strip_prefix(&format!("{}: ", at.path))
                    .unwrap_or(&wrong)
                    .to_owned();
                at.fail(problems, wrong);
            }
            PathMatch::Pattern(text)
        }
        _ => {
            if let Some(wrong) = wrong_path(&text) {
                at.fail(problems, format_args!("{text:?} {wrong}"));
                return None;
            }
            match kind.as_str() {
                "Exact" => PathMatch::Exact(text),
                _ => PathMatch::Prefix(text),
            }
        }
    };
    Some(IngressPath {
        path,
        backend: backend?,
    })
}

fn backend(field: &Field<'_>, problems: &mut Problems) -> Option<IngressBackend> {
    let mut object = field.object(problems)?;
    if let Some(resource) = object.take("resource") {
        resource.fail(problems, "is not supported: a backend is a Service");
        return None;
    }
    let mut service = object.need("service", problems)?.object(problems)?;
    let name = service
        .need("name", problems)
        .and_then(|f| refs::name(&f, problems));
    let found = service.need("port", problems).and_then(|field| {
        let mut one = field.object(problems)?;
        let number = one.take("number").map(|f| port(&f, problems));
        let name = one.take("name").map(|f| bounded(&f, 1..=63, problems));
        one.finish(problems);
        match (number, name) {
            (Some(number), None) => Some(IngressPort::Number(number?)),
            (None, Some(name)) => Some(IngressPort::Name(name?)),
            _ => {
                field.fail(problems, "needs a number or a name, and not both");
                None
            }
        }
    });
    service.finish(problems);
    object.finish(problems);
    Some(IngressBackend {
        service: name?,
        port: found?,
    })
}
