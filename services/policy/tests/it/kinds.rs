//! Kinds beside Gateways and routes: what nodes get of them, and what is said of what is not done.

use crate::rig::{Node, Rig, service};
use serde_json::Value;
use weft_proto::weft::policy::v1::{
    self as pb, resource::Body, resources_client::ResourcesClient, route_match::Path,
};

async fn object(rig: &Rig, kind: &str, name: &str) -> Value {
    let mut client = ResourcesClient::new(rig.channel("/weft/admin/ops"));
    let request = pb::ListRequest {
        kind: kind.into(),
        name: name.into(),
        objects: true,
        ..Default::default()
    };
    let list = client.list(request).await.unwrap().into_inner();
    let found = list.resources.iter().find(|r| r.kind == kind);
    found.map_or(Value::Null, |r| serde_json::from_slice(&r.object_json).unwrap())
}

/// Status, reason and message.
fn condition(of: &Value, kind: &str) -> (String, String, String) {
    let all = of["conditions"].as_array().unwrap();
    let one = all.iter().find(|c| c["type"] == kind).unwrap();
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec:
  ingressClassName: cilium
  defaultBackend: {service: {name: rest, port: {number: 80}}}
  rules:
    - host: shop.example.com
      http:
        paths:
          - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {name: web}}}}
          - {path: /lost, pathType: Exact, backend: {service: {name: nobody, port: {number: 80}}}}
    - host: all.example.com
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}]}
";

fn services() -> String {
    let cart = service("shop", "cart").replace("{port: 80}", "{name: web, port: 80}");
    format!("{cart}---\n{}", service("shop", "rest"))
}

/// Hosts, and for each rule its path and the Service behind it.
fn said(node: &Node, key: &str) -> (Vec<String>, Vec<(String, Option<String>)>) {
    let Some(Body::Route(route)) = &node.state[&("route".to_owned(), key.to_owned())].body else {
        panic!("{key} is no route")
    };
    assert_eq!(
        (route.kind.as_str(), route.namespace.as_str(), route.name.as_str()),
        ("Ingress", "shop", "web")
    );
    let rules = route.rules.iter().map(|rule| {
        let path = match rule.matches[0].path.as_ref().unwrap() {
            Path::Exact(text) => format!("={text}"),
            Path::Prefix(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let target = rule.backends[0].target.as_ref();
        (
            path,
            target.map(|t| format!("{}/{}:{}", t.namespace, t.service, t.port)),
        )
    });
    (route.attachments[0].hostnames.clone(), rules.collect())
}

#[tokio::test]
async fn ingresses_share_a_gateway_and_are_routes_there() {
    let rig = Rig::new(&[("ingress.yaml", INGRESS), ("services.yaml", &services())]).await;
    let mut node = rig.node("n1").await;
    node.apply().await;
    let gateway = node.until("gateway", "kube-system/cilium-ingress").await;
    let Some(Body::Gateway(gateway)) = gateway.body else {
        panic!()
    };
    assert_eq!(
        (
            gateway.service.as_str(),
            gateway.listeners[0].port,
            gateway.listeners[0].hostname.as_str()
        ),
        ("cilium-ingress", 80, "")
    );
    node.until("service", "kube-system/cilium-ingress").await;
    let to = |name: &str| Some(format!("shop/{name}:80"));
    assert_eq!(
        said(&node, "Ingress/shop/web/0"),
        (vec![], vec![("/".into(), to("rest"))]),
        "of every host"
    );
    assert_eq!(
        said(&node, "Ingress/shop/web/1"),
        (vec!["all.example.com".into()], vec![("/".into(), to("cart"))]),
        "nothing is left to the default"
    );
    assert_eq!(
        said(&node, "Ingress/shop/web/2"),
        (
            vec!["shop.example.com".into()],
            vec![
                ("/cart".into(), to("cart")),
                ("=/lost".into(), None),
                ("/".into(), to("rest"))
            ]
        )
    );
    // Where it is reached stands in its status; the Service is shown beside others.
    let shared = object(&rig, "Service", "cilium-ingress").await;
    let address = shared["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let shown = object(&rig, "Ingress", "web").await;
    assert_eq!(
        shown["status"]["loadBalancer"]["ingress"][0]["ip"],
        address.as_str()
    );

    // The Service that was missing comes, and the route changes with it.
    rig.put("nobody.yaml", &service("shop", "nobody"));
    while said(&node, "Ingress/shop/web/2").1[1].1 != to("nobody") {
        node.apply().await;
    }
    // One of another class has no part, and without any there is no gateway.
    rig.put("ingress.yaml", &INGRESS.replace("Name: cilium", "Name: nginx"));
    while !node.names("route").is_empty() || !node.names("gateway").is_empty() {
        node.apply().await;
    }
    assert_eq!(object(&rig, "Ingress", "web").await["status"], Value::Null);
    assert_eq!(object(&rig, "Service", "cilium-ingress").await, Value::Null);
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec: {gatewayClassName: cilium, listeners: [{name: web, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: cart, port: 80}]}]}
";

#[tokio::test]
async fn a_tls_route_is_not_accepted_and_no_node_gets_it() {
    let route = "apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: mail, namespace: shop}
spec: {parentRefs: [{name: gw}, {group: '', kind: Service, name: cart}], rules: [{backendRefs: [{name: cart, port: 80}]}]}
";
    let rig = Rig::new(&[
        ("gw.yaml", GATEWAY),
        ("tls.yaml", route),
        ("services.yaml", &services()),
    ])
    .await;
    let mut node = rig.node("n1").await;
    node.until("route", "HTTPRoute/shop/cart").await;
    assert_eq!(node.names("route"), ["HTTPRoute/shop/cart"]);
    let shown = object(&rig, "TLSRoute", "mail").await;
    assert_eq!(shown["apiVersion"], "gateway.networking.k8s.io/v1");
    let parents = shown["status"]["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 2);
    for parent in parents {
        let (status, reason, message) = condition(parent, "Accepted");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "UnsupportedValue"));
        assert!(message.contains("not passed on by its server name"), "{message}");
        assert_eq!(condition(parent, "ResolvedRefs").0, "True");
    }
}

#[tokio::test]
async fn what_demands_tls_gets_nothing_in_clear() {
    let policy = "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: cart, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: cart}]
  validation: {hostname: cart.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}
";
    let files = [
        ("gw.yaml", GATEWAY),
        ("ingress.yaml", INGRESS),
        ("services.yaml", &services()),
    ];
    let rig = Rig::new(&files).await;
    let mut node = rig.node("n1").await;
    node.apply().await;
    let targets = |node: &Node| -> Vec<bool> {
        let routes = node.state.values().filter_map(|r| match &r.body {
            Some(Body::Route(route)) => Some(route),
            _ => None,
        });
        let rules = routes.flat_map(|r| &r.rules).flat_map(|r| &r.backends);
        rules
            .map(|b| b.target.as_ref().is_some_and(|t| t.service == "cart"))
            .collect()
    };
    assert_eq!(targets(&node).iter().filter(|cart| **cart).count(), 3);
    rig.put("policy.yaml", policy);
    while targets(&node).contains(&true) {
        node.apply().await;
    }
    let parent = object(&rig, "HTTPRoute", "cart").await["status"]["parents"][0].clone();
    let (status, reason, message) = condition(&parent, "ResolvedRefs");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "UnsupportedProtocol")
    );
    assert!(
        message.contains("BackendTLSPolicy shop/cart demands TLS"),
        "{message}"
    );
    let status = object(&rig, "BackendTLSPolicy", "cart").await["status"].clone();
    let ancestor = &status["ancestors"][0];
    assert_eq!(
        (&ancestor["ancestorRef"]["name"], &ancestor["controllerName"]),
        (&"gw".into(), &"io.cilium/gateway-controller".into())
    );
    assert_eq!(condition(ancestor, "Accepted").1, "Invalid");
    assert_eq!(condition(ancestor, "ResolvedRefs").1, "InvalidCACertificateRef");
    // For one port by its name: the other routes as before.
    rig.put(
        "policy.yaml",
        &policy.replace("name: cart}]", "name: cart, sectionName: other}]"),
    );
    while targets(&node).iter().filter(|cart| **cart).count() != 3 {
        node.apply().await;
    }
}

