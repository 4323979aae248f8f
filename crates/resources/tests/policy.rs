//! What network policies may say, and what may not stand together.
#![allow(clippy::unwrap_used)]

use weft_resources::{Body, Entity, NameRule, NetworkPolicy, PeerRule, Port, parse};

/// A CiliumNetworkPolicy with one ingress rule, written in flow style.
fn cilium(section: &str, rule: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\n\
         spec:\n  endpointSelector: {{}}\n  {section}: [{{{rule}}}]\n"
    )
}

fn kubernetes(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n"
    )
}

fn read(text: &str) -> NetworkPolicy {
    let mut all = parse("p.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?} in {text}"));
    match all.remove(0).body {
        Body::CiliumNetworkPolicy(policy)
        | Body::CiliumClusterwideNetworkPolicy(policy)
        | Body::NetworkPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn problems(text: &str) -> Vec<String> {
    let found = parse("p.yaml", text.as_bytes()).map_or_else(|e| e, |r| panic!("{r:#?} from {text}"));
    found.iter().map(ToString::to_string).collect()
}

/// Each legal rule beside a near one that is not, and what is said of that.
#[test]
fn what_may_not_stand_together_is_refused() {
    let pairs = [
        (
            "toPorts: [{ports: [{port: '80'}]}]",
            "toPorts: [{ports: [{port: '80'}]}], icmps: [{fields: [{type: 8}]}]",
            "icmps: can not stand beside toPorts",
        ),
        (
            "fromEndpoints: [{}], fromEntities: []",
            "fromEndpoints: [{}], fromEntities: [all]",
            "combines fromEndpoints and fromEntities",
        ),
        (
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]",
            "toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]",
            "rules for requests need a port and protocol: TCP",
        ),
        (
            "toPorts: [{ports: [{port: '0', protocol: TCP}]}]",
            "toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}]",
            "rules for requests need a port and protocol: TCP",
        ),
        (
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a(b|c)'}]}}]",
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/a(b|c'}]}}]",
            "no regular expression",
        ),
        (
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headers: ['X-A: b', x-c]}]}}]",
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{headers: [': b']}]}}]",
            "no name of a header",
        ),
        (
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]",
            "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {kafka: [{}]}}]",
            "kafka: is not supported yet",
        ),
        (
            "toPorts: [{ports: [{port: '80', endPort: 80}]}]",
            "toPorts: [{ports: [{port: '80', endPort: 79}]}]",
            "endPort 79 must not be below port",
        ),
        (
            "toPorts: []",
            "toPorts: [{ports: []}]",
            "names no port and would match nothing",
        ),
        (
            "icmps: []",
            "icmps: [{fields: []}]",
            "names no message and would match nothing",
        ),
        (
            "toPorts: [{ports: [{port: http}]}]",
            "toPorts: [{ports: [{port: http_port}]}]",
            "is no name of a port",
        ),
        (
            "toPorts: [{ports: [{port: http}]}]",
            "toPorts: [{ports: [{port: http, endPort: 90}]}]",
            "port must be given as a number",
        ),
        (
            "fromCIDRSet: [{cidrGroupRef: g}]",
            "fromCIDRSet: [{cidrGroupRef: g, cidr: 10.0.0.0/8}]",
            "must have one of cidr, cidrGroupRef and cidrGroupSelector",
        ),
        (
            "fromEntities: [host, remote-node]",
            "fromNodes: [{matchLabels: {pool: x}}]",
            "write fromEntities: [host, remote-node]",
        ),
        (
            "icmps: [{fields: [{type: PacketTooBig, family: IPv6}]}]",
            "icmps: [{fields: [{type: PacketTooBig}]}]",
            "must be a number from 0 to 255 or one of EchoReply",
        ),
        (
            "icmps: [{fields: [{type: 255}]}]",
            "icmps: [{fields: [{type: 256}]}]",
            "must be a number from 0 to 255",
        ),
        (
            "authentication: {mode: required}",
            "authentication: {mode: test-always-fail}",
            "neither required nor disabled",
        ),
        (
            "fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]",
            "fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.1.0.0/16]}]",
            "not inside of the range",
        ),
        (
            "fromCIDR: ['10.0.0.0/8']",
            "fromCIDR: ['::ffff:10.0.0.0/104']",
            "write IPv4 as IPv4",
        ),
    ];
    for (good, bad, text) in pairs {
        read(&cilium("ingress", good));
        let found = problems(&cilium("ingress", bad));
        assert!(found.len() == 1 && found[0].contains(text), "{bad}: {found:?}");
        assert!(found[0].starts_with("p.yaml:6: spec.ingress[0]"), "{found:?}");
    }
    // What refuses can look into nothing, and asks for no proof.
    let http = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]";
    assert!(problems(&cilium("ingressDeny", http))[0].contains("a deny rule can have no L7 rules"));
    let proof = "authentication: {mode: required}";
    assert!(problems(&cilium("ingressDeny", proof))[0].contains("a deny rule refuses whoever it is"));
}

