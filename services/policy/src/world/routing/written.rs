//! Statuses that are this service's to write into a cluster: of policies, and of what is attached to
//! Gateways and classes of its controllers.

use super::gateway::{self, Class};
use crate::world::{ObjectKey, World};
use serde_json::Value;
use weft_resources::Kind;

/// Objects looked at in one go.
const PAGE: usize = 200;

/// In this order; gateways before what is attached to them.
const KINDS: [Kind; 8] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::Ingress,
    Kind::CiliumNetworkPolicy,
    Kind::CiliumClusterwideNetworkPolicy,
];

/// An object with the status that it should have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    pub key: ObjectKey,
    pub status: Value,
    /// Of a Gateway: the controller's name.
    pub controller: Option<&'static str>,
}

impl World {
    /// Some of them, from after a key on, and where the next ones begin.
    pub(crate) fn statuses(&self, after: Option<&ObjectKey>) -> (Vec<Written>, Option<ObjectKey>) {
        let from = after.map_or(0, |key| KINDS.iter().position(|k| *k == key.kind).unwrap_or(0));
        let (mut written, mut looked) = (Vec::new(), 0);
        for kind in &KINDS[from..] {
            let first = ObjectKey {
                kind: *kind,
                namespace: String::new(),
                name: String::new(),
            };
            let start = after.filter(|key| key.kind == *kind).unwrap_or(&first);
            for (key, _) in self
                .seen
                .after(Some(start))
                .take_while(|(key, _)| key.kind == *kind)
            {
                written.extend(self.written(key));
                looked += 1;
                if looked == PAGE {
                    return (written, Some(key.clone()));
                }
            }
        }
        (written, None)
    }

    fn written(&self, key: &ObjectKey) -> Option<Written> {
        let name = (key.namespace.clone(), key.name.clone());
        let mut controller = None;
        match key.kind {
            Kind::GatewayClass => {
                let class = gateway::class(&key.name, self.routing.classes.get(&key.name));
                if class == Class::Other {
                    return None;
                }
            }
            Kind::Gateway => controller = Some(self.routing.gateways.get(&name)?.controller?),
            _ => {}
        }
        let status = self.status(key, &name, self.seen.generation(key))?;
        Some(Written {
            key: key.clone(),
            status,
            controller,
        })
    }
}
