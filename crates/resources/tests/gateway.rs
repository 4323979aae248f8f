//! Gateway API objects: what is read of them, and how mistakes are told.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Map, Value, json};
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

#[test]
fn published_manifests_are_read_whole() {
    let all = good(PUBLISHED);
    let kinds: Vec<Kind> = all.iter().map(Resource::kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::Gateway,
            Kind::HttpRoute,
            Kind::HttpRoute,
            Kind::ReferenceGrant,
            Kind::GatewayClass,
            Kind::Namespace
        ]
    );
    let Body::Gateway(gateway) = &all[0].body else {
        panic!()
    };
    let listener = &gateway.listeners[0];
    assert_eq!(
        (gateway.class.as_str(), listener.name.as_str(), listener.port),
        ("cilium", "web-gw", 80)
    );
    assert_eq!(listener.namespaces, AllowedNamespaces::Same);
    let Body::HttpRoute(split) = &all[1].body else {
        panic!()
    };
    assert_eq!(
        (split.parents[0].group.as_str(), split.parents[0].kind.as_str()),
        ("", "Service")
    );
    let weights: Vec<u32> = split.rules[0].backends.iter().map(|b| b.weight).collect();
    assert_eq!((weights, split.rules[0].matches.len()), (vec![50, 50], 0));

    let meta = &all[2].meta;
    assert_eq!((meta.created, meta.generation), (Some(1_714_564_800), Some(3)));
    let Body::HttpRoute(route) = &all[2].body else {
        panic!()
    };
    assert_eq!(route.parents[0].section.as_deref(), Some("web-gw"));
    assert_eq!(route.hostnames, ["whoami.example.com", "*.example.org"]);
    assert!(route.unsupported.is_empty());
    let rule = &route.rules[0];
    let one = &rule.matches[0];
    assert_eq!(
        (&one.path, one.method.as_deref()),
        (&PathMatch::Prefix("/".into()), Some("GET"))
    );
    // Of names that differ in case only, the first counts.
    assert_eq!(
        one.headers,
        [
            ("x-canary".to_owned(), ValueMatch::Exact("yes".into())),
            ("user-agent".to_owned(), ValueMatch::Pattern("curl/.*".into()))
        ]
    );
    assert_eq!(one.query, [("Q".to_owned(), ValueMatch::Exact("1".into()))]);
    let rewrite = rule.filters.rewrite.as_ref().unwrap();
    assert_eq!(
        rewrite.path,
        Some(PathChange::Prefix("/v1.0/invoke/whoami.default/method//".into()))
    );
    let headers = &rule.filters.request_headers;
    assert_eq!(
        (headers.set.len(), &headers.add[0].1, &headers.remove[0]),
        (1, &"b c".into(), &"X-C".into())
    );
    let shares: Vec<_> = rule.filters.mirrors.iter().map(|m| (m.share, m.out_of)).collect();
    assert_eq!(shares, [(1, 3), (5, 100)]);
    assert_eq!(
        (rule.request_timeout, rule.backend_timeout),
        (Duration::from_secs(10), Duration::from_millis(1500))
    );
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!(
        (&retry.codes[..], retry.attempts, retry.backoff),
        (&[503, 500][..], 3, Duration::from_millis(100))
    );
    assert_eq!(
        rule.backends[0].target,
        BackendTarget {
            path: "spec.rules[0].backendRefs[0]".into(),
            group: String::new(),
            kind: "Service".into(),
            namespace: Some("other".into()),
            name: "ingress-dapr".into(),
            port: Some(3500),
        }
    );
    let Body::ReferenceGrant(grant) = &all[3].body else {
        panic!()
    };
    let from = (GROUP, "HTTPRoute", "default");
    assert!(grant.permits(from, ("", "Service", "any")));
    assert!(!grant.permits((GROUP, "GRPCRoute", "default"), ("", "Service", "any")));
    assert!(!grant.permits((GROUP, "HTTPRoute", "else"), ("", "Service", "any")));
    assert!(!grant.permits(from, ("", "Secret", "any")));
    assert_eq!(all[5].meta.labels["team"], "red");
    // The object as it was written, for whoever wants to see it.
    let json: Value = serde_json::from_str(&all[4].json).unwrap();
    assert_eq!(json["spec"]["controllerName"], "io.cilium/gateway-controller");
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_schema() {
    let empty = route(&object("HTTPRoute", ""));
    assert_eq!(
        (
            empty.rules.len(),
            empty.rules[0].matches.len(),
            empty.rules[0].backends.len()
        ),
        (1, 0, 0)
    );
    assert!(route(&object("GRPCRoute", "")).rules.is_empty());
    let one = route(&object(
        "HTTPRoute",
        "parentRefs: [{name: g}], rules: [{matches: [{}, {path: {}}], filters: [{type: RequestRedirect, requestRedirect: {}}]}, \
         {filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}}}], retry: {}}]",
    ));
    assert_eq!(
        (one.parents[0].group.as_str(), one.parents[0].kind.as_str()),
        (GROUP, "Gateway")
    );
    for found in &one.rules[0].matches {
        assert_eq!(found.path, PathMatch::Prefix("/".into()));
    }
    assert_eq!(one.rules[0].filters.redirect.as_ref().unwrap().status, 302);
    let mirror = &one.rules[1].filters.mirrors[0];
    assert_eq!((mirror.share, mirror.out_of), (100, 100));
    assert_eq!(one.rules[1].retry.as_ref().unwrap().attempts, 1);
    let gateway = gateway(&object(
        "Gateway",
        "gatewayClassName: c, listeners: [{name: a, port: 80, protocol: HTTP, hostname: ''}]",
    ));
    let listener = &gateway.listeners[0];
    assert_eq!(
        (&listener.hostname, &listener.namespaces, listener.kinds.len()),
        (&None, &AllowedNamespaces::Same, 0)
    );
}