#[test]
fn messages_requests_and_proof_are_read() {
    let rule = "icmps: [{fields: [{type: EchoRequest}, {family: IPv6, type: EchoRequest}, {type: '3'}]}]";
    let policy = read(&cilium(
        "egress",
        &format!("{rule}, authentication: {{mode: required}}"),
    ));
    let PeerRule {
        icmps: Some(messages),
        authentication: weft_resources::Authentication::Required,
        ports: None,
        ..
    } = &policy.rules[0].egress[0]
    else {
        panic!("{policy:?}");
    };
    let found: Vec<_> = messages.iter().map(|m| (m.protocol, m.kind)).collect();
    assert_eq!(found, [(1, 8), (58, 128), (1, 3)]);
    assert_eq!(messages[1].path, "icmps[0].fields[1]");

    let http =
        "{method: GET, path: '/v1/.*', headers: ['X-A: b c', X-D], headerMatches: [{name: e, value: f}]}";
    let ports = "ports: [{port: '80', protocol: TCP}]";
    let policy = read(&cilium(
        "ingress",
        &format!("toPorts: [{{{ports}, rules: {{http: [{http}]}}}}]"),
    ));
    let request = &policy.rules[0].ingress[0].ports.as_ref().unwrap()[0]
        .http
        .as_ref()
        .unwrap()[0];
    assert_eq!(
        (request.method.as_deref(), request.host.as_deref()),
        (Some("GET"), None)
    );
    let headers: Vec<_> = request
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_deref()))
        .collect();
    assert_eq!(headers, [("x-a", Some("b c")), ("x-d", None), ("e", Some("f"))]);
}

#[test]
fn a_policy_of_kubernetes_is_about_what_its_types_say() {
    let types = |spec: &str| {
        let policy = read(&kubernetes(spec));
        let rule = &policy.rules[0];
        (
            rule.default_deny_ingress.unwrap(),
            rule.default_deny_egress.unwrap(),
            rule.ingress.len(),
            rule.egress.len(),
        )
    };
    assert_eq!(types("podSelector: {}"), (true, false, 0, 0));
    assert_eq!(types("podSelector: {}, egress: []"), (true, false, 0, 0));
    assert_eq!(types("podSelector: {}, egress: [{}]"), (true, true, 0, 1));
    assert_eq!(
        types("podSelector: {}, policyTypes: [Egress]"),
        (false, true, 0, 0)
    );
    // What the types leave out is without effect.
    assert_eq!(
        types("podSelector: {}, policyTypes: [Egress], ingress: [{}]"),
        (false, true, 0, 0)
    );
    assert!(problems(&kubernetes("podSelector: {}, policyTypes: [Both]"))[0].contains("neither Ingress nor"));
}

#[test]
fn peers_of_kubernetes() {
    let policy = read(&kubernetes(
        "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}, \
         {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80, endPort: 90}, {}]}, {}]",
    ));
    let [first, second, everybody] = &policy.rules[0].ingress[..] else {
        panic!("{policy:?}");
    };
    let key = &first.endpoints.as_ref().unwrap()[0].requirements[0].key;
    assert_eq!((key.source.as_deref(), key.name.as_str()), (Some("k8s"), "app"));
    assert_eq!(second.path, "ingress[0].from[1]");
    assert_eq!(second.cidrs.as_ref().unwrap()[0].except.len(), 1);
    let ports: Vec<_> = second
        .ports
        .iter()
        .flatten()
        .map(|p| (p.protocol, p.port.clone()))
        .collect();
    assert_eq!(ports, [(Some(6), Port::Range(80, 90)), (Some(6), Port::Any)]);
    assert_eq!(
        (&everybody.entities, &everybody.ports),
        (&Some(vec![Entity::All]), &None)
    );

    let refused = [
        ("from: [{}]", "names nobody"),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]",
            "can not stand beside",
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]",
            "not a part of the range",
        ),
        (
            "from: [{namespaceSelector: {matchLabels: {'k8s:team': x}}}]",
            "keys of labels have no colon",
        ),
        ("ports: [{port: http_port}]", "is no name of a port"),
        (
            "ports: [{port: http, endPort: 80}]",
            "port must be given as a number",
        ),
        ("ports: [{endPort: 80}]", "must not be below port"),
        ("ports: [{port: 80, protocol: ICMP}]", "none of TCP, UDP, SCTP"),
    ];
    for (rule, text) in refused {
        let found = problems(&kubernetes(&format!("podSelector: {{}}, ingress: [{{{rule}}}]")));
        assert!(found[0].contains(text), "{rule}: {found:?}");
        assert!(found[0].starts_with("p.yaml:4: spec.ingress[0]."), "{found:?}");
    }
}

