//! Manifests and questions, made up from few words so that they concern each other, with what is rare and
//! dangerous in it: empty lists, namespaces across, ranges that overlap, edges of ports.

use crate::{Direction, Peer, Request, Traffic};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{select, subsequence},
};
use serde_json::{Map, Value, json};
use weft_model::{Labels, NumericIdentity};

/// The workloads of the cluster: of two namespaces, with two keys of two values or none.
pub fn workloads() -> Vec<(NumericIdentity, Labels)> {
    let mut all = Vec::new();
    for namespace in ["a", "b"] {
        for app in [None, Some("x"), Some("y")] {
            for tier in [None, Some("x")] {
                let own = app
                    .map(|v| ("app", v))
                    .into_iter()
                    .chain(tier.map(|v| ("tier", v)));
                let number = NumericIdentity(256 + all.len() as u32);
                let labels = Labels::for_workload(own, namespace, "", "");
                let team = if namespace == "a" { "x" } else { "y" };
                all.push((number, labels.with_namespace([("team", team)])));
            }
        }
    }
    all
}

/// What a workload calls its ports: name, protocol, number.
pub fn named_ports(labels: &Labels) -> Vec<(&'static str, u8, u16)> {
    match labels.get("k8s:app") {
        Some("x") => vec![("http", 6, 80), ("dns", 17, 85), ("dns", 6, 443)],
        Some(_) => vec![("http", 6, 8080), ("dns", 17, 80), ("other", 132, 80)],
        None => Vec::new(),
    }
}

/// What policies name beside workloads: groups of addresses and Services.
pub fn surroundings() -> Vec<Value> {
    let group = |name: &str, kind: &str, cidrs: &[&str]| {
        json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumCIDRGroup",
            "metadata": {"name": name, "labels": {"kind": kind}},
            "spec": {"externalCIDRs": cidrs},
        })
    };
    let service = |namespace: &str, name: &str, kind: &str, selector: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": namespace, "name": name, "labels": {"kind": kind}},
            "spec": {"selector": selector, "ports": [{"port": 80}]},
        })
    };
    vec![
        group("g1", "x", &["10.0.0.0/8", "2001:db8::/32"]),
        group("g2", "y", &["10.1.0.0/16", "192.0.2.1/32"]),
        group("g3", "x", &["192.0.2.0/24"]),
        service("a", "s1", "x", json!({"app": "x"})),
        service("b", "s1", "y", json!({"app": "y", "tier": "x"})),
        service("a", "s2", "y", json!({"tier": "x"})),
        service("b", "s3", "x", json!({})),
    ]
}

/// Services, by name or by label.
fn services() -> impl Strategy<Value = Value> {
    let namespace = || option::of(select(vec!["a", "b"])).prop_map(|n| n.map(|n| json!(n)));
    let named = (select(vec!["s1", "s2", "s3", "s4"]), namespace()).prop_map(|(name, namespace)| {
        let parts = vec![("serviceName", Some(json!(name))), ("namespace", namespace)];
        json!({"k8sService": object_of(parts)})
    });
    let labelled = (selector(&["kind"], &["x", "y"]), namespace()).prop_map(|(selector, namespace)| {
        let parts = vec![("selector", Some(selector)), ("namespace", namespace)];
        json!({"k8sServiceSelector": object_of(parts)})
    });
    prop_oneof![named, labelled]
}

/// Ranges of groups, some less holes.
fn group_set() -> impl Strategy<Value = Value> {
    let named = select(vec!["g1", "g2", "g3", "g4"]).prop_map(|name| ("cidrGroupRef", json!(name)));
    let labelled = selector(&["kind"], &["x", "y"]).prop_map(|selector| ("cidrGroupSelector", selector));
    let holes = vec!["10.1.0.0/16", "192.0.2.0/24", "2001:db8:1::/48"];
    (
        prop_oneof![named, labelled],
        option::of(subsequence(holes, 1..=2)),
    )
        .prop_map(|((field, which), except)| {
            object_of(vec![(field, Some(which)), ("except", except.map(|e| json!(e)))])
        })
}

/// Addresses outside the cluster, in and beside the ranges that policies name.
pub const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.2.3",
    "10.1.200.1",
    "192.0.2.1",
    "255.255.255.255",
    "2001:db8::1",
    "2001:db8:1::1",
    "fe00::1",
];

