//! CiliumLocalRedirectPolicy: what is read, and what is refused with its place.
#![allow(clippy::unwrap_used)]

use weft_resources::{Body, parse};

const GOOD: &str = "
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {name: ingress-dapr}
spec:
  description: stay on the node
  skipRedirectFromBackend: false
  redirectFrontend:
    serviceMatcher: {serviceName: ingress-dapr, namespace: default}
  redirectBackend:
    localEndpointSelector: {matchLabels: {app.kubernetes.io/name: ingress-dapr}}
    toPorts: [{port: '3500', name: http, protocol: TCP}]
";

#[test]
fn a_published_policy_is_read() {
    let all = parse("a.yaml", GOOD.as_bytes()).unwrap();
    let Body::CiliumLocalRedirectPolicy(redirect) = &all[0].body else {
        panic!("{all:?}")
    };
    assert_eq!(
        (redirect.namespace.as_str(), redirect.service.as_str()),
        ("default", "ingress-dapr")
    );
    assert_eq!(
        (
            redirect.ports[0].port,
            redirect.ports[0].protocol,
            redirect.ports[0].name.as_str()
        ),
        (3500, 6, "http")
    );
    assert_eq!(redirect.backends.requirements.len(), 1);
}

#[test]
fn what_is_wrong_is_told_where_it_stands() {
    for (from, to, said) in [
        (
            "skipRedirectFromBackend: false",
            "skipRedirectFromBackend: true",
            "7: spec.skipRedirectFromBackend: is not supported yet",
        ),
        (
            "serviceMatcher: {serviceName: ingress-dapr, namespace: default}",
            "addressMatcher: {ip: 169.254.1.1, toPorts: []}",
            "spec.redirectFrontend.addressMatcher: is not supported yet",
        ),
        (
            "serviceMatcher: {",
            "addressMatcher: {}\n    serviceMatcher: {",
            "can not stand together",
        ),
        (
            "serviceMatcher: {serviceName: ingress-dapr, namespace: default}",
            "{}",
            "must have a serviceMatcher",
        ),
        (
            "serviceName: ingress-dapr, ",
            "",
            "serviceMatcher.serviceName: is required",
        ),
        (
            "namespace: default}",
            "namespace: default, toPorts: [{port: '80', protocol: TCP}]}",
            "serviceMatcher.toPorts: is not supported yet",
        ),
        (
            "[{port: '3500', name: http, protocol: TCP}]",
            "[]",
            "toPorts: must have an element",
        ),
        (
            "port: '3500'",
            "port: '0'",
            "must be a port number from 1 to 65535",
        ),
        ("protocol: TCP", "protocol: SCTP", "must be TCP or UDP"),
        (
            "protocol: TCP}]",
            "protocol: TCP}, {port: '1', protocol: TCP}]",
            "must have a name of its own",
        ),
        (
            "  redirectBackend:",
            "  redirectBackends: []\n  redirectBackend:",
            "spec.redirectBackends: unknown field",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        let found = parse("a.yaml", text.as_bytes()).expect_err(&text);
        assert!(
            found.len() == 1 && found[0].to_string().contains(said),
            "{said}: {found:#?}"
        );
    }
}
