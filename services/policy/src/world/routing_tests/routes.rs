//! What is said of routes and of their references.

use super::*;

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