/// Peers in the cluster that are no workloads, with their numbers.
pub const RESERVED: [(u32, &str); 7] = [
    (1, "host"),
    (3, "unmanaged"),
    (4, "health"),
    (5, "init"),
    (6, "remote-node"),
    (7, "kube-apiserver"),
    (8, "ingress"),
];

const RANGES: [&str; 8] = [
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "10.1.0.0/16",
    "10.1.128.0/17",
    "2001:db8::/32",
    "10.0.0.1",
    "2001:db8:1::/48",
];

/// Ports that occur in policies.
const PORTS: [u16; 7] = [1, 53, 80, 85, 443, 8080, 65_535];

/// One question about a workload.
#[derive(Debug, Clone)]
pub struct Question {
    /// Which way.
    pub direction: Direction,
    /// With whom.
    pub peer: Peer,
    /// What.
    pub traffic: Traffic,
    /// With TCP, a request on that connection.
    pub request: Request,
    /// At a resolver's port, a name that is asked for.
    pub name: &'static str,
}

/// Names in DNS, some that policies name and some that look like these.
const NAMES: [&str; 8] = [
    "api.example",
    "www.api.example",
    "a.b.api.example",
    "xapi.example",
    "api.test",
    "db.test",
    "example",
    "_srv.api.test",
];

/// What names resolve to, as an object beside the manifests: some of [`ADDRESSES`] for some of them.
pub fn resolved() -> impl Strategy<Value = Value> {
    let one = (select(&NAMES[..]), subsequence(ADDRESSES.to_vec(), 0..4));
    vec(one, 0..6).prop_map(|names| {
        let names: Map<_, _> = names.into_iter().map(|(n, a)| (n.to_owned(), json!(a))).collect();
        json!({"kind": "Resolved", "names": names})
    })
}

fn names() -> impl Strategy<Value = Value> {
    let patterns = vec![
        "*",
        "*.example",
        "**.example",
        "*api.example",
        "*.api.*",
        "a*.test",
        "*.TEST.",
        "**.api.example",
        "*.",
    ];
    prop_oneof![
        select(&NAMES[..]).prop_map(|name| json!({"matchName": name})),
        select(patterns).prop_map(|pattern| json!({"matchPattern": pattern})),
    ]
}

/// Any question.
pub fn question() -> impl Strategy<Value = Question> {
    let all: Vec<Peer> = workloads()
        .into_iter()
        .map(|(_, labels)| Peer::Workload(labels))
        .collect();
    let address = |text: &str| text.parse().map_or(Peer::Unknown, Peer::Outside);
    let peer = prop_oneof![
        5 => select(all),
        1 => select(&RESERVED[..]).prop_map(|(_, name)| Peer::Reserved(name)),
        1 => Just(Peer::Unknown),
        4 => select(&ADDRESSES[..]).prop_map(address),
    ];
    let direction = select(vec![Direction::Ingress, Direction::Egress]);
    let parts = (direction, peer, traffic(), request(), select(&NAMES[..]));
    parts.prop_map(|(direction, peer, traffic, request, name)| Question {
        direction,
        peer,
        traffic,
        request,
        name,
    })
}

/// A request as rules name it, or one that differs in something.
fn request() -> impl Strategy<Value = Request> {
    let method = select(vec!["GET", "GET", "POST", "PUT", "GETS"]);
    let path = select(vec![
        "/public",
        "/public/a",
        "/admin",
        "/public?x=1",
        "/x/public",
        "/",
    ]);
    let host = select(vec![
        "shop.example",
        "shop.example",
        "shop.example:8080",
        "shop-example",
        "evil.example",
    ]);
    let headers = vec![
        ("x-token", "a"),
        ("X-Token", "b"),
        ("x-env", "prod"),
        ("x-env", "test"),
    ];
    let headers = subsequence(headers, 0..=4);
    (method, path, host, headers).prop_map(|(method, path, host, headers)| Request {
        method,
        path,
        host,
        headers,
    })
}

