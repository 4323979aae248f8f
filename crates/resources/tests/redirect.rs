//! CiliumLocalRedirectPolicy: what is read, and what is refused with its place.
#![allow(clippy::unwrap_used)]

use weft_resources::{Body, RedirectFrontend, parse};

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
    let service = RedirectFrontend::Service {
        namespace: "default".into(),
        name: "ingress-dapr".into(),
    };
    assert_eq!(redirect.frontend, service);
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

/// As the documentation of Cilium has it for a node's cache of DNS.
const ADDRESS: &str = "
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {name: nodelocaldns, namespace: kube-system}
spec:
  redirectFrontend:
    addressMatcher:
      ip: 169.254.20.10
      toPorts:
        - {port: '53', name: dns, protocol: UDP}
        - {port: '53', name: dns-tcp, protocol: TCP}
  redirectBackend:
    localEndpointSelector: {matchLabels: {k8s-app: node-local-dns}}
    toPorts:
      - {port: '5353', name: dns, protocol: UDP}
      - {port: '5354', name: dns-tcp, protocol: TCP}
";

#[test]
fn an_address_is_redirected_port_by_port() {
    let all = parse("a.yaml", ADDRESS.as_bytes()).unwrap();
    let Body::CiliumLocalRedirectPolicy(redirect) = &all[0].body else {
        panic!("{all:?}")
    };
    let RedirectFrontend::Address { ip, ports } = &redirect.frontend else {
        panic!("{redirect:?}")
    };
    assert_eq!((ip.to_string().as_str(), ports.len()), ("169.254.20.10", 2));
    let targets = ports.iter().map(|p| redirect.target(&p.name, p.protocol));
    assert_eq!(targets.collect::<Vec<_>>(), [Some(5353), Some(5354)]);
    assert_eq!(redirect.target("dns", 6), None);
    for (from, to, said) in [
        (
            "169.254.20.10",
            "127.0.0.1",
            "8: spec.redirectFrontend.addressMatcher.ip: can not be redirected",
        ),
        (
            "169.254.20.10",
            "dns.example",
            "addressMatcher.ip: is no IP address",
        ),
        (
            "name: dns-tcp, protocol: TCP}\n  ",
            "name: other, protocol: TCP}\n  ",
            "redirectFrontend: no port of redirectBackend is for port 53",
        ),
    ] {
        assert!(ADDRESS.contains(from), "{from}");
        let text = ADDRESS.replacen(from, to, 1);
        let found = parse("a.yaml", text.as_bytes()).expect_err(&text);
        assert!(
            found.len() == 1 && found[0].to_string().contains(said),
            "{said}: {found:#?}"
        );
    }
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
            "spec.redirectFrontend.addressMatcher.toPorts: must have an element",
        ),
        (
            "serviceMatcher: {",
            "addressMatcher: {}\n    serviceMatcher: {",
            "can not stand together",
        ),
        (
            "serviceMatcher: {serviceName: ingress-dapr, namespace: default}",
            "{}",
            "must have an addressMatcher or a serviceMatcher",
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
