//! What is to be written of an object's status. No I/O.
//!
//! What others wrote stays: other controllers' entries among a route's parents (that list is replaced
//! whole by whoever applies it), other types of conditions. A condition that holds on keeps its time.

use super::object::{Facts, Rejected};
use serde_json::{Value, json};

/// Controllers whose statuses are ours.
const CONTROLLERS: [&str; 2] = ["io.cilium/gateway-controller", "weft.dev/gateway-controller"];
/// Entries that a list of parents holds at most.
const MAX_PARENTS: usize = 32;
/// Characters of a message at most.
const MAX_MESSAGE: usize = 1_024;

const NONE: &[Value] = &[];

fn list<'v>(of: &'v Value, name: &str) -> &'v [Value] {
    of[name].as_array().map_or(NONE, Vec::as_slice)
}

fn is_ours(parent: &Value) -> bool {
    CONTROLLERS.iter().any(|c| parent["controllerName"] == *c)
}

/// Equal but for when it became so.
fn same(one: &Value, other: &Value) -> bool {
    ["type", "status", "reason", "message", "observedGeneration"]
        .iter()
        .all(|name| one[*name] == other[*name])
}

/// Gives conditions that hold on the time that they have.
fn keep_times(wanted: &mut Value, there: &Value) {
    let Some(conditions) = wanted.get_mut("conditions").and_then(Value::as_array_mut) else {
        return;
    };
    for condition in conditions {
        let holds = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        let before = list(there, "conditions").iter().find(holds);
        if let Some(time) = before.map(|c| &c["lastTransitionTime"]).filter(|t| t.is_string()) {
            condition["lastTransitionTime"] = time.clone();
        }
    }
}

/// Whether all that is wanted is there. Conditions of other types are somebody else's.
fn holds(wanted: &Value, there: &Value) -> bool {
    list(wanted, "conditions")
        .iter()
        .all(|c| list(there, "conditions").iter().any(|t| same(c, t)))
}

fn by_name<'v>(listeners: &'v [Value], name: &Value) -> &'v Value {
    let found = listeners.iter().find(|l| l["name"] == *name);
    found.unwrap_or(&Value::Null)
}

fn listeners_hold(wanted: &Value, there: &Value) -> bool {
    let (wanted, there) = (list(wanted, "listeners"), list(there, "listeners"));
    wanted.len() == there.len()
        && wanted.iter().all(|listener| {
            let old = by_name(there, &listener["name"]);
            let fields = ["attachedRoutes", "supportedKinds"];
            fields.iter().all(|f| listener[*f] == old[*f])
                && list(listener, "conditions").len() == list(old, "conditions").len()
                && holds(listener, old)
        })
}

/// The status to be applied; nothing when what is there says the same.
pub(super) fn to_apply(mut wanted: Value, there: &Value) -> Option<Value> {
    if wanted["parents"].is_array() {
        return parents(&mut wanted, there);
    }
    // Types that we wrote once and do not mean any more would stay with a mere comparison of ours.
    let left_over = ["PartiallyInvalid", "Conflicted"].iter().any(|kind| {
        let has = |of: &Value| list(of, "conditions").iter().any(|c| c["type"] == **kind);
        has(there) && !has(&wanted)
    });
    let addresses = list(&wanted, "addresses") == list(there, "addresses");
    // Of an Ingress: the API server leaves out what is empty.
    let balancer = list(&wanted["loadBalancer"], "ingress") == list(&there["loadBalancer"], "ingress");
    if holds(&wanted, there) && listeners_hold(&wanted, there) && addresses && balancer && !left_over {
        return None;
    }
    keep_times(&mut wanted, there);
    if let Some(listeners) = wanted.get_mut("listeners").and_then(Value::as_array_mut) {
        for listener in listeners {
            let old = by_name(list(there, "listeners"), &listener["name"]);
            keep_times(listener, old);
        }
    }
    Some(wanted)
}

fn parents(wanted: &mut Value, there: &Value) -> Option<Value> {
    let (mine, others): (Vec<&Value>, Vec<&Value>) = list(there, "parents").iter().partition(|p| is_ours(p));
    let entry = |parent: &Value| {
        let of = |p: &&&Value| {
            (&p["parentRef"], &p["controllerName"]) == (&parent["parentRef"], &parent["controllerName"])
        };
        mine.iter().find(of).map_or(Value::Null, |p| (**p).clone())
    };
    let ours = wanted["parents"].as_array_mut()?;
    let all_there = ours.iter().all(|parent| {
        let old = entry(parent);
        list(&old, "conditions").len() == list(parent, "conditions").len() && holds(parent, &old)
    });
    if ours.len() == mine.len() && all_there {
        return None;
    }
    for parent in &mut *ours {
        let old = entry(parent);
        keep_times(parent, &old);
    }
    let mut all: Vec<Value> = others.into_iter().cloned().collect();
    all.append(ours);
    all.truncate(MAX_PARENTS);
    Some(json!({"parents": all}))
}