/// A rule about requests.
fn http() -> impl Strategy<Value = Value> {
    let method = option::weighted(0.4, select(vec!["GET", "GET|POST", "P.*", "G[EF]T"]));
    let path = select(vec![
        "/public",
        "/public.*",
        "/.*",
        "/(public|admin)",
        r"/public(\?x=[0-9]+)?",
        "/public/.*",
    ]);
    let host = select(vec![
        "shop.example",
        r"shop\.example",
        r"shop\.example(:[0-9]+)?",
        "shop.*",
    ]);
    let headers = select(vec![
        json!(["x-token"]),
        json!(["X-Token: a"]),
        json!(["x-env prod"]),
        json!(["x-token", "X-Env: prod"]),
        json!(["x-token a,b"]),
    ]);
    let matches = select(vec![
        json!([{"name": "X-Env", "value": "prod"}]),
        json!([{"name": "x-token"}]),
    ]);
    let parts = (
        method,
        option::weighted(0.75, path),
        option::weighted(0.3, host),
        option::weighted(0.3, headers),
        option::weighted(0.1, matches),
    );
    parts.prop_map(|(method, path, host, headers, matches)| {
        object_of(vec![
            ("method", method.map(|v| json!(v))),
            ("path", path.map(|v| json!(v))),
            ("host", host.map(|v| json!(v))),
            ("headers", headers),
            ("headerMatches", matches),
        ])
    })
}

/// Whose policy is asked: a place in [`workloads`]. Those of the namespace that most policies are of come
/// more often.
pub fn subject() -> impl Strategy<Value = usize> {
    let all = workloads().len();
    prop_oneof![3 => 0..all / 2, 1 => all / 2..all]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let near = select(&PORTS[..]).prop_flat_map(|p| select(vec![p - 1, p, p, p, p.saturating_add(1)]));
    let with_ports = (
        select(vec![6u8, 6, 6, 6, 6, 6, 17, 132]),
        prop_oneof![6 => near, 1 => any::<u16>()],
    );
    let messages = select(vec![
        (1u8, 0u16),
        (1, 3),
        (1, 8),
        (1, 255),
        (58, 128),
        (58, 129),
        (58, 8),
    ]);
    let others = select(vec![(2u8, 0u16), (112, 0), (47, 0)]);
    prop_oneof![24 => with_ports, 3 => messages, 1 => others]
        .prop_map(|(protocol, number)| Traffic { protocol, number })
}

/// Any policy of any kind.
pub fn object() -> impl Strategy<Value = Value> {
    prop_oneof![
                5 => cilium("CiliumNetworkPolicy"),
        2 => cilium("CiliumClusterwideNetworkPolicy"),
        1 => kubernetes(),
    ]
}

fn object_of(pairs: Vec<(&str, Option<Value>)>) -> Value {
    let there = pairs
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}

fn expression(
    keys: &'static [&'static str],
    values: &'static [&'static str],
) -> impl Strategy<Value = Value> {
    let operator = select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    (select(keys), operator, subsequence(values, 1..=values.len())).prop_map(|(key, operator, values)| {
        match operator {
            "In" | "NotIn" => json!({"key": key, "operator": operator, "values": values}),
            _ => json!({"key": key, "operator": operator}),
        }
    })
}

/// A selector over some keys: labels to match, expressions, both or nothing.
fn selector(keys: &'static [&'static str], values: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let labels = vec((select(keys), select(values)), 0..2);
    (labels, vec(expression(keys, values), 0..2)).prop_map(|(labels, expressions)| {
        let labels: Map<_, _> = labels
            .into_iter()
            .map(|(k, v)| (k.to_owned(), json!(v)))
            .collect();
        object_of(vec![
            (
                "matchLabels",
                (!labels.is_empty()).then_some(Value::Object(labels)),
            ),
            (
                "matchExpressions",
                (!expressions.is_empty()).then_some(json!(expressions)),
            ),
        ])
    })
}

/// Labels of workloads, with and without source.
const OWN: &[&str] = &[
    "app",
    "k8s:app",
    "any:tier",
    "k8s:tier",
    "app",
    "tier",
    "other:app",
];
/// Peers that are no workloads; values do not fit, so that only the key counts.
const OTHERS: &[&str] = &[
    "reserved:host",
    "reserved:world",
    "reserved:world-ipv4",
    "reserved:none",
];
const NAMESPACE: &[&str] = &["io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace"];
const OF_NAMESPACE: &[&str] = &[
    "io.cilium.k8s.namespace.labels.team",
    "k8s:io.cilium.k8s.namespace.labels.team",
];

