//! Ingress, TLSRoute, BackendTLSPolicy, Envoy's configurations, Resiliency and HTTPEndpoint: what is read, and what
//! is told by line and field.
#![allow(clippy::unwrap_used, missing_docs)]

use weft_resources::{
    Body, Kind,
    gateway::{IngressPort, PathMatch},
    parse,
};

fn one(text: &str) -> Body {
    let mut all = parse("k.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
    assert_eq!(all.len(), 1);
    all.remove(0).body
}

fn problems(text: &str) -> Vec<String> {
    let problems = parse("k.yaml", text.as_bytes()).expect_err(text);
    problems.iter().map(ToString::to_string).collect()
}

const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: cilium
  defaultBackend: {service: {name: rest, port: {name: http}}}
  rules:
    - host: shop.example.com
      http:
        paths:
          - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}
          - {path: /exact, pathType: Exact, backend: {service: {name: cart, port: {number: 80}}}}
          - {path: '/v[0-9]+/.*', pathType: ImplementationSpecific, backend: {service: {name: cart, port: {number: 80}}}}
    - http: {paths: [{pathType: ImplementationSpecific, backend: {service: {name: any, port: {number: 80}}}}]}
";

#[test]
fn an_ingress_of_our_class_is_read() {
    let Body::Ingress(ingress) = one(INGRESS) else {
        panic!()
    };
    assert!(ingress.is_ours);
    assert_eq!(
        ingress
            .default
            .as_ref()
            .map(|d| (d.service.as_str(), d.port.clone())),
        Some(("rest", IngressPort::Name("http".into())))
    );
    let paths: Vec<&PathMatch> = ingress.rules[0].paths.iter().map(|p| &p.path).collect();
    assert_eq!(
        paths,
        [
            &PathMatch::Prefix("/cart".into()),
            &PathMatch::Exact("/exact".into()),
            &PathMatch::Pattern("/v[0-9]+/.*".into())
        ]
    );
    assert_eq!(ingress.rules[0].host.as_deref(), Some("shop.example.com"));
    assert_eq!(
        (ingress.rules[1].host.as_deref(), &ingress.rules[1].paths[0].path),
        (None, &PathMatch::Prefix("/".into()))
    );
    // The class of an annotation counts where there is no field.
    let old = INGRESS.replace("  ingressClassName: cilium\n", "").replace(
        "{name: web}",
        "{name: web, annotations: {kubernetes.io/ingress.class: weft}}",
    );
    let Body::Ingress(ingress) = one(&old) else {
        panic!()
    };
    assert_eq!((ingress.class.as_str(), ingress.is_ours), ("weft", true));
}

#[test]
fn what_an_ingress_may_not_say_is_told_unless_it_is_of_another_class() {
    let wrong = INGRESS
        .replace("path: /cart,", "path: cart,")
        .replace("path: '/v[0-9]+/.*'", "path: '/v[0-9'")
        .replace("port: {name: http}", "port: {name: http, number: 1}")
        .replace("pathType: Exact", "pathType: exact")
        .replace("host: shop.example.com", "host: '1.2.3.4:80'")
        + "  tls: [{secretName: web}]\n";
    let told = problems(&wrong);
    let fields: Vec<&str> = told.iter().map(|p| p.split(": ").nth(1).unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.tls",
            "spec.defaultBackend.service.port",
            "spec.rules[0].host",
            "spec.rules[0].http.paths[0].path",
            "spec.rules[0].http.paths[1].pathType",
            "spec.rules[0].http.paths[2].path",
        ],
        "{told:#?}"
    );
    assert!(
        told[0].starts_with("k.yaml:15: spec.tls: is not supported yet"),
        "{told:#?}"
    );
    let annotated = INGRESS.replace(
        "{name: web}",
        "{name: web, annotations: {ingress.cilium.io/tls-passthrough: enabled}}",
    );
    assert_eq!(
        problems(&annotated),
        ["k.yaml:3: metadata.annotations[ingress.cilium.io/tls-passthrough]: is not supported yet"]
    );
    one(&annotated.replace("passthrough: enabled", "passthrough: disabled"));
    assert_eq!(
        problems(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: a}\nspec: {ingressClassName: weft}\n"
        ),
        ["k.yaml:4: spec: needs rules or a defaultBackend"]
    );
    // Of another class it is another controller's.
    for class in ["nginx", "''"] {
        let other = wrong.replace("Name: cilium", &format!("Name: {class}"));
        let Body::Ingress(ingress) = one(&other) else {
            panic!()
        };
        assert!(!ingress.is_ours && ingress.rules.is_empty());
    }
}