fn message(rejected: &Rejected) -> String {
    const SHOWN: usize = 3;
    let mut text = rejected.errors[..rejected.errors.len().min(SHOWN)].join("; ");
    if rejected.errors.len() > SHOWN {
        text += &format!("; and {} more", rejected.errors.len() - SHOWN);
    }
    text.chars().take(MAX_MESSAGE).collect()
}

fn condition(kind: &str, reason: &str, text: &str, facts: &Facts, now: &str) -> Value {
    json!({
        "type": kind, "status": "False", "reason": reason, "message": text,
        "observedGeneration": facts.generation, "lastTransitionTime": now,
    })
}

/// Puts conditions in place of those of their types.
fn put(status: &mut Value, conditions: Vec<Value>) {
    let replaced = |c: &Value| conditions.iter().any(|n| n["type"] == c["type"]);
    let mut all: Vec<Value> = list(status, "conditions")
        .iter()
        .filter(|c| !replaced(c))
        .cloned()
        .collect();
    all.extend(conditions);
    status["conditions"] = all.into();
}

/// Whose a parent of a route is.
pub(super) trait Owners {
    /// The controller of a Gateway, if it is ours.
    fn of_gateway(&self, namespace: &str, name: &str) -> Option<&'static str>;
}

/// The status of an object that is not taken. `before`: what is said of what it said before, which is
/// in force.
pub(super) fn of_rejected(
    kind: weft_resources::Kind,
    namespace: &str,
    facts: &Facts,
    before: Option<Value>,
    (owners, now): (&impl Owners, &str),
) -> Option<Value> {
    use weft_resources::Kind;
    let rejected = facts.rejected.as_ref()?;
    let text = message(rejected);
    let mut status = before.clone().unwrap_or_else(|| json!({}));
    match kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            put(
                &mut status,
                vec![condition("Valid", "Invalid", &text, facts, now)],
            );
            Some(status)
        }
        Kind::Gateway => {
            let class = rejected.of.as_str();
            if before.is_none() && !matches!(class, Some("cilium" | "weft")) {
                return None;
            }
            put(
                &mut status,
                vec![condition("Accepted", "Invalid", &text, facts, now)],
            );
            if before.is_none() {
                put(
                    &mut status,
                    vec![condition("Programmed", "Invalid", &text, facts, now)],
                );
            }
            Some(status)
        }
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute => {
            let parents = rejected.of.as_array().map_or(NONE, Vec::as_slice).iter();
            let parents = parents.take(MAX_PARENTS).filter_map(|parent| {
                let reference = reference(parent)?;
                let text_of = |name: &str| reference[name].as_str();
                let controller = match (text_of("group")?, text_of("kind")?) {
                    ("gateway.networking.k8s.io", "Gateway") => {
                        let of = text_of("namespace").unwrap_or(namespace);
                        owners.of_gateway(of, text_of("name")?)?
                    }
                    ("", "Service") => CONTROLLERS[1],
                    _ => return None,
                };
                let accepted = condition("Accepted", "UnsupportedValue", &text, facts, now);
                Some(json!({
                    "parentRef": reference, "controllerName": controller, "conditions": [accepted],
                }))
            });
            Some(json!({"parents": parents.collect::<Vec<_>>()}))
        }
        _ => None,
    }
}

/// A parent as it is named in a status: with group and kind, and without what the schema does not know.
fn reference(parent: &Value) -> Option<Value> {
    let text = |name: &str, default: &str| parent[name].as_str().unwrap_or(default).to_owned();
    let mut reference = json!({
        "group": text("group", "gateway.networking.k8s.io"),
        "kind": text("kind", "Gateway"),
        "name": parent["name"].as_str()?,
    });
    for name in ["namespace", "sectionName"] {
        if let Some(value) = parent[name].as_str() {
            reference[name] = value.into();
        }
    }
    if let Some(port) = parent["port"].as_u64() {
        reference["port"] = port.into();
    }
    Some(reference)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
