//! `ReferenceGrant`: who of another namespace may name objects of this one.

use super::{refs, text::items};
use crate::fields::{Field, Object, Problems};
use weft_model::check_dns_label;

/// Any of `from` may name any of `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who refers.
    pub from: Vec<GrantFrom>,
    /// To what, in the namespace of the grant.
    pub to: Vec<GrantTo>,
}

/// Objects of a kind in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Where they are.
    pub namespace: String,
}

/// One object of a kind, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantTo {
    /// API group; empty for the core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Absent for all of the namespace.
    pub name: Option<String>,
}

impl Grant {
    /// Whether an object of this group, kind and namespace may name that one.
    pub fn permits(&self, from: (&str, &str, &str), to: (&str, &str, &str)) -> bool {
        let (group, kind, namespace) = from;
        let may = |f: &GrantFrom| f.group == group && f.kind == kind && f.namespace == namespace;
        let (group, kind, name) = to;
        let meant =
            |t: &GrantTo| t.group == group && t.kind == kind && t.name.as_ref().is_none_or(|n| n == name);
        self.from.iter().any(may) && self.to.iter().any(meant)
    }
}

pub(crate) fn read(object: &mut Object<'_>, problems: &mut Problems) -> Option<Grant> {
    let mut spec = object.need("spec", problems)?.object(problems)?;
    let mut list = |name: &str, problems: &mut Problems| {
        let field = spec.need(name, problems);
        let all = items(field.clone(), 16, problems);
        if let Some(field) = field.filter(|_| all.is_empty()) {
            field.fail(problems, "must have an element");
        }
        all
    };
    let (from, to) = (list("from", problems), list("to", problems));
    spec.finish(problems);
    Some(Grant {
        from: from.iter().filter_map(|f| read_from(f, problems)).collect(),
        to: to.iter().filter_map(|f| read_to(f, problems)).collect(),
    })
}

fn read_from(field: &Field<'_>, problems: &mut Problems) -> Option<GrantFrom> {
    let mut object = field.object(problems)?;
    let group = object
        .need("group", problems)
        .and_then(|f| refs::group(&f, problems));
    let kind = object
        .need("kind", problems)
        .and_then(|f| refs::kind(&f, problems));
    let namespace = object
        .need("namespace", problems)
        .and_then(|f| f.checked(problems, check_dns_label));
    object.finish(problems);
    Some(GrantFrom {
        group: group?,
        kind: kind?,
        namespace: namespace?,
    })
}

fn read_to(field: &Field<'_>, problems: &mut Problems) -> Option<GrantTo> {
    let mut object = field.object(problems)?;
    let group = object
        .need("group", problems)
        .and_then(|f| refs::group(&f, problems));
    let kind = object
        .need("kind", problems)
        .and_then(|f| refs::kind(&f, problems));
    let name = object.take("name").map(|f| refs::name(&f, problems));
    object.finish(problems);
    Some(GrantTo {
        group: group?,
        kind: kind?,
        name: match name {
            Some(name) => Some(name?),
            None => None,
        },
    })
}
