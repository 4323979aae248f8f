//! Policies in the forms in which people publish them: each must be read, compiled, and mean what it says.
#![allow(clippy::unwrap_used)]

use http::HeaderMap;
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{
    Backed, Cluster, Direction, Group, NamedPorts, PeerRef, PolicyObject, PolicySet, RequestFacts, Subject,
    compile,
};
use weft_resources::Body;

/// `app=backend` in `default`, whom all policies here are about.
const SUBJECT: &str = "backend";
/// Peers by a name: number, app, tier, namespace.
const PEERS: [(&str, u32, &str, &str, &str); 5] = [
    ("frontend", 300, "frontend", "web", "default"),
    ("other", 301, "other", "web", "default"),
    ("far", 302, "frontend", "web", "prod"),
    ("dns", 303, "kube-dns", "system", "kube-system"),
    ("backend", 304, "backend", "db", "default"),
];

struct Form {
    name: &'static str,
    text: &'static str,
    /// `in` or `out`, who, `port/protocol` and perhaps `METHOD /path`; then the same refused.
    allowed: &'static [&'static str],
    refused: &'static [&'static str],
}

const CNP: &str =
    "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: rule, namespace: default}\n";
const CCNP: &str = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: rule}\n";
const NP: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: rule, namespace: default}\n";

