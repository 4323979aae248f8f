//! Every condition with what brings it about and a twin without; what of it nodes get, and which.
#![allow(clippy::unwrap_used)]

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

#[test]
fn a_route_is_accepted_or_it_is_said_why_not() {
    let good = (pair("True", "Accepted"), pair("True", "ResolvedRefs"), true);
    assert_eq!(route(BASE), good);
    let parent = "parentRefs: [{name: gw, namespace: infra}]";
    let to = |more: &str| {
        with(
            BASE,
            parent,
            &format!("parentRefs: [{{name: gw, namespace: infra, {more}}}]"),
        )
    };
    let listener = |more: &str| {
        with(
            BASE,
            "allowedRoutes: {namespaces: {from: All}}",
            &format!("allowedRoutes: {more}"),
        )
    };
    let service = |more: &str| {
        with(
            BASE,
            parent,
            &format!("parentRefs: [{{group: '', kind: Service, {more}}}]"),
        )
    };
    let matching = |path: &str| {
        with(
            BASE,
            "    - backendRefs",
            &format!("    - matches: [{{path: {path}}}]\n      backendRefs"),
        )
    };
    let filter = |f: &str| {
        with(
            BASE,
            "    - backendRefs",
            &format!("    - filters: [{f}]\n      backendRefs"),
        )
    };
    // Each refused one beside an accepted one that differs in one thing.
    for (twin, refused, reason) in [
        (
            to("sectionName: http"),
            to("sectionName: https"),
            "NoMatchingParent",
        ),
        (to("port: 80"), to("port: 81"), "NoMatchingParent"),
        (
            to("sectionName: http, port: 80"),
            to("sectionName: http, port: 81"),
            "NoMatchingParent",
        ),
        (
            BASE.into(),
            with(BASE, "{name: gw, namespace: infra}]", "{name: gw}]"),
            "NoMatchingParent",
        ),
        (
            listener("{namespaces: {from: All}}"),
            listener("{namespaces: {from: Same}}"),
            "NotAllowedByListeners",
        ),
        (
            listener("{namespaces: {from: Selector, selector: {matchLabels: {team: red}}}}"),
            listener("{namespaces: {from: Selector, selector: {matchLabels: {team: blue}}}}"),
            "NotAllowedByListeners",
        ),
        (
            listener(
                "{namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: shop}}}}",
            ),
            listener(
                "{namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: infra}}}}",
            ),
            "NotAllowedByListeners",
        ),
        (
            listener(
                "{namespaces: {from: Selector, selector: {matchExpressions: [{key: gone, operator: DoesNotExist}]}}}",
            ),
            listener(
                "{namespaces: {from: Selector, selector: {matchExpressions: [{key: gone, operator: Exists}]}}}",
            ),
            "NotAllowedByListeners",
        ),
        (
            listener("{namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}"),
            listener("{namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}"),
            "NotAllowedByListeners",
        ),
        (
            BASE.into(),
            with(BASE, "'*.example.com'", "'*.example.org'"),
            "NoMatchingListenerHostname",
        ),
        (
            with(BASE, "'*.example.com'", "shop.example.com"),
            with(BASE, "'*.example.com'", "example.com"),
            "NoMatchingListenerHostname",
        ),
        (service("name: cart"), service("name: nobody"), "NoMatchingParent"),
        (
            service("name: cart, sectionName: web"),
            service("name: cart, sectionName: dns"),
            "NoMatchingParent",
        ),
        (
            service("name: cart, port: 80"),
            service("name: cart, port: 81"),
            "NoMatchingParent",
        ),
        (
            service("name: cart"),
            service("name: far, namespace: else"),
            "NotAllowedByListeners",
        ),
        (
            service("name: cart"),
            with(
                &service("name: cart"),
                "{selector: {app: cart},",
                "{clusterIP: None, selector: {app: cart},",
            ),
            "NoMatchingParent",
        ),
        (
            service("name: cart"),
            with(&service("name: cart"), "kind: Service, name", "kind: Mesh, name"),
            "NoMatchingParent",
        ),
        (
            matching("{type: RegularExpression, value: '/a(b|c)'}"),
            matching("{type: RegularExpression, value: '/a(b|c'}"),
            "UnsupportedValue",
        ),
        (
            matching("{type: Exact, value: /a}"),
            matching("{type: Glob, value: /a}"),
            "UnsupportedValue",
        ),
        (
            filter("{type: URLRewrite, urlRewrite: {hostname: a.test}}"),
            filter("{type: ExtensionRef, extensionRef: {group: a.test, kind: A, name: a}}"),
            "UnsupportedValue",
        ),
    ] {
        assert_eq!(route(&twin), good, "{twin}");
        let (accepted, resolved, sent) = route(&refused);
        assert_eq!((accepted, sent), (pair("False", reason), false), "{refused}");
        assert_eq!(resolved, pair("True", "ResolvedRefs"), "{refused}");
    }
}