fn merged(a: Value, b: Value) -> Value {
    let join = |field: &str| match (a.get(field).cloned(), b.get(field).cloned()) {
        (Some(Value::Object(mut a)), Some(Value::Object(b))) => {
            a.extend(b);
            Some(Value::Object(a))
        }
        (Some(Value::Array(mut a)), Some(Value::Array(b))) => {
            a.extend(b);
            Some(Value::Array(a))
        }
        (a, b) => a.or(b),
    };
    object_of(vec![
        ("matchLabels", join("matchLabels")),
        ("matchExpressions", join("matchExpressions")),
    ])
}

fn endpoints() -> impl Strategy<Value = Value> {
    let own = || selector(OWN, &["x", "y"]);
    let both = |(a, b)| merged(a, b);
    prop_oneof![
                3 => Just(json!({})),
        5 => own(),
        2 => (own(), selector(NAMESPACE, &["a", "b"])).prop_map(both),
        2 => (own(), selector(OF_NAMESPACE, &["x", "y"])).prop_map(both),
        1 => (own(), selector(OTHERS, &[""])).prop_map(both),
    ]
}

fn cidr_set() -> impl Strategy<Value = Value> {
    // Every exception is inside of its range.
    let sets = vec![
        ("10.0.0.0/8", vec!["10.1.0.0/16", "10.1.128.0/17", "10.0.0.1/32"]),
        ("0.0.0.0/0", vec!["10.0.0.0/8", "192.0.2.0/24"]),
        ("10.1.0.0/16", vec!["10.1.2.0/24", "10.1.128.0/17"]),
        ("::/0", vec!["2001:db8::/32", "fe00::/8"]),
        ("2001:db8::/32", vec!["2001:db8:1::/48"]),
    ];
    select(sets).prop_flat_map(|(cidr, holes)| {
        let most = holes.len();
        subsequence(holes, 0..=most).prop_map(move |except| json!({"cidr": cidr, "except": except}))
    })
}

fn entity() -> impl Strategy<Value = &'static str> {
    select(vec![
        "all",
        "all",
        "world",
        "world",
        "world-ipv4",
        "world-ipv6",
        "cluster",
        "cluster",
        "cluster",
        "host",
        "remote-node",
        "init",
        "ingress",
        "unmanaged",
        "health",
        "kube-apiserver",
        "none",
    ])
}

/// Whom a rule names, as fields without their `from` or `to`.
fn peers(side: &str, deny: bool) -> impl Strategy<Value = Vec<(&'static str, Value)>> + use<> {
    let one = |field: &'static str| move |list: Vec<Value>| vec![(field, json!(list))];
    prop_oneof![
        6 => vec(endpoints(), 0..3).prop_map(one("Endpoints")),
        6 => vec(entity().prop_map(|e| json!(e)), 0..3).prop_map(one("Entities")),
        2 => vec(select(&RANGES[..]).prop_map(|r| json!(r)), 0..3).prop_map(one("CIDR")),
        2 => vec(prop_oneof![cidr_set(), group_set()], 0..3).prop_map(one("CIDRSet")),
        // Who comes in comes from no Service.
        if side == "to" { 3 } else { 0 } => vec(services(), 0..3).prop_map(one("Services")),
        // Nor from a name, and no name is refused.
        if side == "to" && !deny { 3 } else { 0 } => vec(names(), 0..3).prop_map(one("FQDNs")),
                6 => Just(Vec::new()),
        // An empty list beside a filled one.
        1 => select(vec!["Endpoints", "CIDR", "CIDRSet"])
            .prop_map(|empty| vec![(empty, json!([])), ("Entities", json!(["all"]))]),
    ]
}

/// First and last port; nothing for every port.
fn range() -> impl Strategy<Value = Option<(u16, u16)>> {
    prop_oneof![
        1 => Just(None),
        4 => select(&PORTS[..]).prop_map(|p| Some((p, p))),
        2 => (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| Some((a.min(b), a.max(b)))),
    ]
}

fn port(protocols: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let named = select(vec!["http", "dns", "other", "nobodys"]);
    let named = (select(protocols), named).prop_map(|(protocol, name)| {
        let protocol = (!protocol.is_empty()).then(|| json!(protocol));
        object_of(vec![("protocol", protocol), ("port", Some(json!(name)))])
    });
    let numbered = (select(protocols), range(), any::<bool>()).prop_map(|(protocol, range, text)| {
        let write = |port: u16| {
            if text {
                json!(port.to_string())
            } else {
                json!(port)
            }
        };
        let (first, last) = range.unwrap_or((0, 0));
        object_of(vec![
            ("protocol", (!protocol.is_empty()).then(|| json!(protocol))),
            ("port", (range.is_some() || text).then(|| write(first))),
            ("endPort", (first != last).then(|| json!(last))),
        ])
    });
    prop_oneof![4 => numbered, 1 => named]
}