const TLS_ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: mail}
spec:
  parentRefs: [{name: gw}]
  hostnames: [mail.example.com]
  rules: [{backendRefs: [{name: mail, port: 993, weight: 2}]}]
";

#[test]
fn a_tls_route_is_read_in_all_its_versions_and_never_accepted() {
    for version in ["v1", "v1alpha3", "v1alpha2"] {
        let Body::TlsRoute(route) = one(&TLS_ROUTE.replace("io/v1", &format!("io/{version}"))) else {
            panic!()
        };
        assert_eq!((route.hostnames.len(), route.rules[0].backends[0].weight), (1, 2));
        assert!(
            route.unsupported[0].contains("server name"),
            "{:?}",
            route.unsupported
        );
    }
    let wrong = TLS_ROUTE
        .replace("weight: 2", "filters: []")
        .replace("port: 993", "port: 0");
    assert_eq!(
        problems(&wrong),
        [
            "k.yaml:7: spec.rules[0].backendRefs[0].port: must be from 1 to 65535",
            "k.yaml:7: spec.rules[0].backendRefs[0].filters: unknown field",
        ]
    );
    assert_eq!(
        problems(&TLS_ROUTE.replace("io/v1", "io/v1beta1")),
        [
            "k.yaml:2: kind: TLSRoute of gateway.networking.k8s.io/v1beta1 is not supported yet; TLSRoute is read as gateway.networking.k8s.io/v1"
        ]
    );
}

