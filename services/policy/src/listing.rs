//! Objects with their status, page by page. No I/O.

use crate::world::{ObjectKey, World};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::Kind;

/// A page ends after so many objects or bytes: a message must not become larger than callers take.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Names a place between pages.
fn token(key: &ObjectKey) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

/// `None` for what is no place: such a page is the first one.
fn key(token: &str) -> Option<ObjectKey> {
    let (kind, rest) = token.split_once('/')?;
    let (namespace, name) = rest.split_once('/')?;
    Some(ObjectKey {
        kind: Kind::ALL.into_iter().find(|k| k.name() == kind)?,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The objects that are asked for, and where the next page begins; empty when this is the last one.
pub(crate) fn page(world: &World, request: &pb::ListRequest) -> (Vec<pb::ResourceStatus>, String) {
    let meant = |key: &ObjectKey| {
        (request.kind.is_empty() || key.kind.name() == request.kind)
            && (request.namespace.is_empty() || key.namespace == request.namespace)
            && (request.name.is_empty() || key.name == request.name)
    };
    let (mut resources, mut bytes) = (Vec::new(), 0);
    let after = key(&request.after);
    for key in world.objects_after(after.as_ref()).filter(meant) {
        let Some(object) = world.show(&key) else { continue };
        let object = object.to_string().into_bytes();
        bytes += object.len();
        resources.push(pb::ResourceStatus {
            api_version: key.kind.api_version().to_owned(),
            kind: key.kind.name().to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            origin: world.origin(&key),
            accepted: true,
            errors: Vec::new(),
            object_json: object,
        });
        if resources.len() == PAGE || bytes >= PAGE_BYTES {
            return (resources, token(&key));
        }
    }
    (resources, String::new())
}