/// `CNP`, `CCNP` or `NP` in front stand for the head of the object.
const FORMS: &[Form] = &[
    Form {
        name: "ingress from pods with a label",
        text: "CNP
spec:
  endpointSelector:
    matchLabels:
      app: backend
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: frontend
",
        allowed: &["in frontend 80/6", "in frontend 53/17", "out other 80/6"],
        refused: &["in other 80/6", "in far 80/6", "in 192.0.2.1 80/6"],
    },
    Form {
        name: "everybody of the namespace",
        text: "CNP
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints:
    - {}
",
        allowed: &["in frontend 80/6", "in other 1/17"],
        refused: &["in far 80/6", "in host 80/6"],
    },
    Form {
        name: "nobody: a section with an empty rule",
        text: "CNP
spec:
  endpointSelector:
    matchLabels:
      app: backend
  egress:
  - {}
",
        allowed: &["in frontend 80/6"],
        refused: &["out frontend 80/6"],
    },
    Form {
        name: "a port and a protocol, from one and to another namespace",
        text: "CNP
spec:
  endpointSelector:
    matchLabels: {app: backend}
  ingress:
  - fromEndpoints:
    - matchLabels:
        k8s:io.kubernetes.pod.namespace: prod
        app: frontend
    toPorts:
    - ports:
      - port: \"80\"
        protocol: TCP
  egress:
  - toEndpoints:
    - matchLabels:
        'k8s:io.kubernetes.pod.namespace': kube-system
        'k8s:app': kube-dns
    toPorts:
    - ports:
      - port: '53'
        protocol: ANY
",
        allowed: &["in far 80/6", "out dns 53/17", "out dns 53/6"],
        refused: &[
            "in far 80/17",
            "in frontend 80/6",
            "out dns 54/17",
            "out frontend 53/17",
        ],
    },
    Form {
        name: "a range of ports",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - toPorts:
    - ports:
      - {port: \"1024\", endPort: 1030, protocol: TCP}
",
        allowed: &["in other 1024/6", "in 192.0.2.1 1030/6"],
        refused: &["in other 1023/6", "in other 1031/6", "in other 1024/17"],
    },
    Form {
        name: "a port by its name",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - toPorts: [{ports: [{port: http, protocol: TCP}]}]
",
        allowed: &["in other 8080/6"],
        refused: &["in other 80/6"],
    },
    Form {
        name: "labels of the namespace",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints:
    - matchLabels:
        k8s:io.cilium.k8s.namespace.labels.env: prod
",
        allowed: &["in far 80/6"],
        refused: &["in frontend 80/6"],
    },
    Form {
        name: "expressions over labels",
        text: "CNP
spec:
  endpointSelector:
    matchExpressions:
    - {key: app, operator: In, values: [backend, database]}
  ingress:
  - fromEndpoints:
    - matchExpressions:
      - {key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}
      - {key: app, operator: NotIn, values: [other]}
",
        allowed: &["in frontend 80/6", "in far 80/6"],
        refused: &["in other 80/6"],
    },
    Form {
        name: "entities",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEntities: [host, remote-node, ingress]
  egress:
  - toEntities:
    - world
",
        allowed: &["in host 80/6", "in ingress 80/6", "out 192.0.2.1 443/6"],
        refused: &["in frontend 80/6", "out frontend 80/6", "in 192.0.2.1 80/6"],
    },
    Form {
        name: "address ranges with exceptions",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  egress:
  - toCIDR:
    - 198.51.100.7/32
  - toCIDRSet:
    - cidr: 192.0.0.0/16
      except:
      - 192.0.2.0/24
",
        allowed: &["out 198.51.100.7 80/6", "out 192.0.3.1 80/6"],
        refused: &["out 192.0.2.1 80/6", "out frontend 80/6"],
    },
    Form {
        name: "a group of address ranges",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromCIDRSet:
    - cidrGroupRef: vpn
      except: [203.0.113.8/32]
",
        allowed: &["in 203.0.113.7 80/6"],
        refused: &["in 203.0.113.8 80/6", "in 192.0.2.1 80/6"],
    },
    Form {
        name: "a Service",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  egress:
  - toServices:
    - k8sService:
        serviceName: front
        namespace: prod
",
        allowed: &["out far 80/6"],
        refused: &["out frontend 80/6"],
    },
    Form {
        name: "messages of ICMP",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  egress:
  - icmps:
    - fields:
      - {type: 8, family: IPv4}
      - type: EchoRequest
        family: IPv6
",
        allowed: &["out frontend 9/1", "out frontend 129/58"],
        refused: &["out frontend 1/1", "out frontend 80/6"],
    },
    Form {
        name: "requests by method and path",
        text: "CNP
spec:
  description: \"Allow HTTP GET /public from frontend\"
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    toPorts:
    - ports:
      - {port: \"80\", protocol: TCP}
      rules:
        http:
        - method: \"GET\"
          path: \"/public\"
        - method: \"PUT\"
          path: \"/avatar/[0-9]+$\"
          headers:
          - 'X-My-Header: true'
",
        allowed: &["in frontend 80/6 GET /public", "in frontend 80/6 PUT /avatar/7"],
        refused: &[
            "in frontend 80/6 GET /private",
            "in frontend 80/6 PUT /avatar/x",
            "in other 80/6 GET /public",
            "in frontend 81/6 GET /public",
        ],
    },
    Form {
        name: "what may not, whatever else may",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEntities: [all]
  ingressDeny:
  - fromEndpoints:
    - matchLabels: {app: other}
    toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
",
        allowed: &["in frontend 80/6", "in other 81/6"],
        refused: &["in other 80/6"],
    },
    Form {
        name: "a policy that adds and does not close",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  enableDefaultDeny: {ingress: false, egress: false}
  ingressDeny:
  - fromEntities: [world]
",
        allowed: &["in frontend 80/6", "out 192.0.2.1 80/6"],
        refused: &["in 192.0.2.1 80/6"],
    },
    Form {
        name: "several specs",
        text: "CNP
specs:
  - endpointSelector: {matchLabels: {app: backend}}
    ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]
  - endpointSelector: {matchLabels: {app: frontend}}
    ingress: [{fromEndpoints: [{matchLabels: {app: other}}]}]
",
        allowed: &["in frontend 80/6"],
        refused: &["in other 80/6"],
    },
    Form {
        name: "of the cluster, by labels of the namespace",
        text: "CCNP
spec:
  endpointSelector:
    matchLabels: {'k8s:io.cilium.k8s.namespace.labels.env': dev}
  ingress:
  - fromEndpoints: [{matchLabels: {tier: web}}]
",
        allowed: &["in frontend 80/6", "in far 80/6"],
        refused: &["in dns 80/6"],
    },
    Form {
        name: "proven peers",
        text: "CNP
spec:
  endpointSelector: {matchLabels: {app: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: frontend}}]
    authentication: {mode: \"required\"}
",
        allowed: &["in frontend 80/6"],
        refused: &["in other 80/6"],
    },
    Form {
        name: "default deny of Kubernetes",
        text: "NP
spec:
  podSelector: {}
  policyTypes: [Ingress]
",
        allowed: &["out frontend 80/6"],
        refused: &["in frontend 80/6", "in host 80/6"],
    },
    Form {
        name: "everything in it, as Kubernetes' documentation has it",
        text: "NP
spec:
  podSelector:
    matchLabels:
      app: backend
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock:
        cidr: 192.0.0.0/16
        except: [192.0.2.0/24]
    - namespaceSelector:
        matchLabels: {env: prod}
    - podSelector:
        matchLabels: {app: frontend}
    ports:
    - {protocol: TCP, port: 6379}
  egress:
  - to:
    - ipBlock: {cidr: 198.51.100.0/24}
    ports:
    - {protocol: TCP, port: 5978, endPort: 5980}
",
        allowed: &[
            "in frontend 6379/6",
            "in far 6379/6",
            "in 192.0.3.1 6379/6",
            "out 198.51.100.1 5980/6",
        ],
        refused: &[
            "in other 6379/6",
            "in 192.0.2.1 6379/6",
            "in frontend 80/6",
            "out 198.51.100.1 80/6",
        ],
    },
    Form {
        name: "names of namespaces and of ports, of Kubernetes",
        text: "NP
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}
      podSelector: {matchLabels: {app: frontend}}
    ports: [{port: http}]
",
        allowed: &["in far 8080/6"],
        refused: &["in far 80/6", "in frontend 8080/6"],
    },
];

