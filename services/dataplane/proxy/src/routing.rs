//! Routes and gateways together, as updates of the policy service change them.

use crate::{Listeners, listeners::Gateways, routes::Routes};
use std::{collections::BTreeSet, sync::Arc};
use weft_proto::weft::policy::v1::{self as pb, resource::Body};

/// What became of an update.
#[derive(Debug, Default)]
pub struct Applied {
    /// What of it is not in force; each line is for the operator.
    pub problems: Vec<String>,
    /// Services (`<namespace>/<name>`) whose connections are to be taken, or are not any more.
    pub services: BTreeSet<String>,
}

/// All routes and gateways that a node knows. One task writes.
#[derive(Debug, Default)]
pub struct Routing {
    routes: Routes,
    gateways: Gateways,
}

impl Routing {
    /// Takes the gateways and routes out of an update. What can not be used is named; a route that
    /// can not be stays as it was.
    pub fn apply(&self, update: &pb::SubscribeResponse) -> Applied {
        let name = |resource: &pb::Resource| {
            resource
                .key
                .as_ref()
                .map(|key| key.name.clone())
                .unwrap_or_default()
        };
        let (mut routes, mut gateways) = (Vec::new(), Vec::new());
        for resource in &update.upserts {
            match &resource.body {
                Some(Body::Route(route)) => routes.push((name(resource), route)),
                Some(Body::Gateway(gateway)) => gateways.push((name(resource), gateway)),
                _ => {}
            }
        }
        let removed = |kind: &'static str| {
            let of_kind = move |key: &&pb::ResourceKey| key.kind == kind;
            update.removes.iter().filter(of_kind).map(|key| key.name.as_str())
        };
        let snapshot = update.snapshot;
        let (gone_routes, gone_gateways) = (removed("route"), removed("gateway"));
        let mut applied = Applied::default();
        if snapshot || !gateways.is_empty() || gone_gateways.clone().next().is_some() {
            let upserts = gateways.iter().map(|(key, gateway)| (key.as_str(), *gateway));
            let before = self.gateways.services();
            applied.problems = self
                .gateways
                .apply(&self.routes, snapshot, upserts, gone_gateways);
            let after = self.gateways.services();
            applied.services = before.symmetric_difference(&after).cloned().collect();
        }
        if snapshot || !routes.is_empty() || gone_routes.clone().next().is_some() {
            let upserts = routes.iter().map(|(key, route)| (key.as_str(), *route));
            let (problems, services) = self.routes.apply(snapshot, upserts, gone_routes);
            applied.problems.extend(problems);
            applied.services.extend(services);
        }
        applied
    }

    /// The routes themselves.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether requests to a Service are routed one by one, so that connections to it are to be
    /// taken.
    pub fn takes(&self, namespace: &str, service: &str) -> bool {
        self.routes.has_service(namespace, service) || self.gateways.has_service(namespace, service)
    }

    /// The listeners at a port of the Service that was made for a gateway.
    pub fn gateway(&self, namespace: &str, service: &str, port: u16) -> Option<Arc<Listeners>> {
        self.gateways.of_service(namespace, service, port)
    }

    /// All listeners at a port of the node, now and as they change.
    pub fn node_port(&self, port: u16) -> Arc<Listeners> {
        self.gateways.of_node(port)
    }

    /// The ports that gateways want of each node.
    pub fn node_ports(&self) -> BTreeSet<u16> {
        self.gateways.ports()
    }
}