#[test]
fn references_are_resolved_or_it_is_said_why_not() {
    let good = (pair("True", "Accepted"), pair("True", "ResolvedRefs"), true);
    let to = |backend: &str| with(BASE, "[{name: cart, port: 80}]", &format!("[{backend}]"));
    let far = to("{name: far, namespace: else, port: 80}");
    let granted = format!("{far}{GRANT}");
    let mirrored = |name: &str| {
        with(
            BASE,
            "    - backendRefs",
            &format!(
                "    - filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}}}}}]\n      backendRefs"
            ),
        )
    };
    let speaks = |protocol: &str| {
        with(
            BASE,
            "{name: web, port: 80}",
            &format!("{{name: web, port: 80, appProtocol: {protocol}}}"),
        )
    };
    for (twin, refused, reason) in [
        (BASE.into(), to("{name: nobody, port: 80}"), "BackendNotFound"),
        (BASE.into(), to("{name: cart, port: 81}"), "BackendNotFound"),
        (
            BASE.into(),
            with(
                BASE,
                "{name: web, port: 80}",
                "{name: web, port: 80, protocol: UDP}",
            ),
            "BackendNotFound",
        ),
        (
            BASE.into(),
            to("{kind: Bucket, name: cart, port: 80}"),
            "InvalidKind",
        ),
        (
            BASE.into(),
            to("{group: a.test, kind: Service, name: cart, port: 80}"),
            "InvalidKind",
        ),
        (granted.clone(), far.clone(), "RefNotPermitted"),
        (
            granted.clone(),
            with(&granted, "kind: Service, name: far", "kind: Service, name: cart"),
            "RefNotPermitted",
        ),
        (
            granted.clone(),
            with(
                &granted,
                "kind: HTTPRoute, namespace: shop",
                "kind: HTTPRoute, namespace: infra",
            ),
            "RefNotPermitted",
        ),
        (
            granted.clone(),
            with(
                &granted,
                "kind: HTTPRoute, namespace: shop",
                "kind: GRPCRoute, namespace: shop",
            ),
            "RefNotPermitted",
        ),
        (
            granted.clone(),
            with(
                &granted,
                "{name: far, namespace: else, port: 80}",
                "{name: far, namespace: else, port: 81}",
            ),
            "BackendNotFound",
        ),
        (mirrored("cart"), mirrored("nobody"), "BackendNotFound"),
        (
            speaks("kubernetes.io/h2c"),
            speaks("https"),
            "UnsupportedProtocol",
        ),
    ] {
        assert_eq!(route(&twin), good, "{twin}");
        // A route with a bad reference is attached all the same: its part of the requests is refused.
        let (accepted, resolved, sent) = route(&refused);
        assert_eq!((accepted, sent), (pair("True", "Accepted"), true), "{refused}");
        assert_eq!(resolved, pair("False", reason), "{refused}");
    }
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

#[test]
fn a_backend_that_is_not_permitted_is_sent_without_a_target_until_it_is() {
    let two = "[{name: cart, port: 80, weight: 9}, {name: far, namespace: else, port: 80}]";
    let text = with(BASE, "[{name: cart, port: 80}]", two);
    let mut world = world(&text);
    let targets = |world: &World| -> Vec<(bool, u32)> {
        let route = wire_route(world);
        let backends = route.rules[0].backends.iter();
        backends.map(|b| (b.target.is_some(), b.weight)).collect()
    };
    assert_eq!(targets(&world), [(true, 9), (false, 1)]);
    apply(&mut world, GRANT.trim_start_matches("---\n"));
    assert_eq!(targets(&world), [(true, 9), (true, 1)]);
    world.set_object(&key(Of::ReferenceGrant, "else", "g"), None);
    world.settle();
    assert_eq!(targets(&world), [(true, 9), (false, 1)]);
    world.set_object(&key(Of::Service, "shop", "cart"), None);
    world.settle();
    assert_eq!(targets(&world), [(false, 9), (false, 1)]);
}

#[test]
fn hostnames_are_cut_down_to_the_listeners_and_mean_nothing_to_services() {
    let parents = "[{name: gw, namespace: infra}, {group: '', kind: Service, name: cart}]";
    let text = with(BASE, "[{name: gw, namespace: infra}]", parents);
    let text = with(
        &text,
        "[shop.example.com]",
        "[shop.example.com, example.org, '*.shop.example.com']",
    );
    let route = wire_route(&world(&text));
    assert_eq!(
        route.attachments[0].hostnames,
        ["shop.example.com", "*.shop.example.com"]
    );
    let pb::attachment::Parent::Listener(parent) = route.attachments[0].parent.clone().unwrap() else {
        panic!("{route:?}")
    };
    assert_eq!(
        (
            parent.gateway_namespace.as_str(),
            parent.gateway.as_str(),
            parent.listener.as_str()
        ),
        ("infra", "gw", "http")
    );
    assert!(route.attachments[1].hostnames.is_empty());
    assert_eq!(route.created, 100);
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

#[test]
fn a_gateway_is_accepted_or_it_is_said_why_not() {
    let (there, status) = gateway(BASE);
    assert_eq!(condition(&status, "Accepted"), pair("True", "Accepted"));
    assert_eq!(listeners(&there), ["http"]);
    let spec = |more: &str| {
        with(
            BASE,
            "  gatewayClassName: cilium",
            &format!("  gatewayClassName: cilium\n  {more}"),
        )
    };
    let second = |more: &str| {
        with(
            BASE,
            "  listeners:\n",
            &format!("  listeners:\n    - {{name: b, {more}}}\n"),
        )
    };
    for (text, expected, served) in [
        (
            with(BASE, "cilium", "weft"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (with(BASE, "cilium", "nginx"), pair("Unknown", "Pending"), vec![]),
        (
            spec("infrastructure: {parametersRef: {group: a.test, kind: A, name: a}}"),
            pair("False", "InvalidParameters"),
            vec![],
        ),
        (
            spec("infrastructure: {labels: {a: b}}"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (
            spec("addresses: [{type: Hostname, value: a.test}]"),
            pair("False", "UnsupportedAddress"),
            vec![],
        ),
        (
            spec("addresses: [{value: 10.96.0.9}]"),
            pair("True", "Accepted"),
            vec!["http"],
        ),
        (
            with(BASE, "protocol: HTTP", "protocol: TCP").replace("      hostname: '*.example.com'\n", ""),
            pair("False", "ListenersNotValid"),
            vec![],
        ),
        (
            second("port: 9000, protocol: TCP"),
            pair("True", "ListenersNotValid"),
            vec!["http"],
        ),
        (
            second("port: 81, protocol: HTTP"),
            pair("True", "Accepted"),
            vec!["b", "http"],
        ),
        (
            second("port: 80, protocol: HTTP"),
            pair("True", "Accepted"),
            vec!["b", "http"],
        ),
        (
            second("port: 80, protocol: TCP"),
            pair("False", "ListenersNotValid"),
            vec![],
        ),
    ] {
        let (world, status) = gateway(&text);
        assert_eq!(condition(&status, "Accepted"), expected, "{text}");
        assert_eq!(listeners(&world), served, "{text}");
        let service = world.objects.service("infra", "cilium-gateway-gw");
        assert_eq!(service.is_some(), !served.is_empty(), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_listener_is_said_at_it() {
    let all = [
        ("Accepted", "True", "Accepted"),
        ("Conflicted", "False", "NoConflicts"),
        ("ResolvedRefs", "True", "ResolvedRefs"),
        ("Programmed", "False", "Pending"),
    ];
    let check = |text: &str, different: &[(&str, &str, &str)], kinds: &[&str]| {
        let (_, status) = gateway(text);
        let listener = &status["listeners"][0];
        for (kind, status, reason) in all {
            let (status, reason) = different
                .iter()
                .find(|(k, ..)| *k == kind)
                .map_or((status, reason), |(_, s, r)| (s, r));
            assert_eq!(condition(listener, kind), pair(status, reason), "{kind}: {text}");
        }
        let found = listener["supportedKinds"].as_array().unwrap().iter();
        let found: Vec<_> = found.map(|k| k["kind"].as_str().unwrap()).collect();
        assert_eq!(found, kinds, "{text}");
    };
    let both = ["HTTPRoute", "GRPCRoute"];
    check(BASE, &[], &both);
    let kinds = |kinds: &str| {
        with(
            BASE,
            "{from: All}}",
            &format!("{{from: All}}, kinds: [{kinds}]}}"),
        )
    };
    check(&kinds("{kind: HTTPRoute}"), &[], &["HTTPRoute"]);
    let unknown = ("ResolvedRefs", "False", "InvalidRouteKinds");
    check(
        &kinds("{kind: HTTPRoute}, {kind: TCPRoute}"),
        &[unknown],
        &["HTTPRoute"],
    );
    check(
        &kinds("{kind: TCPRoute}"),
        &[unknown, ("Programmed", "False", "Invalid")],
        &[],
    );
    let tcp = with(BASE, "protocol: HTTP", "protocol: TCP").replace("      hostname: '*.example.com'\n", "");
    let invalid = ("Programmed", "False", "Invalid");
    check(
        &tcp,
        &[("Accepted", "False", "UnsupportedProtocol"), invalid],
        &[],
    );
    let https = with(
        BASE,
        "protocol: HTTP",
        "protocol: HTTPS\n      tls: {certificateRefs: [{name: a}]}",
    );
    let secret = ("ResolvedRefs", "False", "InvalidCertificateRef");
    check(
        &https,
        &[("Accepted", "False", "UnsupportedProtocol"), secret, invalid],
        &both,
    );
    let own = with(BASE, "      port: 80\n", "      port: 15008\n");
    check(&own, &[("Accepted", "False", "PortUnavailable"), invalid], &both);
    let conflict = with(
        BASE,
        "  listeners:\n",
        "  listeners:\n    - {name: b, port: 80, protocol: HTTP}\n",
    );
    check(&conflict, &[], &both);
    let conflict = with(
        &conflict,
        "{name: b, port: 80, protocol: HTTP}",
        "{name: b, port: 80, protocol: UDP}",
    );
    let conflicted = ("Conflicted", "True", "ProtocolConflict");
    check(
        &conflict,
        &[("Accepted", "False", "UnsupportedProtocol"), conflicted, invalid],
        &[],
    );
}

#[test]
fn attached_routes_are_counted() {
    let count = |text: &str| gateway(text).1["listeners"][0]["attachedRoutes"].clone();
    assert_eq!(count(BASE), 1);
    assert_eq!(count(&with(BASE, "[shop.example.com]", "[shop.example.org]")), 0);
    // What is wrong with the listener itself does not count.
    let https = with(
        BASE,
        "protocol: HTTP",
        "protocol: HTTPS\n      tls: {certificateRefs: [{name: a}]}",
    );
    assert_eq!(count(&https), 1);
    let second = format!(
        "{BASE}---{}",
        with(
            BASE.rsplit("---").next().unwrap(),
            "name: cart, namespace: shop",
            "name: cart2, namespace: shop"
        )
    );
    assert_eq!(count(&second), 2);
}

#[test]
fn a_class_is_ours_or_somebody_elses() {
    let class = |name: &str, controller: &str, more: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}{more}}}"
        );
        world(&text).show(&key(Of::GatewayClass, "", name)).unwrap()["status"].clone()
    };
    let said = |status: &Value| condition(status, "Accepted");
    assert_eq!(
        said(&class("mine", "io.cilium/gateway-controller", "")),
        pair("True", "Accepted")
    );
    assert_eq!(
        said(&class("mine", "weft.dev/gateway-controller", "")),
        pair("True", "Accepted")
    );
    assert_eq!(
        said(&class("mine", "a.test/gateway-controller", "")),
        pair("Unknown", "Pending")
    );
    let parameters = ", parametersRef: {group: a.test, kind: A, name: a}";
    assert_eq!(
        said(&class("mine", "weft.dev/gateway-controller", parameters)),
        pair("False", "InvalidParameters")
    );
    // Its Gateways follow.
    let text = with(BASE, "gatewayClassName: cilium", "gatewayClassName: mine");
    let mut world = world(&text);
    assert!(listeners(&world).is_empty());
    assert!(
        world.show(&key(Of::HttpRoute, "shop", "cart")).unwrap()["status"]["parents"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    apply(
        &mut world,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: mine}\nspec: {controllerName: weft.dev/gateway-controller}",
    );
    assert_eq!(listeners(&world), ["http"]);
    assert_eq!(wire_route(&world).attachments.len(), 1);
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

#[test]
fn a_gateway_is_programmed_when_every_node_that_is_there_confirmed_it() {
    let mut world = world(BASE);
    let programmed = |world: &mut World| {
        world.note_programmed();
        let status = world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
        let whole = condition(&status, "Programmed");
        assert_eq!(condition(&status["listeners"][0], "Programmed"), whole);
        whole
    };
    let (yes, no) = (pair("True", "Programmed"), pair("False", "Pending"));
    assert_eq!(programmed(&mut world), no, "nobody serves it");
    let mut one = connect(&mut world, "n1", 1);
    assert_eq!(programmed(&mut world), no, "not confirmed");
    one.take(&mut world, "n1");
    assert_eq!(programmed(&mut world), yes);
    let mut two = connect(&mut world, "n2", 2);
    assert_eq!(programmed(&mut world), no, "one of two");
    two.take(&mut world, "n2");
    assert_eq!(programmed(&mut world), yes);
    // A change of it has to be confirmed again, one of something else has not.
    apply(
        &mut world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: z}\nspec: {ports: [{port: 1}]}",
    );
    assert_eq!(programmed(&mut world), yes);
    let changed = with(
        BASE.split("---").next().unwrap(),
        "'*.example.com'",
        "'*.example.org'",
    );
    apply(&mut world, &changed);
    world.note_programmed();
    let status = |world: &World| world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
    let said = |status: &Value| {
        let all = status["conditions"].as_array().unwrap();
        let one = all.iter().find(|c| c["type"] == "Programmed").unwrap();
        (
            one["status"].as_str().unwrap().to_owned(),
            one["observedGeneration"].as_u64().unwrap(),
        )
    };
    assert_eq!(said(&status(&world)), ("False".into(), 2));
    one.take(&mut world, "n1");
    let refused = two.updates.try_recv().unwrap().version;
    world.nack("n2", 2, refused, vec!["no".into()]);
    world.note_programmed();
    assert_eq!(said(&status(&world)).0, "False", "one refused it");
    world.disconnect("n2", 2);
    world.note_programmed();
    assert_eq!(said(&status(&world)).0, "True", "who is away serves what it had");
}

#[test]
fn a_gateway_has_the_address_of_its_service_or_it_is_said_why_not() {
    let (_, status) = gateway(BASE);
    let address = status["addresses"][0]["value"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10."), "{status}");
    let spec = |value: &str| {
        with(
            BASE,
            "  gatewayClassName: cilium",
            &format!("  gatewayClassName: cilium\n  addresses: [{{value: {value}}}]"),
        )
    };
    let (_, status) = gateway(&spec("10.96.0.9"));
    assert_eq!(status["addresses"][0]["value"], "10.96.0.9");
    assert_eq!(condition(&status, "Programmed").1, "Pending");
    // Another Service has it already.
    let taken = with(
        &spec("10.96.0.9"),
        "{selector: {app: cart},",
        "{clusterIP: 10.96.0.9, selector: {app: cart},",
    );
    let (_, status) = gateway(&taken);
    assert_eq!(
        condition(&status, "Programmed"),
        pair("False", "AddressNotUsable")
    );
    // Somebody wrote the Service himself.
    let own = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cilium-gateway-gw, namespace: infra}\nspec: {ports: [{port: 80}]}\n";
    let (mut world, status) = gateway(&format!("{BASE}{own}"));
    assert_eq!(
        condition(&status, "Programmed"),
        pair("False", "AddressNotAssigned")
    );
    world.set_object(&key(Of::Service, "infra", "cilium-gateway-gw"), None);
    world.settle();
    world.note_programmed();
    let status = world.show(&key(Of::Gateway, "infra", "gw")).unwrap()["status"].clone();
    assert_eq!(condition(&status, "Programmed").1, "Pending");
    assert_eq!(status["addresses"][0]["value"], address.as_str());
}

#[test]
fn long_and_dotted_names_make_names_of_services() {
    use super::routing::service_name;
    assert_eq!(service_name("default-gateway"), "cilium-gateway-default-gateway");
    for name in ["a.b", "a-b.c", &"g".repeat(63), &"g".repeat(64)] {
        let made = service_name(name);
        assert!(
            weft_model::check_dns_label(&made).is_ok() && made.starts_with("cilium-gateway-"),
            "{made}"
        );
        assert!(weft_model::check_app_id(&made).is_ok(), "{made}");
    }
    assert_ne!(service_name("a.b"), service_name("a-b"));
    assert_ne!(service_name(&"g".repeat(63)), service_name(&"g".repeat(64)));
}

fn named(update: &pb::SubscribeResponse) -> Vec<String> {
    let keys = update.upserts.iter().filter_map(|r| r.key.clone());
    keys.map(|k| format!("{} {}", k.kind, k.name))
        .chain(update.removes.iter().map(|k| format!("-{} {}", k.kind, k.name)))
        .collect()
}

#[test]
fn a_changed_route_is_one_resource_and_what_it_names_comes_before_it() {
    let text = format!("{BASE}{GRANT}");
    let mut world = world(&text);
    host(&mut world, "n2", "shop", "cart");
    host(&mut world, "n3", "else", "far");
    // It hosts nothing, and serves the gateway all the same.
    let mut stream = connect(&mut world, "n1", 1);
    let first = stream.take(&mut world, "n1");
    let kinds: Vec<_> = named(&first[0]);
    let at = |what: &str| kinds.iter().position(|k| k.starts_with(what)).unwrap();
    assert!(
        kinds.iter().any(|k| k == "endpoint n2/shop/cart/1") && !kinds.iter().any(|k| k.contains("far")),
        "{kinds:?}"
    );
    assert!(
        at("identity") < at("endpoint") && at("endpoint") < at("service shop/cart"),
        "{kinds:?}"
    );
    assert!(
        at("service shop/cart") < at("gateway") && at("gateway") < at("route"),
        "{kinds:?}"
    );
    // Another weight: one resource.
    let of = |backends: &str| {
        with(
            BASE.rsplit("---").next().unwrap(),
            "[{name: cart, port: 80}]",
            backends,
        )
    };
    apply(&mut world, &of("[{name: cart, port: 80, weight: 3}]"));
    let delta = stream.take(&mut world, "n1");
    assert_eq!(
        (delta.len(), named(&delta[0])),
        (1, vec!["route HTTPRoute/shop/cart".to_owned()])
    );
    // Another backend: that one with its endpoint and identity, in front.
    apply(&mut world, &of("[{name: far, namespace: else, port: 80}]"));
    let delta = stream.take(&mut world, "n1");
    let names = named(&delta[0]);
    assert_eq!(
        names[1..5],
        [
            "endpoint n3/else/far/1",
            "service else/far",
            "route HTTPRoute/shop/cart",
            "-service shop/cart"
        ]
        .map(str::to_owned),
        "{names:?}"
    );
    assert!(
        names[0].starts_with("identity")
            && names[5] == "-endpoint n2/shop/cart/1"
            && names[6].starts_with("-identity"),
        "{names:?}"
    );
    // Gone: nothing of it is left but the gateway.
    world.set_object(&key(Of::HttpRoute, "shop", "cart"), None);
    world.settle();
    let delta = stream.take(&mut world, "n1");
    let names = named(&delta[0]);
    assert_eq!(names[0], "-route HTTPRoute/shop/cart");
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn routes_of_services_reach_only_who_knows_their_namespace() {
    let parent = "parentRefs: [{name: gw, namespace: infra}]";
    let text = with(
        BASE,
        parent,
        "parentRefs: [{group: '', kind: Service, name: cart}]",
    );
    let text = with(
        &text,
        "[{name: cart, port: 80}]",
        "[{name: far, namespace: else, port: 80}]",
    );
    let mut world = world(&format!("{text}{GRANT}"));
    host(&mut world, "n1", "shop", "cart");
    host(&mut world, "n2", "other", "web");
    host(&mut world, "n3", "else", "far");
    let has = |world: &World, node: &str, kind: Kind, name: &str| {
        let (node, _) = &world.nodes[node];
        node.desired.contains_key(&Key::new(kind, name))
    };
    let (mut one, mut two) = (connect(&mut world, "n1", 1), connect(&mut world, "n2", 2));
    one.take(&mut world, "n1");
    two.take(&mut world, "n2");
    for (kind, name) in [
        (Kind::Route, "HTTPRoute/shop/cart"),
        (Kind::Service, "else/far"),
        (Kind::Endpoint, "n3/else/far/1"),
    ] {
        assert!(has(&world, "n1", kind, name), "{name}");
        assert!(!has(&world, "n2", kind, name), "{name}");
    }
    // Whoever asks for the namespace gets them too.
    world.ask_for("n2", vec!["shop".into()]);
    world.settle();
    assert!(
        has(&world, "n2", Kind::Route, "HTTPRoute/shop/cart")
            && has(&world, "n2", Kind::Endpoint, "n3/else/far/1")
    );
    world.ask_for("n2", vec![]);
    world.settle();
    assert!(
        !has(&world, "n2", Kind::Route, "HTTPRoute/shop/cart")
            && !has(&world, "n2", Kind::Endpoint, "n3/else/far/1")
    );
    assert!(
        has(&world, "n2", Kind::Gateway, "infra/gw")
            && has(&world, "n2", Kind::Service, "infra/cilium-gateway-gw")
    );
}

#[test]
fn times_of_conditions_and_objects_are_kept() {
    let mut world = world(BASE);
    let since = |world: &World| {
        let object = world.show(&key(Of::HttpRoute, "shop", "cart")).unwrap();
        let parent = &object["status"]["parents"][0]["conditions"][0];
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        (
            text(&object["metadata"]["creationTimestamp"]),
            object["metadata"]["generation"].as_u64().unwrap(),
            text(&parent["lastTransitionTime"]),
            text(&parent["reason"]),
        )
    };
    let at = |seconds: u64| format!("1970-01-01T00:{:02}:{:02}Z", seconds / 60, seconds % 60);
    assert_eq!(since(&world), (at(100), 1, at(100), "Accepted".into()));
    // The same again, later: nothing changes.
    world.set_time(200);
    apply(&mut world, BASE);
    assert_eq!(since(&world), (at(100), 1, at(100), "Accepted".into()));
    // Refused, and with another reason for it: the time is of the change to False.
    let own = BASE.rsplit("---").next().unwrap();
    apply(&mut world, &with(own, "[shop.example.com]", "[shop.example.org]"));
    assert_eq!(
        since(&world),
        (at(100), 2, at(200), "NoMatchingListenerHostname".into())
    );
    world.set_time(300);
    let gateway = BASE.split("---").next().unwrap();
    apply(&mut world, &with(gateway, "{from: All}", "{from: Same}"));
    assert_eq!(
        since(&world),
        (at(100), 2, at(200), "NotAllowedByListeners".into())
    );
    apply(&mut world, BASE);
    assert_eq!(since(&world), (at(100), 3, at(300), "Accepted".into()));
}
