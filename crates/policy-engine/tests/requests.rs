//! Requests: what rules about them say, with and without others beside.
#![allow(clippy::unwrap_used)]

use http::HeaderMap;
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{
    Cluster, DenyReason, Direction, PeerRef, PolicyObject, PolicySet, RequestFacts, Verdict, compile,
    is_meant,
};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::Body;

const ADMIN: u32 = 300;
const SHOP: u32 = 301;

fn workload(app: &str) -> Labels {
    Labels::for_workload([("app", app)], "default", "", "")
}

/// What a file of policies says about `app: cart`.
fn set(text: &str) -> PolicySet {
    let objects: Vec<PolicyObject> = weft_resources::parse("p.yaml", text.as_bytes())
        .unwrap_or_else(|e| panic!("{e:#?}"))
        .into_iter()
        .map(|resource| {
            let kind = resource.kind().name().to_owned();
            let Body::CiliumNetworkPolicy(policy) = resource.body else {
                panic!("{kind}");
            };
            PolicyObject {
                kind,
                namespace: resource.meta.namespace,
                name: resource.meta.name,
                rules: policy.rules,
            }
        })
        .collect();
    let known: Cluster = [
        (NumericIdentity(ADMIN), workload("admin")),
        (NumericIdentity(SHOP), workload("shop")),
    ]
    .into_iter()
    .collect();
    compile(&objects, &workload("cart"), &known)
}

fn policy(name: &str, section: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: cart}}}}\n  {section}\n---\n"
    )
}

/// Who asks `method path` of port 80, and is told what: `allowed` or the reason, and by which rule.
fn ask(set: &PolicySet, who: u32, method: &str, path: &str) -> (Option<DenyReason>, String) {
    let peer = PeerRef {
        identity: NumericIdentity(who),
        address: None,
    };
    let facts = RequestFacts {
        method,
        path,
        host: "cart",
        headers: &HeaderMap::new(),
    };
    let verdict = set.judge_request(Direction::Ingress, peer, 6, 80, &facts);
    let rule = verdict.rule().map(|r| format!("{} {}", r.name, r.path));
    let reason = match verdict {
        Verdict::Allowed { redirect, .. } => {
            assert!(!redirect, "the last word on a request was left to somebody else");
            None
        }
        Verdict::Denied { reason, .. } => Some(reason),
    };
    (reason, rule.unwrap_or_default())
}

const READ: &str = "ingress: [{fromEndpoints: [{matchLabels: {app: shop}}], \
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: '/items.*'}]}}]}]";

#[test]
fn a_rule_about_requests_allows_these_and_says_which_it_was() {
    let set = set(&policy("read", READ));
    let place = "read ingress[0].toPorts[0].ports[0]".to_owned();
    assert_eq!(ask(&set, SHOP, "GET", "/items/1"), (None, place.clone()));
    // One thing differs each time.
    let refused = Some(DenyReason::RequestDenied);
    assert_eq!(ask(&set, SHOP, "PUT", "/items/1"), (refused, place.clone()));
    assert_eq!(ask(&set, SHOP, "GET", "/admin"), (refused, place));
    let nobody = (Some(DenyReason::PolicyDenied), String::new());
    assert_eq!(ask(&set, ADMIN, "GET", "/items/1"), nobody);
}

#[test]
fn rules_about_requests_add_up() {
    let write = READ.replace("method: GET", "method: PUT");
    let set = set(&(policy("read", READ) + &policy("write", &write)));
    let place = |name: &str| format!("{name} ingress[0].toPorts[0].ports[0]");
    assert_eq!(ask(&set, SHOP, "GET", "/items"), (None, place("read")));
    assert_eq!(ask(&set, SHOP, "PUT", "/items"), (None, place("write")));
    // Of several that could have allowed it, the first is named.
    let refused = Some(DenyReason::RequestDenied);
    assert_eq!(ask(&set, SHOP, "DELETE", "/items"), (refused, place("read")));
}

