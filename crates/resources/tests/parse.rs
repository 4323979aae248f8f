//! What is read, and how mistakes are told.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use weft_resources::{Body, CidrRange, Entity, Kind, Operator, Port, Resource, TargetPort, parse};

fn good(text: &str) -> Vec<Resource> {
    parse("a.yaml", text.as_bytes()).unwrap_or_else(|e| panic!("{e:#?}"))
}

fn bad(text: &str) -> Vec<String> {
    parse("a.yaml", text.as_bytes())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

const POLICY: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: cart
  namespace: shop
spec:
  description: who may reach the cart
  endpointSelector:
    matchLabels:
      app: cart
      k8s:tier: back
    matchExpressions:
      - {key: canary, operator: DoesNotExist}
  ingress:
    - fromEndpoints:
        - matchLabels: {"k8s:dapr.io/app-id": front}
      toPorts:
        - ports:
            - {port: "50002", protocol: TCP}
            - {port: "8080", endPort: 8090}
    - fromEntities: [cluster]
    - fromEndpoints: []
    - toPorts: [{ports: [{port: "0", protocol: UDP}]}]
  ingressDeny:
    - fromCIDRSet: [{cidr: 10.1.2.3/8, except: [10.2.0.0/16]}]
  egress:
    - toCIDR: [192.0.2.1]
  enableDefaultDeny: {egress: false}
"#;

#[test]
fn a_policy_is_read_whole() {
    let all = good(POLICY);
    let [
        Resource {
            meta,
            origin,
            body: Body::CiliumNetworkPolicy(policy),
            ..
        },
    ] = &all[..]
    else {
        panic!("{all:?}")
    };
    assert_eq!(
        (meta.to_string().as_str(), origin.to_string().as_str()),
        ("shop/cart", "a.yaml:2")
    );
    let rule = &policy.rules[0];
    let keys: Vec<_> = rule
        .endpoint_selector
        .requirements
        .iter()
        .map(|r| (&r.key, r.operator))
        .collect();
    assert_eq!(keys[0].0.source, None);
    assert_eq!(
        (keys[1].0.source.as_deref(), keys[1].0.name.as_str()),
        (Some("k8s"), "tier")
    );
    assert_eq!(keys[2].1, Operator::DoesNotExist);
    let ports = rule.ingress[0].ports.as_ref().unwrap();
    assert_eq!(
        (ports[0].protocol, ports[0].port.clone()),
        (Some(6), Port::Range(50_002, 50_002))
    );
    assert_eq!(
        (ports[1].protocol, ports[1].port.clone()),
        (None, Port::Range(8080, 8090))
    );
    assert_eq!(ports[1].path, "toPorts[0].ports[1]");
    assert_eq!(rule.ingress[1].entities, Some(vec![Entity::Cluster]));
    // Absent and empty are different things.
    assert_eq!(rule.ingress[1].endpoints, None);
    assert_eq!(rule.ingress[2].endpoints, Some(vec![]));
    let net = |text: &str| CidrRange::Net(text.parse().unwrap());
    let cidr = &rule.ingress_deny[0].cidrs.as_ref().unwrap()[0];
    assert_eq!((&cidr.range, cidr.except.len()), (&net("10.0.0.0/8"), 1));
    assert_eq!(
        rule.egress[0].cidrs.as_ref().unwrap()[0].range,
        net("192.0.2.1/32")
    );
    assert_eq!(
        (rule.default_deny_ingress, rule.default_deny_egress),
        (None, Some(false))
    );
}

#[test]
fn subscriptions_of_both_versions() {
    let all = good(
        r#"
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: orders}
spec:
  pubsubname: bus
  topic: orders
  routes:
    rules: [{match: event.type == "made", path: /made}]
    default: /rest
  deadLetterTopic: dead
scopes: [cart]
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: bills}
spec: {pubsubname: bus, topic: bills, route: /bills, metadata: {rawPayload: "true"}}
"#,
    );
    let Body::Subscription(first) = &all[0].body else {
        panic!()
    };
    assert_eq!(first.scopes, ["cart"]);
    assert_eq!(first.json["spec"]["routes"]["default"], "/rest");
    assert_eq!(all[1].kind(), Kind::Subscription);
    let of = |version: &str, spec: &str| {
        let head = format!("apiVersion: dapr.io/{version}\nkind: Subscription\nmetadata: {{name: s}}\n");
        let text = format!("{head}spec: {{pubsubname: bus, topic: t, {spec}}}\n");
        match parse("s.yaml", text.as_bytes()) {
            Ok(_) => String::new(),
            Err(problems) => problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        }
    };
    assert_eq!(of("v1alpha1", "route: /a"), "");
    assert_eq!(of("v2alpha1", "routes: {default: /a}"), "");
    // Each version has its own form.
    assert!(of("v2alpha1", "route: /a").contains("spec.route: unknown field"));
    assert!(of("v1alpha1", "routes: {default: /a}").contains("spec.routes: unknown field"));
    assert!(of("v2alpha1", "metadata: {}").contains("spec.routes"));
    assert!(of("v1alpha1", "route: 5").contains("spec.route: must be a text"));
}

