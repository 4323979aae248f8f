//! Reading typed fields out of a tree, collecting every problem instead of stopping at the first.

use crate::{
    Problem,
    tree::{Node, Value},
};
use std::{collections::BTreeMap, fmt::Display};

/// A file longer than this many problems is not worth reading on.
const MAX_PROBLEMS: usize = 100;

/// The problems of one file.
#[derive(Debug)]
pub(crate) struct Problems {
    file: String,
    found: Vec<Problem>,
}

impl Problems {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            found: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, line: u32, path: &str, text: impl Display) {
        if self.found.len() < MAX_PROBLEMS {
            self.found
                .push(Problem::new(&self.file, line, path, text.to_string()));
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    pub(crate) fn into_inner(self) -> Vec<Problem> {
        self.found
    }
}

/// A value with its path in the object: `spec.ingress[0].toPorts`.
#[derive(Debug, Clone)]
pub(crate) struct Field<'n> {
    pub node: &'n Node,
    pub path: String,
}

/// An object whose fields are taken one by one; what is left at the end is unknown.
#[derive(Debug)]
pub(crate) struct Object<'n> {
    pub path: String,
    pub line: u32,
    fields: BTreeMap<&'n str, (u32, &'n Node)>,
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

impl<'n> Field<'n> {
    pub(crate) fn root(node: &'n Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    pub(crate) fn fail(&self, problems: &mut Problems, text: impl Display) {
        problems.add(self.node.line, &self.path, text);
    }

    fn expected(&self, problems: &mut Problems, what: &str) {
        let hint = match (what, &self.node.value) {
            ("a text", Value::Bool(_) | Value::Integer(_) | Value::Float(_)) => "; put it in quotes",
            _ => "",
        };
        self.fail(
            problems,
            format_args!("must be {what}, found {}{hint}", self.node.value.kind()),
        );
    }

    pub(crate) fn text(&self, problems: &mut Problems) -> Option<String> {
        match &self.node.value {
            Value::Text(s) => Some(s.clone()),
            _ => {
                self.expected(problems, "a text");
                None
            }
        }
    }

    /// A text that must pass `check`.
    pub(crate) fn checked<E: Display>(
        &self,
        problems: &mut Problems,
        check: impl FnOnce(&str) -> Result<(), E>,
    ) -> Option<String> {
        let text = self.text(problems)?;
        match check(&text) {
            Ok(()) => Some(text),
            Err(e) => {
                self.fail(problems, e);
                None
            }
        }
    }

    pub(crate) fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match &self.node.value {
            Value::Bool(b) => Some(*b),
            _ => {
                self.expected(problems, "true or false");
                None
            }
        }
    }

    /// A port as a number or as digits in a text.
    pub(crate) fn port(&self, problems: &mut Problems) -> Option<u16> {
        let number = match &self.node.value {
            Value::Integer(i) => u16::try_from(*i).ok(),
            Value::Text(s) if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) => s.parse().ok(),
            _ => {
                self.expected(problems, "a port number");
                return None;
            }
        };
        if number.is_none() {
            self.fail(problems, "must be a port number from 0 to 65535");
        }
        number
    }

    pub(crate) fn list(&self, problems: &mut Problems) -> Option<Vec<Field<'n>>> {
        let Value::List(items) = &self.node.value else {
            self.expected(problems, "a list");
            return None;
        };
        let item = |(i, node): (usize, &'n Node)| Field {
            node,
            path: format!("{}[{i}]", self.path),
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    pub(crate) fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }

    pub(crate) fn texts(&self, problems: &mut Problems) -> Option<Vec<String>> {
        let items = self.list(problems)?;
        Some(items.iter().filter_map(|i| i.text(problems)).collect())
    }

    pub(crate) fn object(&self, problems: &mut Problems) -> Option<Object<'n>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(problems, "an object");
            return None;
        };
        let fields = entries
            .iter()
            .map(|(k, line, v)| (k.as_str(), (*line, v)))
            .collect();
        Some(Object {
            path: self.path.clone(),
            line: self.node.line,
            fields,
        })
    }

    /// Keys and text values, as labels and annotations are.
    pub(crate) fn text_map(&self, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
        let Value::Map(entries) = &self.node.value else {
            self.expected(problems, "an object");
            return None;
        };
        let mut map = BTreeMap::new();
        for (key, _, node) in entries {
            let field = Field {
                node,
                path: join(&self.path, key),
            };
            if let Some(text) = field.text(problems) {
                map.insert(key.clone(), text);
            }
        }
        Some(map)
    }
}

impl<'n> Object<'n> {
    /// Takes a field; `null` counts as absent, as in Kubernetes.
    pub(crate) fn take(&mut self, name: &str) -> Option<Field<'n>> {
        let (_, node) = self.fields.remove(name)?;
        (!matches!(node.value, Value::Null)).then(|| Field {
            node,
            path: join(&self.path, name),
        })
    }

    /// Takes a field that must be there.
    pub(crate) fn need(&mut self, name: &str, problems: &mut Problems) -> Option<Field<'n>> {
        let field = self.take(name);
        if field.is_none() {
            problems.add(self.line, &join(&self.path, name), "is required");
        }
        field
    }

    /// Accepts fields that have no meaning here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.fields.remove(*name);
        }
    }

    /// Refuses fields that the standard has and this version does not do: silently dropping them would
    /// make something else of the object than its author wrote.
    pub(crate) fn unsupported(&mut self, names: &[&str], problems: &mut Problems) {
        for name in names {
            if let Some(field) = self.take(name) {
                field.fail(problems, "is not supported yet");
            }
        }
    }

    /// Reports what nobody took.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for (name, (line, _)) in self.fields {
            problems.add(line, &join(&self.path, name), "unknown field");
        }
    }
}