fn to_ports(side: &str, deny: bool) -> impl Strategy<Value = Value> {
    let plain = vec(port(&["TCP", "TCP", "UDP", "SCTP", "ANY", "", "TCP"]), 1..3)
        .prop_map(|ports| json!({"ports": ports}));
    let odd = select(vec!["IGMP", "VRRP"])
        .prop_map(|protocol| json!({"ports": [{"port": "0", "protocol": protocol}]}));
    let http = (select(&PORTS[..]), select(&PORTS[..]), vec(http(), 1..4)).prop_map(|(a, b, http)| {
        let (first, last) = (a.min(b), a.max(b));
        json!({
            "ports": [{"port": first.to_string(), "endPort": last, "protocol": "TCP"}],
            "rules": {"http": http},
        })
    });
    let named = vec(self::http(), 1..3)
        .prop_map(|http| json!({"ports": [{"port": "http", "protocol": "TCP"}], "rules": {"http": http}}));
    let http = prop_oneof![5 => http, 1 => named];
    let dns = (select(vec!["UDP", "TCP", "ANY"]), vec(names(), 1..3)).prop_map(
        |(protocol, names)| json!({"ports": [{"port": "53", "protocol": protocol}], "rules": {"dns": names}}),
    );
    let group = prop_oneof![
        4 => plain,
        1 => odd,
        if deny { 0 } else { 15 } => http,
        if deny || side == "from" { 0 } else { 4 } => dns,
    ];
    vec(group, 0..4).prop_map(|groups| json!(groups))
}

fn icmps() -> impl Strategy<Value = Value> {
    let field = select(vec![
        json!({"family": "IPv4", "type": 8}),
        json!({"type": "EchoRequest"}),
        json!({"type": "EchoReply"}),
        json!({"family": "IPv4", "type": "255"}),
        json!({"family": "IPv6", "type": "EchoRequest"}),
        json!({"family": "IPv6", "type": 129}),
        json!({"family": "IPv6", "type": 8}),
    ]);
    vec(
        vec(field, 1..3).prop_map(|fields| json!({"fields": fields})),
        0..3,
    )
    .prop_map(|groups| json!(groups))
}

fn rule(side: &'static str, deny: bool) -> impl Strategy<Value = Value> {
    let what = prop_oneof![
                1 => Just(None),
        10 => to_ports(side, deny).prop_map(|v| Some(("toPorts", v))),
        1 => icmps().prop_map(|v| Some(("icmps", v))),
    ];
    let proof = prop_oneof![3 => Just(None), 4 => Just(Some("required")), 1 => Just(Some("disabled"))];
    (peers(side, deny), what, proof).prop_map(move |(peers, what, proof)| {
        let fields = peers
            .into_iter()
            .map(|(field, list)| (format!("{side}{field}"), list));
        let mut rule: Map<_, _> = fields.collect();
        rule.extend(what.map(|(field, value)| (field.to_owned(), value)));
        if let (Some(mode), false) = (proof, deny) {
            rule.insert("authentication".into(), json!({"mode": mode}));
        }
        Value::Object(rule)
    })
}

