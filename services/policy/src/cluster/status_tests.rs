#![allow(clippy::unwrap_used)]
use super::*;
use std::sync::Arc;
use weft_resources::Kind;

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-02-02T00:00:00Z";

fn said(kind: &str, status: &str, reason: &str, time: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
        "lastTransitionTime": time,
    })
}

fn parent(controller: &str, status: &str, time: &str) -> Value {
    json!({
        "parentRef": {"group": "g", "kind": "Gateway", "name": "web"},
        "controllerName": controller,
        "conditions": [said("Accepted", status, "x", time)],
    })
}

#[test]
fn a_status_is_written_only_when_it_differs_and_not_for_its_time() {
    let there =
        json!({"conditions": [said("Valid", "True", "Valid", THEN), said("Foreign", "True", "x", THEN)]});
    let of = |status: &str, reason: &str| json!({"conditions": [said("Valid", status, reason, NOW)]});
    assert_eq!(to_apply(of("True", "Valid"), &there), None);
    // Another reason: the same truth since then. Another truth: since now.
    let applied = to_apply(of("True", "Sound"), &there).unwrap();
    assert_eq!(
        applied,
        json!({"conditions": [said("Valid", "True", "Sound", THEN)]})
    );
    let applied = to_apply(of("False", "Invalid"), &there).unwrap();
    assert_eq!(applied, of("False", "Invalid"));
    assert_eq!(
        to_apply(of("True", "Valid"), &Value::Null),
        Some(of("True", "Valid"))
    );
}

#[test]
fn other_controllers_parents_stay_in_a_routes_list() {
    let other = parent("example.com/other", "True", THEN);
    let ours = |status: &str, time: &str| parent("weft.dev/gateway-controller", status, time);
    let there = json!({"parents": [ours("True", THEN), other]});
    assert_eq!(to_apply(json!({"parents": [ours("True", NOW)]}), &there), None);
    let applied = to_apply(json!({"parents": [ours("False", NOW)]}), &there).unwrap();
    assert_eq!(applied, json!({"parents": [other, ours("False", NOW)]}));
    // It left us: ours goes, and only ours.
    let applied = to_apply(json!({"parents": []}), &there).unwrap();
    assert_eq!(applied, json!({"parents": [other]}));
    assert_eq!(
        to_apply(json!({"parents": []}), &json!({"parents": [other]})),
        None
    );
    assert_eq!(to_apply(json!({"parents": []}), &Value::Null), None);
}

#[test]
fn listeners_and_addresses_of_a_gateway_count() {
    let gateway = |routes: u64, names: &[&str], address: &str, time: &str| {
        let listener = |name: &&str| {
            json!({"name": name, "attachedRoutes": routes, "supportedKinds": [],
                   "conditions": [said("Accepted", "True", "Accepted", time)]})
        };
        json!({
            "addresses": [{"type": "IPAddress", "value": address}],
            "conditions": [said("Accepted", "True", "Accepted", time)],
            "listeners": names.iter().map(listener).collect::<Vec<_>>(),
        })
    };
    let there = gateway(1, &["a", "b"], "10.0.0.1", THEN);
    assert_eq!(to_apply(gateway(1, &["a", "b"], "10.0.0.1", NOW), &there), None);
    assert_eq!(to_apply(gateway(1, &["b", "a"], "10.0.0.1", NOW), &there), None);
    for other in [
        gateway(2, &["a", "b"], "10.0.0.1", THEN),
        gateway(1, &["a"], "10.0.0.1", THEN),
        gateway(1, &["a", "b"], "10.0.0.2", THEN),
    ] {
        assert_eq!(to_apply(other.clone(), &there), Some(other));
    }
}

struct Ours;

impl Owners for Ours {
    fn of_gateway(&self, namespace: &str, name: &str) -> Option<&'static str> {
        ((namespace, name) == ("shop", "web")).then_some(CONTROLLERS[0])
    }
}

fn rejected(kind: Kind, of: Value, before: Option<Value>) -> Option<Value> {
    let facts = Facts {
        api_version: kind.api_version(),
        version: "9".into(),
        generation: 2,
        status: "null".into(),
        rejected: Some(Arc::new(Rejected {
            errors: ["a: no", "b: no", "c: no", "d: no"].map(str::to_owned).into(),
            of,
        })),
    };
    of_rejected(kind, "shop", &facts, before, (&Ours, NOW))
}

#[test]
fn what_is_wrong_with_an_object_is_said_in_its_status() {
    let valid = json!({"conditions": [said("Valid", "True", "Valid", THEN)]});
    let status = rejected(Kind::CiliumNetworkPolicy, Value::Null, Some(valid)).unwrap();
    let text = "a: no; b: no; c: no; and 1 more";
    let no = |kind: &str, reason: &str| {
        json!({"type": kind, "status": "False", "reason": reason, "message": text,
               "observedGeneration": 2, "lastTransitionTime": NOW})
    };
    assert_eq!(status, json!({"conditions": [no("Valid", "Invalid")]}));

    let gateway = |class: &str, before| rejected(Kind::Gateway, json!(class), before);
    let both = json!({"conditions": [no("Accepted", "Invalid"), no("Programmed", "Invalid")]});
    assert_eq!(gateway("weft", None), Some(both));
    assert_eq!(gateway("somebody-elses", None), None);
    // What it said before is served on.
    let programmed = said("Programmed", "True", "Programmed", THEN);
    let before = json!({"conditions": [programmed], "listeners": [{"name": "a"}]});
    let status = gateway("mine", Some(before)).unwrap();
    assert_eq!(
        status,
        json!({"conditions": [programmed, no("Accepted", "Invalid")], "listeners": [{"name": "a"}]})
    );

    let parents = json!([{"name": "web"}, {"name": "web", "namespace": "other"}, {"name": 7},
        {"name": "cart", "kind": "Service", "group": "", "port": 80}, {"name": "x", "kind": "Mesh"}]);
    let status = rejected(Kind::HttpRoute, parents, None).unwrap();
    let refused = |reference: Value, controller: &str| {
        json!({"parentRef": reference, "controllerName": controller,
               "conditions": [no("Accepted", "UnsupportedValue")]})
    };
    let group = "gateway.networking.k8s.io";
    let web = json!({"group": group, "kind": "Gateway", "name": "web"});
    let cart = json!({"group": "", "kind": "Service", "name": "cart", "port": 80});
    assert_eq!(
        status,
        json!({"parents": [refused(web, CONTROLLERS[0]), refused(cart, CONTROLLERS[1])]})
    );
    assert_eq!(rejected(Kind::Service, Value::Null, None), None);
}

#[test]
fn an_address_of_an_ingress_is_written_when_it_differs() {
    let at = |address: &str| json!({"loadBalancer": {"ingress": [{"ip": address}]}});
    assert_eq!(
        to_apply(at("10.0.0.1"), &json!({"loadBalancer": {}})),
        Some(at("10.0.0.1"))
    );
    assert_eq!(to_apply(at("10.0.0.1"), &at("10.0.0.2")), Some(at("10.0.0.1")));
    assert_eq!(to_apply(at("10.0.0.1"), &at("10.0.0.1")), None);
    let none = json!({"loadBalancer": {"ingress": []}});
    assert_eq!(to_apply(none.clone(), &json!({"loadBalancer": {}})), None);
    assert_eq!(to_apply(none.clone(), &at("10.0.0.1")), Some(none));
}