#[test]
fn objects_of_the_cluster_have_no_namespace() {
    let text = |meta: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{{meta}}}\n\
             spec: {{endpointSelector: {{}}, ingress: [{{}}]}}\n"
        )
    };
    assert_eq!(
        parse("p.yaml", text("name: p").as_bytes()).unwrap()[0]
            .meta
            .to_string(),
        "p"
    );
    assert!(problems(&text("name: p, namespace: a"))[0].contains("have no namespace"));
}

#[test]
fn names_in_dns() {
    let policy = read(&cilium(
        "egress",
        "toFQDNs: [{matchName: API.Example.com.}, {matchPattern: '*.example.com'}]}, \
         {toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}, {toFQDNs: []",
    ));
    let [by_name, queries, nobody] = &policy.rules[0].egress[..] else {
        panic!("{policy:?}");
    };
    let (name, pattern) = (
        NameRule::Name("api.example.com".into()),
        NameRule::Pattern("*.example.com".into()),
    );
    assert_eq!(by_name.names, Some(vec![name, pattern]));
    let port = &queries.ports.as_ref().unwrap()[0];
    assert_eq!((port.protocol, &port.port), (None, &Port::Range(53, 53)));
    assert_eq!(port.dns.as_deref(), Some(&[NameRule::Pattern("*".into())][..]));
    assert_eq!(nobody.names, Some(Vec::new()));

    let long = format!("toFQDNs: [{{matchName: {}}}]", "a.".repeat(200));
    let many = format!("toFQDNs: [{}]", "{matchName: a},".repeat(1001));
    let dns = |ports: &str, rules: &str| format!("toPorts: [{{ports: [{{{ports}}}], rules: {{{rules}}}}}]");
    let any = "dns: [{matchName: a}]";
    let refused = [
        (
            "toFQDNs: [{matchName: a, matchPattern: b}]".to_owned(),
            "one of matchName and matchPattern",
        ),
        ("toFQDNs: [{}]".into(), "one of matchName and matchPattern"),
        ("toFQDNs: [{matchName: '*.a'}]".into(), "no name in DNS"),
        ("toFQDNs: [{matchName: 'a..b'}]".into(), "no name in DNS"),
        ("toFQDNs: [{matchPattern: 'a[b]'}]".into(), "no name in DNS"),
        ("toFQDNs: [{matchName: ''}]".into(), "no name in DNS"),
        (long, "at most 255"),
        (many, "at most 1000"),
        (
            "toFQDNs: [{matchName: a}], toEntities: [world]".into(),
            "combines toEntities and toFQDNs",
        ),
        (dns("port: '54', protocol: UDP", any), "rules for DNS need port"),
        (
            dns("port: '53', endPort: 54, protocol: UDP", any),
            "rules for DNS need port",
        ),
        (dns("port: '53', protocol: SCTP", any), "rules for DNS need port"),
        (dns("port: '0'", any), "rules for DNS need port"),
        (
            dns("port: '53', protocol: UDP", "dns: []"),
            "names nothing that may be asked",
        ),
        (
            dns("port: '53', protocol: TCP", "dns: [{matchName: a}], http: [{}]"),
            "combines http and dns",
        ),
    ];
    for (rule, text) in refused {
        let found = problems(&cilium("egress", &rule));
        assert!(found[0].contains(text), "{rule}: {found:?}");
        assert!(found[0].starts_with("p.yaml:6: spec.egress[0]"), "{found:?}");
    }
    let deny = problems(&cilium("egressDeny", "toFQDNs: [{matchName: a}]"));
    assert!(deny[0].contains("toFQDNs: unknown field"), "{deny:?}");
    let ingress = problems(&cilium("ingress", &dns("port: '53', protocol: UDP", any)));
    assert!(ingress[0].contains("about what goes out"), "{ingress:?}");
}