/// A selector of workloads, also with a namespace to match, which is without effect where there is one.
fn subjects() -> impl Strategy<Value = Value> {
    let own = || selector(OWN, &["x", "y"]);
    let namespace = (select(NAMESPACE), select(vec!["a", "b"]))
        .prop_map(|(key, value)| json!({"matchLabels": {key: value}}));
    prop_oneof![
                8 => Just(json!({})),
        3 => own(),
        1 => (own(), namespace).prop_map(|(a, b)| merged(a, b)),
        1 => selector(OF_NAMESPACE, &["x", "y"]),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    fn section(most: usize, side: &'static str, deny: bool) -> impl Strategy<Value = Option<Value>> {
        let rules = vec(rule(side, deny), 0..most).prop_map(|rules| json!(rules));
        option::weighted(if deny { 0.4 } else { 0.85 }, rules)
    }
    let default = || option::weighted(0.15, any::<bool>());
    let sections = (
        section(5, "from", false),
        section(3, "from", true),
        section(5, "to", false),
        section(3, "to", true),
    );
    (subjects(), sections, (default(), default())).prop_map(
        |(subject, (ingress, ingress_deny, egress, egress_deny), (from, to))| {
            let default = object_of(vec![
                ("ingress", from.map(|b| json!(b))),
                ("egress", to.map(|b| json!(b))),
            ]);
            object_of(vec![
                ("endpointSelector", Some(subject)),
                ("ingress", ingress),
                ("ingressDeny", ingress_deny),
                ("egress", egress),
                ("egressDeny", egress_deny),
                (
                    "enableDefaultDeny",
                    (from.is_some() || to.is_some()).then_some(default),
                ),
            ])
        },
    )
}

fn cilium(kind: &'static str) -> impl Strategy<Value = Value> {
    let namespace = select(vec!["a", "a", "a", "b"]);
    (namespace, vec(spec(), 1..3), any::<bool>()).prop_map(move |(namespace, mut specs, single)| {
        let of_cluster = kind == "CiliumClusterwideNetworkPolicy";
        let namespace = (!of_cluster).then(|| json!(namespace));
        let metadata = object_of(vec![("name", Some(json!("p"))), ("namespace", namespace)]);
        let spec = if single { specs.pop() } else { None };
        object_of(vec![
            ("apiVersion", Some(json!("cilium.io/v2"))),
            ("kind", Some(json!(kind))),
            ("metadata", Some(metadata)),
            ("spec", spec),
            ("specs", (!specs.is_empty()).then(|| json!(specs))),
        ])
    })
}

fn kubernetes() -> impl Strategy<Value = Value> {
    const LABELS: &[&str] = &["app", "tier"];
    const NAME: &[&str] = &["kubernetes.io/metadata.name"];
    const TEAM: &[&str] = &["team"];
    fn rule(side: &'static str) -> impl Strategy<Value = Value> {
        let pods = || option::of(selector(LABELS, &["x", "y"]));
        let namespaces = || {
            let one = prop_oneof![selector(NAME, &["a", "b"]), selector(TEAM, &["x", "y"])];
            option::of(one)
        };
        let by_label = (pods(), namespaces()).prop_map(|(pods, namespaces)| match (pods, namespaces) {
            (None, None) => json!({"podSelector": {}}),
            (pods, namespaces) => object_of(vec![("podSelector", pods), ("namespaceSelector", namespaces)]),
        });
        let peer = prop_oneof![3 => by_label, 2 => cidr_set().prop_map(|block| json!({"ipBlock": block}))];
        let named = select(vec!["http", "dns"]).prop_map(|name| json!({"port": name}));
        let port = (select(vec!["", "TCP", "UDP", "SCTP"]), range()).prop_map(|(protocol, range)| {
            object_of(vec![
                ("protocol", (!protocol.is_empty()).then(|| json!(protocol))),
                ("port", range.map(|(first, _)| json!(first))),
                ("endPort", range.map(|(_, last)| json!(last))),
            ])
        });
        let port = prop_oneof![5 => port, 1 => named];
        (option::of(vec(peer, 0..3)), option::of(vec(port, 0..3))).prop_map(move |(peers, ports)| {
            object_of(vec![
                (side, peers.map(|p| json!(p))),
                ("ports", ports.map(|p| json!(p))),
            ])
        })
    }
    let types = option::of(subsequence(vec!["Ingress", "Egress"], 1..=2));
    let rules = |side| option::of(vec(rule(side), 0..3));
    let pods = selector(LABELS, &["x", "y"]);
    (
        select(vec!["a", "a", "a", "b"]),
        pods,
        types,
        rules("from"),
        rules("to"),
    )
        .prop_map(|(namespace, pods, types, ingress, egress)| {
            let spec = object_of(vec![
                ("podSelector", Some(pods)),
                ("policyTypes", types.map(|t| json!(t))),
                ("ingress", ingress.map(|r| json!(r))),
                ("egress", egress.map(|r| json!(r))),
            ]);
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "p", "namespace": namespace},
                "spec": spec,
            })
        })
}

/// One to four policies that differ in name.
pub fn objects() -> impl Strategy<Value = Vec<Value>> {
    vec(object(), 1..5).prop_map(|mut objects| {
        for (i, object) in objects.iter_mut().enumerate() {
            object["metadata"]["name"] = json!(format!("p{i}"));
        }
        objects
    })
}
