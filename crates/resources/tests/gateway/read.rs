//! What is read of published manifests, and what is put where they say nothing.

use super::*;

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
    for kind in ["TCPRoute", "UDPRoute", "XBackendTrafficPolicy", "ListenerSet"] {
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