#[test]
fn who_may_connect_without_the_proxy_may_ask_anything() {
    let open = "ingress: [{fromEndpoints: [{matchLabels: {app: shop}}], \
                toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]";
    let elsewhere = open.replace("app: shop", "app: admin");
    let widened = set(&(policy("read", READ) + &policy("wide", open)));
    assert_eq!(
        ask(&widened, SHOP, "PUT", "/admin"),
        (None, "wide ingress[0].toPorts[0].ports[0]".into())
    );
    // The same for another peer opens nothing for this one.
    let set = set(&(policy("read", READ) + &policy("wide", &elsewhere)));
    assert_eq!(
        ask(&set, SHOP, "PUT", "/admin").0,
        Some(DenyReason::RequestDenied)
    );
    assert_eq!(ask(&set, ADMIN, "PUT", "/admin").0, None);
}

#[test]
fn what_is_refused_is_refused_for_every_request() {
    let closed = "ingressDeny: [{fromEndpoints: [{matchLabels: {app: shop}}]}]";
    let set = set(&(policy("read", READ) + &policy("closed", closed)));
    assert_eq!(
        ask(&set, SHOP, "GET", "/items"),
        (Some(DenyReason::PolicyDeny), "closed ingressDeny[0]".into())
    );
}

#[test]
fn headers_and_hosts_are_judged_as_one_text_each() {
    let rule = |what: &str| {
        set(&policy(
            "p",
            &format!(
                "ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{{what}}}]}}}}]}}]"
            ),
        ))
    };
    let asks = |set: &PolicySet, host: &str, headers: &[(&'static str, &'static str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let facts = RequestFacts {
            method: "GET",
            path: "/",
            host,
            headers: &map,
        };
        let peer = PeerRef {
            identity: NumericIdentity(SHOP),
            address: None,
        };
        set.judge_request(Direction::Ingress, peer, 6, 80, &facts)
            .is_allowed()
    };
    let token = rule("headers: ['X-Token: a']");
    assert!(asks(&token, "x", &[("x-token", "a")]));
    assert!(!asks(&token, "x", &[("x-token", "b")]) && !asks(&token, "x", &[]));
    // A second value makes another one of it, as for Envoy: nobody passes by adding what is wanted.
    assert!(!asks(&token, "x", &[("x-token", "b"), ("x-token", "a")]));
    let there = rule("headerMatches: [{name: X-Token}]");
    assert!(asks(&there, "x", &[("x-token", "b")]) && !asks(&there, "x", &[("x-tok", "b")]));
    let host = rule(r"host: 'shop\.example'");
    assert!(asks(&host, "shop.example", &[]));
    assert!(!asks(&host, "shop.example:80", &[]) && !asks(&host, "shop-example", &[]));
    let header = rule("headers: ['Host: shop.example']");
    assert!(asks(&header, "shop.example", &[]) && !asks(&header, "evil.example", &[]));
}

#[test]
fn the_id_and_the_wire_hold_the_rules_about_requests() {
    let one = set(&policy("read", READ));
    let other = set(&policy("read", &READ.replace("GET", "PUT")));
    assert_ne!(one.id(), other.id());
    let wire = pb::PolicySet::from(&one);
    let back = PolicySet::try_from(&wire).unwrap();
    assert_eq!(back, one);
    assert_eq!(ask(&back, SHOP, "GET", "/items/1").0, None);
    assert_eq!(
        ask(&back, SHOP, "PUT", "/items/1").0,
        Some(DenyReason::RequestDenied)
    );
}

/// A node takes nothing that it could not judge.
#[test]
fn a_set_with_a_rule_that_is_none_is_refused_whole() {
    let wire = |change: fn(&mut pb::PolicyEntry)| {
        let mut wire = pb::PolicySet::from(&set(&policy("read", READ)));
        change(&mut wire.ingress.as_mut().unwrap().entries[0]);
        PolicySet::try_from(&wire).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(wire(|_| {}), Ok(()));
    type Change = fn(&mut pb::PolicyEntry);
    let refused: [(Change, &str); 5] = [
        (|e| e.http[0].path = "/(".into(), "no regular expression"),
        (|e| e.http[0].path = "/a{1000}{1000}{1000}".into(), "size limit"),
        (|e| e.redirect = false, "without redirect"),
        (
            |e| e.http = vec![pb::HttpRule::default(); 1001],
            "1001 rules about requests, at most 1000",
        ),
        (
            |e| e.http[0].headers = vec![pb::HttpHeader::default(); 33],
            "33 headers in a rule, at most 32",
        ),
    ];
    for (change, text) in refused {
        let problem = wire(change).unwrap_err();
        assert!(problem.contains(text), "{problem}");
        assert!(problem.contains("ingress entry 0"), "{problem}");
    }
}

/// A policy about names, for two sets of addresses.
#[test]
fn names_are_bound_to_addresses_and_questions_judged() {
    let read = policy(
        "names",
        "egress: [{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*.test'}]}}]}, \
         {toFQDNs: [{matchName: a.test}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
    );
    let sent = set(&read);
    let outside = |address: &str| PeerRef {
        identity: NumericIdentity::WORLD,
        address: Some(address.parse().unwrap()),
    };
    let opens = |set: &PolicySet, address| set.judge(Direction::Egress, outside(address), 6, 80).is_allowed();
    assert!(!opens(&sent, "192.0.2.1"), "nobody has said what the name means");
    assert_eq!(sent.names().len(), 1);
    let bound = sent.bind(|rule| {
        assert!(is_meant(rule, "a.test") && !is_meant(rule, "b.test"));
        vec!["192.0.2.1".parse().unwrap(), "::ffff:192.0.2.2".parse().unwrap()]
    });
    assert!(opens(&bound, "192.0.2.1") && opens(&bound, "192.0.2.2") && !opens(&bound, "192.0.2.3"));
    // Another set, and the same for the same addresses; bound to none it is what was sent.
    assert_ne!(bound.id(), sent.id());
    assert_eq!(sent.bind(|_| Vec::new()).id(), sent.id());

    // In the cluster a name means nobody.
    let inside = PeerRef {
        identity: NumericIdentity(300),
        ..outside("192.0.2.1")
    };
    assert!(!bound.judge(Direction::Egress, inside, 6, 80).is_allowed());

    let resolver = outside("198.51.100.53");
    let ask = |name| bound.judge_query(resolver, 17, 53, name);
    assert!(ask("b.test").is_allowed());
    assert!(matches!(
        ask("b.example"),
        Verdict::Denied { reason: DenyReason::RequestDenied, rule: Some(rule) } if rule.path.starts_with("egress[0]")
    ));
    assert!(bound.judges_queries(resolver, 17, 53));
    assert!(!bound.judges_queries(resolver, 6, 53) && !bound.judges_queries(outside("192.0.2.1"), 6, 80));

    let wire = pb::PolicySet::from(&sent);
    let back = PolicySet::try_from(&wire).unwrap();
    assert_eq!((back.id(), pb::PolicySet::from(&back)), (sent.id(), wire.clone()));
    let broken = |change: fn(&mut pb::PolicyEntry)| {
        let mut wire = wire.clone();
        wire.egress.as_mut().unwrap().entries.iter_mut().for_each(change);
        PolicySet::try_from(&wire).unwrap_err().to_string()
    };
    assert!(broken(|e| e.redirect = false).contains("without redirect"));
    let bad = |e: &mut pb::PolicyEntry| {
        e.names = vec![pb::NameRule {
            rule: Some(pb::name_rule::Rule::Name("a..b".into())),
        }];
    };
    assert!(broken(bad).contains("no name in DNS"));
    assert!(broken(|e| e.names = vec![pb::NameRule { rule: None }]).contains("not known"));
}