fn labels(app: &str, tier: &str, namespace: &str) -> Labels {
    let env = if namespace == "prod" { "prod" } else { "dev" };
    let own = Labels::for_workload([("app", app), ("tier", tier)], namespace, "", "");
    own.with_namespace([("env", env)])
}

fn read(text: &str) -> PolicyObject {
    let (head, rest) = text.split_once('\n').unwrap();
    let head = match head {
        "CNP" => CNP,
        "CCNP" => CCNP,
        _ => NP,
    };
    let text = format!("{head}{rest}");
    let mut all =
        weft_resources::parse("p.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?} in\n{text}"));
    let resource = all.remove(0);
    let kind = resource.kind().name().to_owned();
    let (Body::CiliumNetworkPolicy(policy)
    | Body::CiliumClusterwideNetworkPolicy(policy)
    | Body::NetworkPolicy(policy)) = resource.body
    else {
        panic!("{kind}");
    };
    PolicyObject {
        kind,
        namespace: resource.meta.namespace,
        name: resource.meta.name,
        rules: policy.rules,
    }
}

fn cluster() -> Cluster {
    let peers = PEERS.iter();
    let mut cluster: Cluster = peers
        .map(|(_, number, app, tier, namespace)| (NumericIdentity(*number), labels(app, tier, namespace)))
        .collect();
    let vpn = Group {
        labels: Labels::default(),
        cidrs: vec!["203.0.113.0/24".parse().unwrap()],
    };
    cluster.set_group("vpn", Some(vpn));
    let front = Backed {
        labels: Labels::default(),
        selector: [("app".to_owned(), "frontend".to_owned())].into(),
    };
    cluster.set_service("prod", "front", Some(front));
    cluster
}

fn is_allowed(set: &PolicySet, question: &str) -> bool {
    let mut words = question.split(' ');
    let direction = match words.next().unwrap() {
        "in" => Direction::Ingress,
        _ => Direction::Egress,
    };
    let who = words.next().unwrap();
    let known = PEERS.iter().find(|(name, ..)| *name == who);
    let (identity, address) = match (known, who) {
        (Some((_, number, ..)), _) => (NumericIdentity(*number), None),
        (None, "host") => (NumericIdentity::HOST, None),
        (None, "ingress") => (NumericIdentity::INGRESS, None),
        (None, address) => (NumericIdentity::WORLD, Some(address.parse().unwrap())),
    };
    let peer = PeerRef { identity, address };
    let (port, protocol) = words.next().unwrap().split_once('/').unwrap();
    let (port, protocol) = (port.parse().unwrap(), protocol.parse().unwrap());
    let Some(method) = words.next() else {
        return set.judge(direction, peer, protocol, port).is_allowed();
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-my-header", "true".parse().unwrap());
    let facts = RequestFacts {
        method,
        path: words.next().unwrap(),
        host: "backend",
        headers: &headers,
    };
    set.judge_request(direction, peer, protocol, port, &facts)
        .is_allowed()
}

#[test]
fn published_forms_mean_what_they_say() {
    let cluster = cluster();
    let ports = NamedPorts::from([("http".to_owned(), [(6, 8080)].into())]);
    let own = labels(SUBJECT, "db", "default");
    for form in FORMS {
        let object = read(form.text);
        let set = compile(
            [&object],
            Subject {
                labels: &own,
                ports: &ports,
            },
            &cluster,
        );
        for question in form.allowed {
            assert!(is_allowed(&set, question), "{}: {question} is refused", form.name);
        }
        for question in form.refused {
            assert!(
                !is_allowed(&set, question),
                "{}: {question} is allowed",
                form.name
            );
        }
        assert!(
            !form.allowed.is_empty() && !form.refused.is_empty(),
            "{}",
            form.name
        );
    }
}

/// What is not done is refused by its name; nothing of it is read as something else.
#[test]
fn what_is_not_done_is_refused_by_name() {
    let rule = |section: &str| format!("{CNP}spec: {{endpointSelector: {{}}, {section}}}\n");
    let refused = [
        ("egress: [{toNodes: [{matchLabels: {pool: x}}]}]", "toNodes"),
        ("egress: [{toGroups: [{}]}]", "toGroups"),
        (
            "egress: [{toPorts: [{ports: [{port: '443'}], serverNames: [example.com]}]}]",
            "serverNames",
        ),
        ("ingress: [{fromRequires: [{}]}]", "fromRequires"),
        ("nodeSelector: {}", "nodeSelector"),
    ];
    for (section, field) in refused {
        let problems = weft_resources::parse("p.yaml", rule(section).as_bytes()).unwrap_err();
        assert!(
            problems.iter().any(|p| p.path.ends_with(field) && p.line == 4),
            "{section}: {problems:?}"
        );
    }
    let fine = rule("egress: [{toEntities: [world]}]");
    assert_eq!(weft_resources::parse("p.yaml", fine.as_bytes()).unwrap().len(), 1);
}