#[test]
fn grpc_methods_are_paths() {
    let path = |method: &str| {
        let rules = format!("rules: [{{matches: [{{method: {{{method}}}}}]}}]");
        route(&object("GRPCRoute", &rules))
            .rules
            .remove(0)
            .matches
            .remove(0)
            .path
    };
    assert_eq!(path("service: a.B, method: C"), PathMatch::Exact("/a.B/C".into()));
    assert_eq!(path("service: a.B"), PathMatch::Prefix("/a.B".into()));
    assert_eq!(path("method: C"), PathMatch::GrpcMethod("C".into()));
    let pattern = |method: &str| path(&format!("type: RegularExpression, {method}"));
    assert_eq!(
        pattern("service: 'a|b', method: 'C.*'"),
        PathMatch::Pattern("/(?:a|b)/(?:C.*)".into())
    );
    assert_eq!(pattern("method: C"), PathMatch::Pattern("/[^/]+/(?:C)".into()));
    let any = route(&object(
        "GRPCRoute",
        "rules: [{matches: [{headers: [{name: a, value: b}]}]}]",
    ));
    assert_eq!(any.rules[0].matches[0].path, PathMatch::Prefix("/".into()));
    for wrong in ["type: Exact", "service: 'a b'", "method: a.b"] {
        bad(&object(
            "GRPCRoute",
            &format!("rules: [{{matches: [{{method: {{{wrong}}}}}]}}]"),
        ));
    }
}

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