#[test]
fn services_components_and_configurations() {
    let all = good(
        r#"
apiVersion: v1
kind: Service
metadata: {name: cart}
spec:
  selector: {app: cart}
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00::7"]
  sessionAffinity: None
  ports:
    - {name: web, port: 80, targetPort: http, protocol: TCP, appProtocol: h2c}
    - {name: dns, port: 53, protocol: UDP}
---
# nothing here
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store, namespace: shop}
spec:
  type: state.in-memory
  version: v1
  metadata:
    - {name: actorStateStore, value: "true"}
    - {name: limit, value: 3}
    - {name: password, secretKeyRef: {name: s, key: k}}
scopes: [cart]
---
{"apiVersion": "dapr.io/v1alpha1", "kind": "Configuration", "metadata": {"name": "c"},
	"spec": {"tracing": {"samplingRate": "1"}, "features": [{"name": "HotReload", "enabled": true}]}}
"#,
    );
    let kinds: Vec<Kind> = all.iter().map(Resource::kind).collect();
    assert_eq!(kinds, [Kind::Service, Kind::Component, Kind::Configuration]);
    let Body::Service(service) = &all[0].body else {
        panic!()
    };
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(service.ports[0].target, TargetPort::Named("http".into()));
    assert_eq!(
        (service.ports[1].protocol, &service.ports[1].target),
        (17, &TargetPort::Number(53))
    );
    let Body::Component(component) = &all[1].body else {
        panic!()
    };
    assert_eq!(component.scopes, ["cart"]);
    assert_eq!(component.json["spec"]["metadata"][1]["value"], 3);
    assert_eq!(all[1].meta.namespace, "shop");
}

#[test]
fn every_mistake_is_told_with_line_and_path() {
    let found = bad(r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: Cart}
spec:
  endpointSelector: {matchLabels: {app: true}}
  ingress:
    - fromEndpoints: [{matchlabels: {app: x}}]
      toPorts:
        - ports: [{port: "99999"}]
    - fromEntities: [moon]
      fromCIDR: [10.0.0.0/40]
    - toFQDNs: [{matchName: x}]
    - toPorts: [{ports: [{port: "80"}], rules: {http: []}}]
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 0}], selektor: {}}
---
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: b}
---
apiVersion: v1beta1
kind: Service
metadata: {name: c}
"#);
    let expected = [
        "a.yaml:3: metadata.name: name \"Cart\" must be",
        "a.yaml:5: spec.endpointSelector.matchLabels.app: must be a text, found a boolean; put it in quotes",
        "a.yaml:7: spec.ingress[0].fromEndpoints[0].matchlabels: unknown field",
        "a.yaml:9: spec.ingress[0].toPorts[0].ports[0].port: must be a port number from 0 to 65535",
        "a.yaml:10: spec.ingress[1].fromEntities[0]: unknown entity \"moon\"",
        "a.yaml:11: spec.ingress[1].fromCIDR[0]: \"10.0.0.0/40\" is no CIDR",
        "a.yaml:12: spec.ingress[2].toFQDNs: unknown field",
        "a.yaml:13: spec.ingress[3].toPorts[0].rules.http: names no request",
        "a.yaml:18: spec.ports[0].port: must be a port number from 1 to 65535",
        "a.yaml:18: spec.selektor: unknown field",
        "a.yaml:21: kind: CiliumEgressGatewayPolicy of cilium.io/v2 is not supported yet",
        "a.yaml:25: kind: Service of v1beta1 is not supported yet; Service is read as v1",
    ];
    for text in expected {
        assert_eq!(
            found.iter().filter(|f| f.starts_with(text)).count(),
            1,
            "{text}\nin {found:#?}"
        );
    }
    // Two kinds of peers in one rule, as Cilium refuses them.
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("a.yaml:10: spec.ingress[1]: combines fromEntities and fromCIDR"))
    );
}