#[tokio::test]
async fn what_is_read_and_without_effect_says_so() {
    let envoy = |kind: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{resources: []}}\n---\n"
        )
    };
    let dapr = "apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r, namespace: shop}
scopes: [cart]
spec: {targets: {apps: {billing: {timeout: t}}}}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: h, namespace: shop}
spec: {baseUrl: 'http://192.0.2.1'}
";
    let all = envoy("CiliumEnvoyConfig") + &envoy("CiliumClusterwideEnvoyConfig") + dapr;
    let rig = Rig::new(&[("all.yaml", &all)]).await;
    for (kind, name, text) in [
        ("CiliumEnvoyConfig", "a", "use HTTPRoutes"),
        ("CiliumClusterwideEnvoyConfig", "a", "use HTTPRoutes"),
        ("Resiliency", "r", "does not act on it"),
        ("HTTPEndpoint", "h", "can not be asked to invoke it"),
    ] {
        let shown = object(&rig, kind, name).await;
        let (status, reason, message) = condition(&shown["status"], "Accepted");
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", "NotSupported"),
            "{kind}"
        );
        assert!(message.contains(text), "{kind}: {message}");
    }
    // Scoped: to the node of the app, and to nodes of the namespace's other apps only what is for all.
    let (mut cart, mut other) = (rig.node("n1").await, rig.node("n2").await);
    cart.register(cart.workload("shop", "cart", &[])).await;
    other.register(other.workload("shop", "other", &[])).await;
    let resource = cart.until("resiliency", "shop/r").await;
    let Some(Body::Resiliency(resource)) = resource.body else {
        panic!()
    };
    assert_eq!(resource.scopes, ["cart"]);
    cart.until("http-endpoint", "shop/h").await;
    other.until("http-endpoint", "shop/h").await;
    assert_eq!(other.names("resiliency"), [""; 0]);
}