#[test]
fn what_the_schema_of_routes_forbids_is_refused_where_it_stands() {
    let backends = "backendRefs: [{name: b, port: 80}]";
    let redirect = "{type: RequestRedirect, requestRedirect: {port: 1}}";
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a.test}}";
    let prefix = "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}";
    let filter = |f: &str| format!("rules: [{{filters: [{f}]}}]");
    let path = |p: &str| format!("rules: [{{matches: [{{path: {{{p}}}}}]}}]");
    let long = vec!["{}"; 65].join(", ");
    let many = (0..17)
        .map(|n| format!("a{n}.test"))
        .collect::<Vec<_>>()
        .join(", ");
    let matches = |n: usize| vec![format!("{{matches: [{}]}}", vec!["{}"; n].join(", ")); 4].join(", ");
    let same = |a: &str, b: &str| format!("parentRefs: [{{name: g{a}}}, {{name: g{b}}}]");
    let cases = [
        (
            "rules: []".to_owned(),
            "must have an element",
            "rules: [{}]".to_owned(),
        ),
        (
            format!("rules: [{{matches: [{long}]}}]"),
            "rules[0].matches: has 65 elements, at most 64",
            format!("rules: [{{matches: [{}]}}]", vec!["{}"; 64].join(", ")),
        ),
        (
            format!("rules: [{}]", matches(33)),
            "have 132 matches, at most 128",
            format!("rules: [{}]", matches(32)),
        ),
        (
            format!("hostnames: [{many}]"),
            "has 17 elements, at most 16",
            "hostnames: [a0.test]".into(),
        ),
        (
            "hostnames: [A.test]".into(),
            "hostnames[0]: \"A.test\" is no hostname",
            "hostnames: [a.test]".into(),
        ),
        (
            "hostnames: ['*']".into(),
            "is no hostname",
            "hostnames: ['*.test']".into(),
        ),
        (
            "hostnames: ['a.*.test']".into(),
            "is no hostname",
            "hostnames: ['*.a.test']".into(),
        ),
        (
            "hostnames: ['10.0.0.1']".into(),
            "is no hostname",
            "hostnames: ['10.0.0.1.test']".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b}]}]".into(),
            "backendRefs[0].port: is required for a Service",
            format!("rules: [{{{backends}}}]"),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: 0}]}]".into(),
            "must be from 1 to 65535",
            "rules: [{backendRefs: [{name: b, port: 65535}]}]".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: 80, weight: 1000001}]}]".into(),
            "weight: must be from 0 to 1000000",
            "rules: [{backendRefs: [{name: b, port: 80, weight: 1000000}]}]".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: '80'}]}]".into(),
            "must be a number, found a text",
            format!("rules: [{{{backends}}}]"),
        ),
        (
            format!("rules: [{{filters: [{redirect}], {backends}}}]"),
            "RequestRedirect can not stand beside backendRefs",
            filter(redirect),
        ),
        (
            filter(&format!("{redirect}, {rewrite}")),
            "can not stand together",
            filter(rewrite),
        ),
        (
            filter(&format!("{rewrite}, {rewrite}")),
            "only once",
            filter(rewrite),
        ),
        (
            filter("{type: URLRewrite}"),
            "says nothing for its type",
            filter(rewrite),
        ),
        (
            filter("{type: URLRewrite, urlRewrite: {}, requestRedirect: {}}"),
            "requestRedirect: can not stand in a filter of type URLRewrite",
            filter(rewrite),
        ),
        (
            format!("rules: [{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{prefix}]}}]"),
            "replacePrefixMatch needs exactly one match, of type PathPrefix",
            format!("rules: [{{matches: [{{path: {{value: /a}}}}], filters: [{prefix}]}}]"),
        ),
        (
            format!("rules: [{{matches: [{{}}, {{}}], filters: [{prefix}]}}]"),
            "replacePrefixMatch needs exactly one match",
            format!("rules: [{{filters: [{prefix}]}}]"),
        ),
        (path("value: a"), "must begin with /", path("value: /a")),
        (path("value: /a//b"), "must not contain //", path("value: /a/b")),
        (path("value: /a/../b"), "must not contain", path("value: /a/..b")),
        (path("value: /a/.."), "must not end", path("value: /a/..b")),
        (path("value: /a%2fb"), "must not contain", path("value: /a%20b")),
        (
            path("value: '/a b'"),
            "must be written as %XX",
            path("type: RegularExpression, value: '/a b'"),
        ),
        (
            path("value: /a%2"),
            "must be written as %XX",
            path("value: /a%20"),
        ),
        (
            "rules: [{matches: [{headers: [{name: 'a b', value: c}]}]}]".into(),
            "is no name of a header",
            "rules: [{matches: [{headers: [{name: ab, value: c}]}]}]".into(),
        ),
        (
            "rules: [{matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]}]".into(),
            "is matched twice",
            "rules: [{matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}]}]".into(),
        ),
        (
            filter(
                r#"{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: "b\nc"}]}}"#,
            ),
            "no header's value",
            filter("{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b c}]}}"),
        ),
        (
            filter(
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}, {name: A, value: c}]}}",
            ),
            "is named twice",
            filter(
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: a, value: c}]}}",
            ),
        ),
        (
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, percent: 1, fraction: {numerator: 1}}}",
            ),
            "can not stand together",
            filter("{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, percent: 1}}"),
        ),
        (
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, fraction: {numerator: 3, denominator: 2}}}",
            ),
            "must not be above denominator",
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, fraction: {numerator: 2, denominator: 2}}}",
            ),
        ),
        (
            filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a, replacePrefixMatch: /a}}}",
            ),
            "can not stand beside the type that wants replaceFullPath",
            filter("{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}"),
        ),
        (
            "rules: [{timeouts: {request: 1m, backendRequest: 61s}}]".into(),
            "backendRequest must not be longer",
            "rules: [{timeouts: {request: 0s, backendRequest: 61s}}]".into(),
        ),
        (
            "rules: [{timeouts: {request: 1.5s}}]".into(),
            "is no duration",
            "rules: [{timeouts: {request: 1s500ms}}]".into(),
        ),
        (
            "rules: [{retry: {codes: [200]}}]".into(),
            "must be from 400 to 599",
            "rules: [{retry: {codes: [503]}}]".into(),
        ),
        (
            "rules: [{retry: {attempts: 0}}]".into(),
            "must be from 1",
            "rules: [{retry: {attempts: 1}}]".into(),
        ),
        (
            "rules: [{name: x}, {name: x}]".into(),
            "is another rule's",
            "rules: [{name: x}, {name: z}]".into(),
        ),
        (
            "rules: [{sessionPersistence: {}}]".into(),
            "is not supported yet",
            "rules: [{}]".into(),
        ),
        (
            "useDefaultGateways: All".into(),
            "is not supported yet",
            String::new(),
        ),
        ("rulez: []".into(), "unknown field", String::new()),
        (
            "rules: [{backendRef: []}]".into(),
            "rules[0].backendRef: unknown field",
            "rules: [{backendRefs: []}]".into(),
        ),
        (
            same("", ""),
            "refers to the same part of a parent again",
            same("", ", namespace: x"),
        ),
        (
            same(", sectionName: a", ""),
            "all of them name a sectionName",
            same(", sectionName: a", ", sectionName: b"),
        ),
        (
            same(", port: 1", ", port: 1"),
            "the same part",
            same(", port: 1", ", port: 2"),
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(a, b, c)| (a.as_str(), *b, c.as_str()))
        .collect();
    twins("HTTPRoute", &cases);
}

