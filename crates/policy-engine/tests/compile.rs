//! What compiled policies say of their rules, and what makes them change.
#![allow(clippy::unwrap_used)]

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{Backed, Cluster, DenyReason, Direction, PeerRef, PolicyObject, Verdict, compile};
use weft_policy_oracle::generate::{self, workloads};
use weft_resources::Body;

fn object(text: &str) -> PolicyObject {
    let mut all = weft_resources::parse("f.yaml", text.as_bytes()).unwrap();
    let resource = all.remove(0);
    let kind = resource.kind().name().to_owned();
    let (Body::CiliumNetworkPolicy(policy)
    | Body::CiliumClusterwideNetworkPolicy(policy)
    | Body::NetworkPolicy(policy)) = resource.body
    else {
        panic!("no policy");
    };
    PolicyObject {
        kind,
        namespace: resource.meta.namespace,
        name: resource.meta.name,
        rules: policy.rules,
    }
}

#[test]
fn what_an_object_does_not_name_does_not_change_it() {
    let mut known: Cluster = workloads().into_iter().collect();
    let backed = Backed {
        selector: [("app".to_owned(), "z".to_owned())].into(),
        ..Backed::default()
    };
    known.set_service("a", "s1", Some(backed));
    let newcomer = Labels::for_workload([("app", "z"), ("tier", "z")], "a", "cart", "");
    let newcomer = newcomer.with_namespace([("team", "x")]);
    let mut runner = TestRunner::default();
    let objects = generate::object().prop_map(|manifest| object(&manifest.to_string()));
    let (mut named, mut unnamed) = (0, 0);
    for _ in 0..600 {
        let object = objects.new_tree(&mut runner).unwrap().current();
        let mut more = known.clone();
        more.insert(NumericIdentity(900), newcomer.clone());
        let ports = ["http", "dns"].map(|name| (name.to_owned(), [(6, 4000), (17, 4000)].into()));
        more.set_ports(NumericIdentity(900), ports.into());
        for (_, subject) in known.iter() {
            let same = compile([&object], subject, &known) == compile([&object], subject, &more);
            assert!(same || object.names_peer(&newcomer, &known), "{object:#?}");
            let selected = compile([&object], subject, &known) != compile([], subject, &known);
            assert!(!selected || object.selects(subject), "{object:#?}");
        }
        if object.names_peer(&newcomer, &known) {
            named += 1
        } else {
            unnamed += 1
        }
    }
    assert!(named > 60 && unnamed > 60, "{named} {unnamed}");
}

#[test]
fn the_rule_that_decided_is_named() {
    let text = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: a}
specs:
  - endpointSelector: {matchLabels: {app: x}}
    ingress:
      - fromEndpoints: [{matchLabels: {app: 'y'}}]
        toPorts: [{ports: [{port: '443'}]}, {ports: [{port: '80', protocol: TCP}]}]
    ingressDeny:
      - fromEntities: [world]
";
    let object = object(text);
    let known: Cluster = workloads().into_iter().collect();
    let find = |app: &str, namespace: &str| {
        let wanted = Labels::for_workload([("app", app)], namespace, "", "");
        let team = if namespace == "a" { "x" } else { "y" };
        let wanted = wanted.with_namespace([("team", team)]);
        known
            .iter()
            .find(|(_, l)| **l == wanted)
            .map(|(id, l)| (id, l.clone()))
            .unwrap()
    };
    let (x, y) = (find("x", "a"), find("y", "a"));
    let set = compile([&object], &x.1, &known);
    let at = |identity, port| {
        set.judge(
            Direction::Ingress,
            PeerRef {
                identity,
                address: None,
            },
            6,
            port,
        )
    };
    let path = |v: &Verdict| v.rule().map(|r| r.to_string());
    let allowed = at(y.0, 80);
    assert!(allowed.is_allowed());
    assert_eq!(
        path(&allowed).unwrap(),
        "CiliumNetworkPolicy/a/cart: specs[0].ingress[0].toPorts[1].ports[0]"
    );
    // What no rule allows is told by the objects that select.
    let by_default: Vec<_> = set.ingress().selected_by.iter().map(|r| r.to_string()).collect();
    assert_eq!(by_default, ["CiliumNetworkPolicy/a/cart: ingress"]);
    assert!(set.egress().selected_by.is_empty());
    // The same peer of another namespace, and another port, are not meant.
    assert_eq!(
        at(find("y", "b").0, 80),
        Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None
        }
    );
    assert_eq!(
        at(y.0, 81),
        Verdict::Denied {
            reason: DenyReason::PolicyDenied,
            rule: None
        }
    );
    let denied = at(NumericIdentity::WORLD, 80);
    assert!(matches!(
        denied,
        Verdict::Denied {
            reason: DenyReason::PolicyDeny,
            ..
        }
    ));
    assert_eq!(
        path(&denied).unwrap(),
        "CiliumNetworkPolicy/a/cart: specs[0].ingressDeny[0]"
    );
    // No section, no default deny.
    let out = set.judge(
        Direction::Egress,
        PeerRef {
            identity: y.0,
            address: None,
        },
        6,
        80,
    );
    assert_eq!(
        out,
        Verdict::Allowed {
            rule: None,
            redirect: false,
            auth: false
        }
    );
}