const BACKEND_TLS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: mail}
spec:
  targetRefs: [{group: '', kind: Service, name: mail, sectionName: imaps}]
  validation:
    wellKnownCACertificates: System
    hostname: mail.example.com
    subjectAltNames: [{type: URI, uri: spiffe://a/b}]
";

#[test]
fn a_backend_tls_policy_is_read() {
    let Body::BackendTlsPolicy(policy) = one(BACKEND_TLS) else {
        panic!()
    };
    assert_eq!(
        (
            policy.targets[0].name.as_str(),
            policy.targets[0].section.as_deref()
        ),
        ("mail", Some("imaps"))
    );
    assert!(!policy.has_certificates);
    let own = BACKEND_TLS.replace(
        "wellKnownCACertificates: System",
        "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]",
    );
    let Body::BackendTlsPolicy(policy) = one(&own) else {
        panic!()
    };
    assert!(policy.has_certificates);
    for (from, to, told) in [
        (
            "    wellKnownCACertificates: System\n",
            "",
            "k.yaml:7: spec.validation: needs caCertificateRefs or wellKnownCACertificates",
        ),
        (
            "Certificates: System\n",
            "Certificates: System\n    caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]\n",
            "k.yaml:7: spec.validation: has both caCertificateRefs and wellKnownCACertificates",
        ),
        (
            "type: URI, uri: spiffe://a/b",
            "type: Hostname, uri: spiffe://a/b",
            "k.yaml:9: spec.validation.subjectAltNames[0]: type Hostname needs hostname and nothing else",
        ),
        (
            "sectionName: imaps}]",
            "sectionName: imaps}, {group: '', kind: Service, name: mail}]",
            "k.yaml:5: spec.targetRefs[1]: refers to a target again: then all of them name a sectionName",
        ),
        (
            "    hostname: mail.example.com\n",
            "",
            "k.yaml:7: spec.validation.hostname: is required",
        ),
    ] {
        assert_eq!(problems(&BACKEND_TLS.replace(from, to)), [told]);
    }
}

#[test]
fn configurations_of_envoy_are_known_whatever_they_say() {
    for (kind, name) in [
        (Kind::CiliumEnvoyConfig, "CiliumEnvoyConfig"),
        (Kind::CiliumClusterwideEnvoyConfig, "CiliumClusterwideEnvoyConfig"),
    ] {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: {name}\nmetadata: {{name: a}}\nspec: {{services: [{{name: a, namespace: b}}], resources: [{{'@type': x}}]}}\n"
        );
        assert_eq!(parse("k.yaml", text.as_bytes()).unwrap()[0].kind(), kind);
        assert_eq!(
            problems(text.split("spec").next().unwrap()),
            ["k.yaml:1: spec: is required"]
        );
    }
}

const RESILIENCY: &str = "apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: shop}
scopes: [cart]
spec:
  policies:
    timeouts: {general: 5s, quick: 1m30.5s}
    retries:
      often: {policy: constant, duration: 100ms, maxRetries: -1, matching: {httpStatusCodes: '429,500-599'}}
      rarely: {policy: exponential, maxInterval: 15s}
    circuitBreakers:
      simple: {maxRequests: 1, interval: 8s, timeout: 45s, trip: consecutiveFailures > 8}
  targets:
    apps: {billing: {timeout: general, retry: often, circuitBreaker: simple}}
    actors: {Cart: {timeout: quick, circuitBreakerScope: both, circuitBreakerCacheSize: 5000}}
    components: {state: {inbound: {retry: often}, outbound: {timeout: general}}}
";

#[test]
fn a_resiliency_is_read_and_its_slips_told() {
    let Body::Resiliency(object) = one(RESILIENCY) else {
        panic!()
    };
    assert_eq!(object.scopes, ["cart"]);
    let wrong = RESILIENCY
        .replace("general: 5s", "general: 5 s")
        .replace("quick: 1m30.5s", "quick: 90")
        .replace("policy: constant", "policy: linear")
        .replace("circuitBreakerScope: both", "circuitBreakerScope: all")
        .replace("inbound: {retry: often}", "inbound: {retries: often}");
    assert_eq!(
        problems(&wrong),
        [
            "k.yaml:7: spec.policies.timeouts.general: \"5 s\" is no duration such as 5s or 1m30s",
            "k.yaml:7: spec.policies.timeouts.quick: must be a text, found a number; put it in quotes",
            "k.yaml:9: spec.policies.retries.often.policy: \"linear\" is none of constant, exponential",
            "k.yaml:15: spec.targets.actors.Cart.circuitBreakerScope: \"all\" is none of type, id, both",
            "k.yaml:16: spec.targets.components.state.inbound.retries: unknown field",
        ]
    );
    assert_eq!(
        problems(
            "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: a}\nspec: {policies: {}}\n"
        ),
        ["k.yaml:4: spec.targets: is required"]
    );
}

const ENDPOINT: &str = "apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: github}
scopes: [cart]
auth: {secretStore: vault}
spec:
  baseUrl: https://api.github.com
  headers: [{name: Accept, value: x}, {name: Authorization, secretKeyRef: {name: token, key: t}}]
  clientTLS: {rootCA: {secretKeyRef: {name: ca, key: pem}}, renegotiation: RenegotiateNever}
";

#[test]
fn an_http_endpoint_is_read_and_its_slips_told() {
    let Body::HttpEndpoint(object) = one(ENDPOINT) else {
        panic!()
    };
    assert_eq!(object.scopes, ["cart"]);
    let wrong = ENDPOINT
        .replace("https://api.github.com", "api.github.com")
        .replace(
            "{name: Accept, value: x}",
            "{name: Accept, value: x, envRef: TOKEN}",
        )
        .replace("RenegotiateNever", "Never");
    let told = problems(&wrong);
    assert_eq!(
        told,
        [
            "k.yaml:9: spec.clientTLS.renegotiation: \"Never\" is none of RenegotiateNever, RenegotiateOnceAsClient, RenegotiateFreelyAsClient",
            "k.yaml:7: spec.baseUrl: \"api.github.com\" is no address such as https://api.example.com:8443",
            "k.yaml:8: spec.headers[0]: has more than one of value, secretKeyRef and envRef",
        ]
    );
}