#[test]
fn what_the_schema_of_gateways_forbids_is_refused_where_it_stands() {
    let with = |listeners: &str| format!("gatewayClassName: c, listeners: [{listeners}]");
    let http = "{name: a, port: 80, protocol: HTTP}";
    let cases = [
        (with(""), "listeners: must have an element", with(http)),
        (
            with("{name: a, port: 0, protocol: HTTP}"),
            "must be from 1 to 65535",
            with(http),
        ),
        (
            with(&format!("{http}, {{name: a, port: 81, protocol: HTTP}}")),
            "is another listener's",
            with(&format!("{http}, {{name: b, port: 81, protocol: HTTP}}")),
        ),
        (
            with(&format!("{http}, {{name: b, port: 80, protocol: HTTP}}")),
            "are those of another listener",
            with(&format!(
                "{http}, {{name: b, port: 80, protocol: HTTP, hostname: a.test}}"
            )),
        ),
        (
            with("{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: s}]}}"),
            "HTTP has no tls",
            with("{name: a, port: 80, protocol: HTTPS, tls: {certificateRefs: [{name: s}]}}"),
        ),
        (
            with("{name: a, port: 80, protocol: HTTPS, tls: {}}"),
            "names no certificateRefs",
            with("{name: a, port: 80, protocol: HTTPS, tls: {options: {a: b}}}"),
        ),
        (
            with("{name: a, port: 80, protocol: HTTPS, tls: {mode: Passthrough}}"),
            "mode must be Terminate",
            with("{name: a, port: 80, protocol: TLS, tls: {mode: Passthrough}}"),
        ),
        (
            with("{name: a, port: 80, protocol: TLS}"),
            "tls.mode is required",
            with("{name: a, port: 80, protocol: TLS, tls: {mode: Passthrough}}"),
        ),
        (
            with("{name: a, port: 80, protocol: TCP, hostname: a.test}"),
            "TCP has no hostname",
            with("{name: a, port: 80, protocol: TCP}"),
        ),
        (
            with("{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Some}}}"),
            "is none of All, Same, Selector",
            with("{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}"),
        ),
        (
            with("{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}}"),
            "selector is required",
            with(
                "{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {}}}}",
            ),
        ),
        (
            format!("{}, addresses: [{{value: a.test}}]", with(http)),
            "is no IP address",
            format!("{}, addresses: [{{value: 10.0.0.1}}]", with(http)),
        ),
        (
            format!("{}, tls: {{}}", with(http)),
            "spec.tls: is not supported yet",
            with(http),
        ),
        (
            format!("listeners: [{http}]"),
            "spec.gatewayClassName: is required",
            with(http),
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(a, b, c)| (a.as_str(), *b, c.as_str()))
        .collect();
    twins("Gateway", &cases);
    twins(
        "GatewayClass",
        &[(
            "controllerName: weft",
            "is no controller's name",
            "controllerName: weft.dev/x",
        )],
    );
    let grant = |to: &str| format!("from: [{{group: a.test, kind: A, namespace: shop}}], to: [{to}]");
    let right = grant("{group: '', kind: Service}");
    twins(
        "ReferenceGrant",
        &[
            (&grant(""), "to: must have an element", &right),
            (&grant("{group: '', kind: 1Service}"), "is no kind", &right),
        ],
    );
    let found = bad(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: a, namespace: b}\nspec: {controllerName: weft.dev/x}\n",
    );
    assert_eq!(
        found,
        ["a.yaml:3: metadata.namespace: objects of this kind have no namespace"]
    );
}

