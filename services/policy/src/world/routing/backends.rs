//! What a route's references to backends mean.

use super::{
    backend_tls::BackendTlsPolicies,
    conditions::{Condition, line},
    is_service, name_in,
};
use crate::world::{ObjectKey, resources::Objects};
use std::collections::{BTreeMap, BTreeSet};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{
    Grant,
    gateway::{BackendTarget, GROUP},
};

/// Values of `appProtocol` that no node speaks to a backend.
const UNSPOKEN: [&str; 2] = ["https", "kubernetes.io/wss"];

/// Looks up the backends of one route, and remembers what is wrong with them.
pub(super) struct Resolver<'w> {
    route: &'w ObjectKey,
    objects: &'w Objects,
    grants: &'w BTreeMap<String, BTreeMap<String, Grant>>,
    tls: &'w BackendTlsPolicies,
    problems: Vec<(&'static str, String)>,
    /// `<namespace>/<name>` of those that were found.
    pub services: BTreeSet<String>,
}

impl<'w> Resolver<'w> {
    pub(super) fn new(
        route: &'w ObjectKey,
        objects: &'w Objects,
        grants: &'w BTreeMap<String, BTreeMap<String, Grant>>,
        tls: &'w BackendTlsPolicies,
    ) -> Self {
        Self {
            route,
            objects,
            grants,
            tls,
            problems: Vec::new(),
            services: BTreeSet::new(),
        }
    }

    pub(super) fn resolve(&mut self, target: &BackendTarget) -> Option<pb::RouteBackendRef> {
        match self.find(target) {
            Ok(found) => {
                self.services
                    .insert(format!("{}/{}", found.namespace, found.service));
                Some(found)
            }
            Err((reason, text)) => {
                self.problems.push((reason, format!("{}: {text}", target.path)));
                None
            }
        }
    }

    fn find(&self, target: &BackendTarget) -> Result<pb::RouteBackendRef, (&'static str, String)> {
        let own = &self.route.namespace;
        if !is_service(&target.group, &target.kind) {
            let text = format!(
                "a {} of {:?} can be no backend; use a Service",
                target.kind, target.group
            );
            return Err(("InvalidKind", text));
        }
        let (namespace, name) = name_in(own, target.namespace.as_ref(), &target.name);
        if namespace != *own {
            let from = (GROUP, self.route.kind.name(), own.as_str());
            let mut grants = self.grants.get(&namespace).into_iter().flatten();
            // Said before whether it is there: whoever may not refer to it may not ask either.
            if !grants.any(|(_, grant)| grant.permits(from, ("", "Service", &name))) {
                let text = format!("no ReferenceGrant of namespace {namespace} permits Service {name}");
                return Err(("RefNotPermitted", text));
            }
        }
        let missing = |text: String| ("BackendNotFound", text);
        let service = self
            .objects
            .service(&namespace, &name)
            .ok_or_else(|| missing(format!("there is no Service {namespace}/{name}")))?;
        let port = target.port.unwrap_or_default();
        let found = service.ports.iter().find(|p| p.port == port && p.protocol == 6);
        let found =
            found.ok_or_else(|| missing(format!("Service {namespace}/{name} has no TCP port {port}")))?;
        if UNSPOKEN.contains(&found.app_protocol.as_str()) {
            let text = format!(
                "appProtocol {} of Service {namespace}/{name} is not supported",
                found.app_protocol
            );
            return Err(("UnsupportedProtocol", text));
        }
        // In clear is not what its author wants.
        if let Some(policy) = self.tls.demanded(&namespace, &name, &found.name) {
            let text = format!(
                "BackendTLSPolicy {namespace}/{policy} demands TLS to Service {namespace}/{name}, which is not supported"
            );
            return Err(("UnsupportedProtocol", text));
        }
        Ok(pb::RouteBackendRef {
            namespace,
            service: name,
            port: port.into(),
        })
    }

    /// `ResolvedRefs`.
    pub(super) fn condition(&self) -> Condition {
        match self.problems.first() {
            None => Condition::yes("ResolvedRefs", "ResolvedRefs", "all references are known"),
            Some((reason, _)) => {
                let texts: Vec<String> = self.problems.iter().map(|(_, text)| text.clone()).collect();
                Condition::no("ResolvedRefs", reason, line(&texts))
            }
        }
    }
}
