//! Every condition with what brings it about and a twin without; what of it nodes get, and which.
#![allow(clippy::unwrap_used)]

mod gateways;
mod nodes;
mod precedence;
mod routes;

use super::{node::WINDOW, *};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use weft_resources::Kind as Of;

const BASE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: infra}
spec:
  gatewayClassName: cilium
  listeners:
    - name: http
      hostname: '*.example.com'
      port: 80
      protocol: HTTP
      allowedRoutes: {namespaces: {from: All}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: web, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: else}
spec: {selector: {app: far}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{name: gw, namespace: infra}]
  hostnames: [shop.example.com]
  rules:
    - backendRefs: [{name: cart, port: 80}]
";

const GRANT: &str = "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: else}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service, name: far}]
";

fn key(kind: Of, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn apply(world: &mut World, text: &str) {
    let all = weft_resources::parse("f", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
    for object in all.into_iter().map(Arc::new) {
        world.set_object(&ObjectKey::of(&object), Some(&object));
    }
    world.settle();
}

fn world(text: &str) -> World {
    let mut world = World::new(TrustDomain::default(), "e".into());
    world.set_time(100);
    world.give_addresses_of(vec!["10.96.0.0/12".parse().unwrap()]);
    apply(&mut world, text);
    world
}

/// Replaces what must be there.
fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not there");
    text.replace(from, to)
}

/// `status` and `reason` of a condition.
fn condition(of: &Value, kind: &str) -> (String, String) {
    let all = of["conditions"].as_array().unwrap();
    let one = all.iter().find(|c| c["type"] == kind).unwrap();
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    assert!(
        !text("message").is_empty() && one["observedGeneration"] == 1,
        "{one}"
    );
    (text("status"), text("reason"))
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

/// What is said of the route's first parent, and whether nodes get it.
fn route(text: &str) -> ((String, String), (String, String), bool) {
    let world = world(text);
    let object = world.show(&key(Of::HttpRoute, "shop", "cart")).unwrap();
    let parent = &object["status"]["parents"][0];
    let sent = world
        .routing
        .resource(&Key::new(Kind::Route, "HTTPRoute/shop/cart"))
        .is_some();
    (
        condition(parent, "Accepted"),
        condition(parent, "ResolvedRefs"),
        sent,
    )
}

fn wire_route(world: &World) -> pb::Route {
    let resource = world
        .routing
        .resource(&Key::new(Kind::Route, "HTTPRoute/shop/cart"))
        .unwrap();
    let Some(pb::resource::Body::Route(route)) = resource.body.clone() else {
        panic!("{resource:?}")
    };
    route
}

fn gateway(text: &str) -> (World, Value) {
    let mut world = world(text);
    world.note_programmed();
    let object = world.show(&key(Of::Gateway, "infra", "gw")).unwrap();
    (world, object["status"].clone())
}

/// Listeners that nodes get.
fn listeners(world: &World) -> Vec<String> {
    match world.routing.resource(&Key::new(Kind::Gateway, "infra/gw")) {
        Some(resource) => match &resource.body {
            Some(pb::resource::Body::Gateway(g)) => g.listeners.iter().map(|l| l.name.clone()).collect(),
            other => panic!("{other:?}"),
        },
        None => Vec::new(),
    }
}

/// A node's stream, and what it acknowledges.
struct Stream {
    number: u64,
    updates: mpsc::Receiver<pb::SubscribeResponse>,
}

fn connect(world: &mut World, node: &str, number: u64) -> Stream {
    let (sender, updates) = mpsc::channel(WINDOW + 1);
    let session = Session {
        number,
        updates: sender,
        software: String::new(),
        connected_at: std::time::SystemTime::now(),
        _held: oneshot::channel().0,
    };
    world.connect(node, session, &pb::Hello::default());
    Stream { number, updates }
}

impl Stream {
    fn take(&mut self, world: &mut World, node: &str) -> Vec<pb::SubscribeResponse> {
        let mut all = Vec::new();
        while let Ok(update) = self.updates.try_recv() {
            world.ack(node, self.number, update.version);
            all.push(update);
        }
        all
    }
}

fn host(world: &mut World, node: &str, namespace: &str, app: &str) {
    let message = pb::Workload {
        id: format!("{node}/{namespace}/{app}/1"),
        node: node.into(),
        namespace: namespace.into(),
        name: app.into(),
        kind: pb::WorkloadKind::Process.into(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Default::default()
    };
    let planned = world.plan_registration(node, message, 0).unwrap();
    world.register(planned, 0);
    world.settle();
}

fn named(update: &pb::SubscribeResponse) -> Vec<String> {
    let keys = update.upserts.iter().filter_map(|r| r.key.clone());
    keys.map(|k| format!("{} {}", k.kind, k.name))
        .chain(update.removes.iter().map(|k| format!("-{} {}", k.kind, k.name)))
        .collect()
}
