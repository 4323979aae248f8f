//! Field masks: which fields of a flow are sent.

use super::json::{self, JsonError};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use std::collections::BTreeMap;
use weft_proto::hubble::flow::Flow;

/// Paths of one mask.
const MAX_PATHS: usize = 256;
/// Longest path.
const MAX_PATH_BYTES: usize = 256;

/// Why a mask can not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// No such field.
    #[error("field mask: a flow has no field {0:?}")]
    Unknown(String),
    /// It goes on below a field that has no fields.
    #[error("field mask: {0:?} has no fields of its own")]
    NoMessage(String),
    /// Too many or too long paths.
    #[error("field mask: at most {MAX_PATHS} paths of {MAX_PATH_BYTES} bytes")]
    TooMuch,
    /// The descriptors.
    #[error("field mask: {0}")]
    Descriptors(#[from] JsonError),
}

/// Fields that are kept.
#[derive(Debug, Clone)]
pub struct Mask {
    message: MessageDescriptor,
    keep: Tree,
}

/// By field number; an empty one keeps all below it.
#[derive(Debug, Clone, Default)]
struct Tree(BTreeMap<u32, Tree>);

impl Mask {
    /// Of these paths ("source.identity"); `None` when there are none: everything is kept.
    pub fn new<T: AsRef<str>>(paths: &[T]) -> Result<Option<Self>, MaskError> {
        if paths.len() > MAX_PATHS || paths.iter().any(|p| p.as_ref().len() > MAX_PATH_BYTES) {
            return Err(MaskError::TooMuch);
        }
        if paths.is_empty() {
            return Ok(None);
        }
        let message = json::descriptor("flow.Flow")?;
        let mut keep = Tree::default();
        for path in paths {
            put(&mut keep, &message, path.as_ref())?;
        }
        Ok(Some(Self { message, keep }))
    }

    /// What of `flow` is kept.
    pub fn apply(&self, flow: &Flow) -> Flow {
        let mut dynamic = DynamicMessage::new(self.message.clone());
        // Both are of the same descriptors; should they not be, nothing is better than all.
        if dynamic.transcode_from(flow).is_err() {
            return Flow::default();
        }
        prune(&mut dynamic, &self.keep);
        dynamic.transcode_to().unwrap_or_default()
    }
}

fn put(keep: &mut Tree, message: &MessageDescriptor, path: &str) -> Result<(), MaskError> {
    let (mut tree, mut message) = (keep, Some(message.clone()));
    let mut words = path.split('.').peekable();
    while let Some(word) = words.next() {
        let within = message.ok_or_else(|| MaskError::NoMessage(path.into()))?;
        let field = within
            .get_field_by_name(word)
            .ok_or_else(|| MaskError::Unknown(path.into()))?;
        let is_new = !tree.0.contains_key(&field.number());
        let below = tree.0.entry(field.number()).or_default();
        if words.peek().is_none() {
            // The whole field, whatever was asked of it before.
            below.0.clear();
            return Ok(());
        }
        if !is_new && below.0.is_empty() {
            // All of it is kept already; the rest of the path must exist all the same.
            let mut aside = Tree::default();
            let rest: Vec<&str> = words.collect();
            let next = message_of(&field).ok_or_else(|| MaskError::NoMessage(path.into()))?;
            return put(&mut aside, &next, &rest.join(".")).map_err(|e| renamed(e, path));
        }
        message = message_of(&field);
        tree = below;
    }
    Ok(())
}

/// An error of the rest of a path is one of the path.
fn renamed(error: MaskError, path: &str) -> MaskError {
    match error {
        MaskError::Unknown(_) => MaskError::Unknown(path.into()),
        MaskError::NoMessage(_) => MaskError::NoMessage(path.into()),
        other => other,
    }
}

/// What a field holds, when it is one message.
fn message_of(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !field.is_list() && !field.is_map() => Some(message),
        _ => None,
    }
}

fn prune(message: &mut DynamicMessage, keep: &Tree) {
    let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        match keep.0.get(&field.number()) {
            None => message.clear_field(&field),
            Some(below) if below.0.is_empty() => {}
            Some(below) => {
                if let Value::Message(inner) = message.get_field_mut(&field) {
                    prune(inner, below);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_proto::hubble::flow as pb;

    fn flow() -> Flow {
        Flow {
            summary: "TCP Flags: SYN".into(),
            node_name: "n1".into(),
            source: Some(pb::Endpoint {
                identity: 300,
                pod_name: "shop".into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            source_names: vec!["a".into()],
            ..Default::default()
        }
    }

    #[test]
    fn only_what_is_named_is_kept() {
        let mask = Mask::new(&["source.identity", "Summary"]).unwrap().unwrap();
        let kept = mask.apply(&flow());
        let expected = Flow {
            summary: "TCP Flags: SYN".into(),
            source: Some(pb::Endpoint {
                identity: 300,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(kept, expected);
        // A field and part of it: all of it, in either order.
        for paths in [["source", "source.identity"], ["source.identity", "source"]] {
            let kept = Mask::new(&paths).unwrap().unwrap().apply(&flow());
            assert_eq!(kept.source, flow().source);
        }
        assert!(Mask::new::<&str>(&[]).unwrap().is_none());
    }

    #[test]
    fn what_a_flow_does_not_have_is_named() {
        for (path, says) in [
            ("sauce", "sauce"),
            ("", "\"\""),
            ("source.identities", "source.identities"),
            ("Summary.x", "no fields"),
            ("source_names.x", "no fields"),
        ] {
            let error = Mask::new(&[path]).unwrap_err().to_string();
            assert!(error.contains(says), "{path}: {error}");
            let after = Mask::new(&["source", path]).map(|_| ());
            assert!(after.is_err(), "{path}");
        }
        assert!(Mask::new(&["source", "source.nothing"]).is_err());
        assert!(Mask::new(&vec!["time"; MAX_PATHS + 1]).is_err());
        assert!(Mask::new(&["a".repeat(MAX_PATH_BYTES + 1)]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_breaks_it(paths in proptest::collection::vec(prop_oneof![any::<String>(), "[a-z_.4lIP]{0,12}"], 0..6)) {
            if let Ok(Some(mask)) = Mask::new(&paths) {
                mask.apply(&flow());
            }
        }
    }
}
