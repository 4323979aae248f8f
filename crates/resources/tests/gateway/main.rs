//! Gateway API objects: what is read of them, and how mistakes are told.
#![allow(clippy::unwrap_used)]

mod gateways;
mod random;
mod read;
mod routes;

use serde_json::Value;
use std::time::Duration;
use weft_resources::{
    Body, Gateway, Kind, Resource, Route,
    gateway::{AllowedNamespaces, BackendTarget, GROUP, PathChange, PathMatch, RouteFilters, ValueMatch},
    parse,
};

fn good(text: &str) -> Vec<Resource> {
    parse("a.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?}\n{text}"))
}

fn bad(text: &str) -> Vec<String> {
    let problems = parse("a.yaml", text.as_bytes()).expect_err(text);
    problems.iter().map(ToString::to_string).collect()
}

fn object(kind: &str, spec: &str) -> String {
    format!("apiVersion: {GROUP}/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n")
}

fn route(text: &str) -> Route {
    match good(text).remove(0).body {
        Body::HttpRoute(route) | Body::GrpcRoute(route) => route,
        other => panic!("{other:?}"),
    }
}

fn gateway(text: &str) -> Gateway {
    match good(text).remove(0).body {
        Body::Gateway(gateway) => gateway,
        other => panic!("{other:?}"),
    }
}

/// As people publish them: a gateway with its route, a split of a Service, a rewrite, a grant.
const PUBLISHED: &str = r#"
apiVersion: gateway.networking.k8s.io/v1beta1
kind: Gateway
metadata:
  name: default-gateway
spec:
  gatewayClassName: cilium
  listeners:
  - protocol: HTTP
    port: 80
    name: web-gw
    allowedRoutes:
      namespaces:
        from: Same
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: whoami
spec:
  parentRefs:
  - group: ""
    kind: Service
    name: whoami
  rules:
  - backendRefs:
    - name: whoami-v1
      port: 80
      weight: 50
    - name: whoami-v2
      port: 80
      weight: 50
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: HTTPRoute
metadata:
  name: ingress
  creationTimestamp: "2024-05-01T12:00:00Z"
  generation: 3
spec:
  parentRefs:
  - name: default-gateway
    sectionName: web-gw
  hostnames: ["whoami.example.com", "*.example.org"]
  rules:
  - matches:
    - path:
        type: PathPrefix
        value: /
      headers:
      - {name: X-Canary, value: "yes"}
      - {name: x-canary, value: "no"}
      - {type: RegularExpression, name: User-Agent, value: "curl/.*"}
      queryParams:
      - {name: Q, value: "1"}
      method: GET
    filters:
    - type: URLRewrite
      urlRewrite:
        hostname: whoami.default.svc.cluster.local
        path:
          type: ReplacePrefixMatch
          replacePrefixMatch: /v1.0/invoke/whoami.default/method//
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-A, value: a}]
        add: [{name: X-B, value: b c}]
        remove: [X-C]
    - type: RequestMirror
      requestMirror: {backendRef: {name: shadow, port: 80}, fraction: {numerator: 1, denominator: 3}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: shadow, port: 81}, percent: 5}
    timeouts: {request: 10s, backendRequest: 1500ms}
    retry: {codes: [503, 500], attempts: 3, backoff: 100ms}
    backendRefs:
    - name: ingress-dapr
      namespace: other
      port: 3500
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: grant, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: "", kind: Service}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: cilium}
spec: {controllerName: io.cilium/gateway-controller, description: The default Cilium GatewayClass}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: red}}
spec: {finalizers: [kubernetes]}
"#;

/// A refused text, a part of what is said of it, and a twin that is taken.
fn twins(kind: &str, cases: &[(&str, &str, &str)]) {
    for (wrong, said, right) in cases {
        let found = bad(&object(kind, wrong));
        assert!(
            found.len() == 1 && found[0].starts_with("a.yaml:4: spec") && found[0].contains(said),
            "{wrong}: {found:#?}"
        );
        let taken = good(&object(kind, right));
        if let Body::HttpRoute(route) | Body::GrpcRoute(route) = &taken[0].body {
            assert!(route.unsupported.is_empty(), "{right}: {:?}", route.unsupported);
        }
    }
}