#[test]
fn kinds_are_read_under_the_versions_they_were_published_with() {
    for (kind, versions, not) in [
        ("HTTPRoute", &["v1", "v1beta1", "v1alpha2"][..], "v1alpha1"),
        ("GRPCRoute", &["v1", "v1alpha2"], "v1beta1"),
    ] {
        let text = |version: &str| object(kind, "").replace("/v1", &format!("/{version}"));
        for version in versions {
            assert_eq!(good(&text(version)).len(), 1, "{kind} {version}");
        }
        let found = bad(&text(not));
        assert!(
            found[0].contains(&format!("{kind} is read as {GROUP}/v1")),
            "{found:?}"
        );
    }
    for kind in ["TLSRoute", "TCPRoute", "BackendTLSPolicy", "ListenerSet"] {
        assert!(
            bad(&object(kind, ""))[0].contains("is not supported yet"),
            "{kind}"
        );
    }
}

#[test]
fn values_that_later_versions_may_know_make_a_route_that_is_not_accepted() {
    let filter = |f: &str| format!("rules: [{{filters: [{f}]}}]");
    for (spec, said) in [
        (
            filter("{type: CORS, cors: {allowOrigins: ['*']}}"),
            "spec.rules[0].filters[0].type: filter CORS",
        ),
        (filter("{type: Teleport}"), "filter \"Teleport\""),
        (
            filter("{type: ExtensionRef, extensionRef: {group: a.test, kind: A, name: a}}"),
            "filter ExtensionRef",
        ),
        (
            "rules: [{matches: [{method: BREW}]}]".into(),
            "spec.rules[0].matches[0].method: \"BREW\"",
        ),
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: '(?=a)'}}]}]".into(),
            "no regular expression",
        ),
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: '(a{1000}){1000}'}}]}]".into(),
            "no regular expression",
        ),
        (
            "rules: [{matches: [{path: {type: RegularExpression, value: 'a)(b'}}]}]".into(),
            "no regular expression",
        ),
        (
            "rules: [{matches: [{headers: [{type: Glob, name: a, value: b}]}]}]".into(),
            "\"Glob\"",
        ),
        (
            filter("{type: RequestRedirect, requestRedirect: {statusCode: 300}}"),
            "statusCode: one of 301",
        ),
        (
            filter("{type: RequestRedirect, requestRedirect: {scheme: ftp}}"),
            "scheme: \"ftp\"",
        ),
        (
            filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}}}",
            ),
            "only a path",
        ),
    ] {
        let found = route(&object("HTTPRoute", &spec)).unsupported;
        assert!(found.len() == 1 && found[0].contains(said), "{spec}: {found:?}");
    }
    // GRPCRoute has no redirects.
    let spec = filter("{type: RequestRedirect}");
    assert_eq!(route(&object("GRPCRoute", &spec)).unsupported.len(), 1);
    assert_eq!(
        route(&object("HTTPRoute", "rules: [{}]")).rules[0].filters,
        RouteFilters::default()
    );
}

