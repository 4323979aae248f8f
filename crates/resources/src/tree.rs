//! YAML (and JSON, which is a part of it) as a tree that knows the line of every value.
//!
//! Everything a file could cost is bounded before it is read: bytes, documents, depth, nodes, and how
//! often anchors are expanded.

use crate::{MAX_DOCUMENTS, MAX_FILE_BYTES, Problem};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;
use std::fmt;

/// Each level costs stack, in a debug build about 50 KiB of a thread's 2 MiB.
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 200_000;
/// A file that repeats one part by aliases may grow by this many parser events, not by powers.
const MAX_REPLAYED_EVENTS: usize = 50_000;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub line: u32,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Keys in the order of the file, each with its line. Duplicates are refused by the parser.
    Map(Vec<(String, u32, Node)>),
}

impl Value {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }
}

impl Node {
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Integer(i) => i64::try_from(*i)
                .map(Json::from)
                .or_else(|_| u64::try_from(*i).map(Json::from))
                .unwrap_or_else(|_| Json::String(i.to_string())),
            // Not-a-number has no form in JSON.
            Value::Float(f) => serde_json::Number::from_f64(*f).map_or(Json::Null, Json::Number),
            Value::Text(s) => Json::String(s.clone()),
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(k, _, v)| (k.clone(), v.to_json())).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let line = u32::try_from(spanned.referenced.line()).unwrap_or(u32::MAX);
        Ok(Self {
            line,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Integer(v))
    }

    fn visit_u128<E: serde::de::Error>(self, v: u128) -> Result<Value, E> {
        i128::try_from(v)
            .map(Value::Integer)
            .map_err(|_| E::custom(format!("number {v} is too large")))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Node>()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Node>()? {
            let name = match key.value {
                Value::Text(s) => s,
                Value::Bool(b) => b.to_string(),
                Value::Integer(i) => i.to_string(),
                other => {
                    return Err(A::Error::custom(format!(
                        "{} can not be a field's name",
                        other.kind()
                    )));
                }
            };
            entries.push((name, key.line, map.next_value::<Node>()?));
        }
        Ok(Value::Map(entries))
    }
}

/// Reads all documents of a file; documents without content are left out.
pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Vec<Node>, Problem> {
    if bytes.len() > MAX_FILE_BYTES {
        let text = format!(
            "{} bytes are above the limit of {MAX_FILE_BYTES}: split the file",
            bytes.len()
        );
        return Err(Problem::new(file, 1, "", text));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Problem::new(
            file,
            u32::try_from(line).unwrap_or(u32::MAX),
            "",
            "not UTF-8 text",
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 3,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
            max_replay_stack_depth: 16,
        },
        with_snippet: false,
    };
    let documents: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options).map_err(|e| {
        let line = e
            .location()
            .map_or(1, |l| u32::try_from(l.line()).unwrap_or(u32::MAX))
            .max(1);
        // The line is said once, by us.
        let text = e.without_snippet().to_string();
        let text = text.split(['\n']).next().unwrap_or_default().split(" at line ").next().unwrap_or_default();
        let costly = text.contains("budget") || text.contains("limit exceeded");
        let text = if costly {
            format!("{text}; a file may nest {MAX_DEPTH} levels and hold {MAX_DOCUMENTS} documents and {MAX_NODES} values")
        } else {
            text.to_owned()
        };
        Problem::new(file, line, "", text)
    })?;
    Ok(documents
        .into_iter()
        .filter(|d| !matches!(d.value, Value::Null))
        .collect())
}

/// JSON that was read elsewhere, under the same bounds; nothing in it has a line.
pub(crate) fn from_json(place: &str, json: &serde_json::Value) -> Result<Node, Problem> {
    let mut left = MAX_NODES;
    node(json, 0, &mut left).ok_or_else(|| {
        let text = format!("too large: an object may nest {MAX_DEPTH} levels and hold {MAX_NODES} values");
        Problem::new(place, 0, "", text)
    })
}

fn node(json: &serde_json::Value, depth: usize, left: &mut usize) -> Option<Node> {
    use serde_json::Value as Json;
    *left = left.checked_sub(1)?;
    if depth > MAX_DEPTH {
        return None;
    }
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), ..) => Value::Integer(i.into()),
            (None, Some(u), _) => Value::Integer(u.into()),
            (None, None, float) => Value::Float(float.unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::Text(s.clone()),
        Json::Array(items) => {
            let items = items.iter().map(|item| node(item, depth + 1, left));
            Value::List(items.collect::<Option<_>>()?)
        }
        Json::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| Some((name.clone(), 0, node(value, depth + 1, left)?)));
            Value::Map(fields.collect::<Option<_>>()?)
        }
    };
    Some(Node { line: 0, value })
}