#[test]
fn a_syntax_error_names_its_line() {
    let found = bad("apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: x\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("a.yaml:"), "{found:?}");
    assert!(!found[0].starts_with("a.yaml:1:"), "{found:?}");
    let found = bad("kind: Service\nkind: Service\napiVersion: v1\n");
    assert!(
        found[0].starts_with("a.yaml:2:"),
        "a duplicate field was taken: {found:?}"
    );
    let found = parse("a.yaml", b"kind: Service\nx: \xff\n").unwrap_err();
    assert_eq!(found[0].to_string(), "a.yaml:2: not UTF-8 text");
}

#[test]
fn the_same_object_twice_is_refused() {
    let one = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n";
    assert_eq!(good(one).len(), 1);
    let found = bad(&format!("{one}---\n{one}"));
    assert_eq!(
        found,
        ["a.yaml:6: metadata.name: Service default/a is in this file twice; first on line 1"]
    );
}

#[test]
fn restrictions_that_nobody_enforces_are_refused() {
    let with = |spec: &str| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {{name: c}}\nspec: {{{spec}}}\n"
        )
    };
    assert_eq!(good(&with("tracing: {stdout: true}")).len(), 1);
    assert_eq!(
        bad(&with("accessControl: {defaultAction: deny}")),
        ["a.yaml:4: spec.accessControl: is not supported yet"]
    );
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert_eq!(bad(&laughs).len(), 1);
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        assert_eq!(
            bad(&format!("x: {}{}", open.repeat(5000), close.repeat(5000))).len(),
            1
        );
    }
    let deep: String = (0..5000)
        .map(|i| format!("{}a:\n", " ".repeat(i % 200)))
        .collect();
    assert!(!bad(&deep).is_empty());
    let nested: String = (0..150).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(!bad(&nested).is_empty());
    // A part that is repeated inside of itself counts with its full depth.
    let (open, close) = ("[".repeat(25), "]".repeat(25));
    let folded = format!("a: &a {open}1{close}\nb: &b {open}*a{close}\nc: {open}*b{close}\n");
    assert!(bad(&folded)[0].contains("32 levels"), "{:?}", bad(&folded));
    assert!(bad(&"# \n".repeat(600_000))[0].contains("above the limit"));
    let many = "---\n{}\n".repeat(1001);
    assert!(!bad(&many).is_empty());
    assert!(bad(&vec!["a: b"; 3000].join("\n---\n"))[0].contains("document"));
}

proptest! {
    #[test]
    fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse("a.yaml", &bytes);
    }

    #[test]
    fn a_damaged_policy_never_panics(cuts in prop::collection::vec((0usize..2000, "[\\PC\\n]{0,6}"), 1..6)) {
        let mut text = POLICY.to_owned();
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
                prop_assert!(!p.to_string().contains('\n'));
            }
        }
    }
}

#[test]
fn an_object_of_json_is_read_as_one_of_a_file_and_has_no_lines() {
    let said = good(POLICY).remove(0);
    let json: serde_json::Value = serde_json::from_str(&said.json).unwrap();
    let read = weft_resources::parse_object("CiliumNetworkPolicy shop/cart", &json).unwrap();
    assert_eq!(
        (&read.meta, &read.body, &read.json),
        (&said.meta, &said.body, &said.json)
    );
    assert_eq!(read.origin.to_string(), "CiliumNetworkPolicy shop/cart");
    let mut wrong = json.clone();
    wrong["spec"]["ingress"] = "all".into();
    wrong["spec"]["more"] = true.into();
    let problems = weft_resources::parse_object("here", &wrong).unwrap_err();
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(
        texts[0].starts_with("here: spec.ingress: must be a list"),
        "{texts:?}"
    );
    assert_eq!(texts[1], "here: spec.more: unknown field");
    // Names that the API server makes up are no mistake.
    let mut made = json.clone();
    made["metadata"]["generateName"] = "cart-".into();
    assert!(weft_resources::parse_object("here", &made).is_ok());
}

#[test]
fn json_is_read_to_a_depth_and_a_size() {
    let nested = |depth: usize| {
        let deep = (0..depth).fold(serde_json::json!(1), |inner, _| serde_json::json!({ "a": inner }));
        weft_resources::parse_object("here", &deep).unwrap_err()[0].to_string()
    };
    assert_eq!(nested(32), "here: apiVersion: is required");
    assert!(nested(33).contains("may nest 32 levels"));
    let wide = |count: usize| {
        let all = serde_json::json!({ "a": vec![1; count] });
        weft_resources::parse_object("here", &all).unwrap_err()[0].to_string()
    };
    assert_eq!(wide(199_998), "here: apiVersion: is required");
    assert!(wide(199_999).contains("200000 values"));
}