#[test]
fn times_of_clusters_are_read() {
    let with = |meta: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, {meta}}}\n");
    let read = |meta: &str| good(&with(meta)).remove(0).meta;
    assert_eq!(read("creationTimestamp: null, generation: 2").generation, Some(2));
    assert_eq!(
        read("creationTimestamp: 2024-05-01T12:00:00Z").created,
        Some(1_714_564_800)
    );
    assert!(bad(&with("creationTimestamp: yesterday"))[0].contains("is no time such as"));
    assert!(bad(&with("generation: -1"))[0].contains("must be a number"));
}

/// Trees made of names that the kinds know, with values of any shape.
fn tree() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(
        "parentRefs hostnames rules matches path type value headers name method queryParams filters \
         requestHeaderModifier set add remove requestMirror backendRef percent fraction numerator denominator \
         requestRedirect scheme hostname port statusCode replaceFullPath replacePrefixMatch urlRewrite cors \
         backendRefs weight timeouts request backendRequest retry codes attempts backoff service listeners \
         protocol tls mode certificateRefs allowedRoutes namespaces from selector matchLabels kinds group kind \
         namespace sectionName gatewayClassName addresses infrastructure parametersRef controllerName to x"
            .split_whitespace()
            .collect::<Vec<_>>(),
    );
    let texts = prop::sample::select(
        "Exact PathPrefix RegularExpression RequestRedirect URLRewrite RequestMirror RequestHeaderModifier \
         ReplacePrefixMatch Service Gateway HTTPRoute HTTP HTTPS TLS Selector All a a.test *.test / /a// ( 1s 99999h9ms \
         10.0.0.1 é"
            .split_whitespace()
            .collect::<Vec<_>>(),
    );
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0i64),
            Just(80),
            Just(301),
            Just(-1),
            Just(i64::MAX),
            any::<i64>()
        ]
        .prop_map(Value::from),
        texts.prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 96, 6, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => prop::collection::vec((names.clone(), inner), 0..6).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(n, v)| (n.to_owned(), v)).collect::<Map<_, _>>())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_tree_of_known_names_panics(spec in tree(), kind in 0usize..5) {
        let kind = ["GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "ReferenceGrant"][kind];
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": "a"}, "spec": spec});
        match parse("a.json", object.to_string().as_bytes()) {
            Ok(all) => prop_assert_eq!(all.len(), 1),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    prop_assert_eq!(problem.line, 1, "{}", problem);
                    prop_assert!(!problem.to_string().contains('\n'));
                }
            }
        }
    }

    #[test]
    fn damaged_manifests_never_panic(cuts in prop::collection::vec((0usize..4000, "[\\PC\\n]{0,6}"), 1..6)) {
        let mut text = PUBLISHED.to_owned();
        for (at, with) in cuts {
            let mut at = at % (text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + 3).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(at..end, &with);
        }
        if let Err(problems) = parse("a.yaml", text.as_bytes()) {
            prop_assert!(!problems.is_empty());
            for p in problems {
                prop_assert!(p.line >= 1 && p.line as usize <= text.lines().count() + 1, "{p}");
            }
        }
    }
}
