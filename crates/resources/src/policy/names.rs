//! Names in DNS that rules mean: `toFQDNs` and `rules.dns`, which are written alike.

use super::MAX_NAME_RULES;
use crate::fields::{Field, Problems};
use std::sync::Arc;

/// DNS has no longer names.
const MAX_LENGTH: usize = 255;

/// Names that are meant: in lower case, without the dot at the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NameRule {
    /// `matchName`: this one.
    Name(String),
    /// `matchPattern`: a `*` stands for any letters, digits, `-` and `_` of one label, alone for every name;
    /// a leading `**.` for one label or several.
    Pattern(String),
}

impl NameRule {
    /// Checks a name or pattern and gives it its form; tells what is wrong with it.
    pub fn new(text: &str, is_pattern: bool) -> Result<Self, String> {
        let text = text.trim().to_ascii_lowercase();
        let name = text.strip_suffix('.').unwrap_or(&text);
        let sound = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || is_pattern && b == b'*';
        if name.len() > MAX_LENGTH {
            return Err(format!(
                "has {} characters, at most {MAX_LENGTH} are allowed",
                name.len()
            ));
        }
        if !name
            .split('.')
            .all(|label| !label.is_empty() && label.bytes().all(sound))
        {
            let also = if is_pattern { ", *" } else { "" };
            return Err(format!(
                "{text:?} is no name in DNS: labels of letters, digits, -, _{also}, with single dots between them"
            ));
        }
        if is_pattern && text == "*." {
            // One label to Cilium, where `*` is every name.
            return Ok(Self::Pattern("**".into()));
        }
        Ok(match is_pattern {
            true => Self::Pattern(name.to_owned()),
            false => Self::Name(name.to_owned()),
        })
    }
}

/// A list of `matchName` and `matchPattern`.
pub(super) fn read(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<NameRule>> {
    let items = field.list(problems)?;
    if items.len() > MAX_NAME_RULES {
        let found = items.len();
        field.fail(
            problems,
            format_args!("has {found} names and patterns, at most {MAX_NAME_RULES} are allowed"),
        );
        return None;
    }
    Some(items.iter().filter_map(|f| one(f, problems)).collect())
}

/// `rules.dns` of a port.
pub(super) fn queries(field: &Field<'_>, problems: &mut Problems) -> Option<Arc<[NameRule]>> {
    let rules = read(field, problems)?;
    if rules.is_empty() && field.list(problems).is_some_and(|items| items.is_empty()) {
        field.fail(
            problems,
            "names nothing that may be asked; leave rules out to mean all that is sent there, or write [{matchPattern: \"*\"}] for all names",
        );
    }
    Some(rules.into())
}

fn one(field: &Field<'_>, problems: &mut Problems) -> Option<NameRule> {
    let mut object = field.object(problems)?;
    let [name, pattern] = ["matchName", "matchPattern"].map(|part| object.take(part));
    object.finish(problems);
    let (field, is_pattern) = match (name, pattern) {
        (Some(name), None) => (name, false),
        (None, Some(pattern)) => (pattern, true),
        _ => {
            field.fail(problems, "must have one of matchName and matchPattern");
            return None;
        }
    };
    let text = field.text(problems)?;
    match NameRule::new(&text, is_pattern) {
        Ok(rule) => Some(rule),
        Err(reason) => {
            field.fail(problems, reason);
            None
        }
    }
}
