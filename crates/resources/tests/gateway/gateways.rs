//! What Gateways, classes and grants may not say.

use super::*;

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
