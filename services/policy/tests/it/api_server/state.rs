//! What the API server has, and what it does with it.

use super::Mood;
use hyper::Method;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Service},
        networking::v1::{Ingress, NetworkPolicy},
    },
    apimachinery::pkg::apis::meta::v1::Status,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};
use weft_resources::Kind;

pub const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

pub type Name = (String, String);

#[derive(Debug, Default)]
pub struct State {
    pub version: u64,
    pub collections: HashMap<String, BTreeMap<Name, Value>>,
    /// Versions with what happened then.
    pub log: Vec<(u64, String, &'static str, Value)>,
    /// What happened up to this version is forgotten.
    pub forgotten: u64,
    pub moods: HashMap<String, Mood>,
    pub page: Option<usize>,
    pub bookmarks: bool,
    /// Collections with the version of the last bookmark.
    pub marked: HashMap<String, u64>,
    /// A token between pages that is asked for next has expired.
    pub expire: bool,
    /// Every request with when it came.
    pub asked: Vec<(Instant, String)>,
    /// Statuses that were applied: path and body.
    pub applied: Vec<(String, Value)>,
    /// What each manager applied last.
    pub owned: HashMap<(String, String), Value>,
    /// Put into a route's parents just before the next apply.
    pub intrude: Option<Value>,
}

/// After the published types have read and written it without losing anything.
fn published<T: DeserializeOwned + Serialize>(object: &Value) {
    let read: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(
        &serde_json::to_value(&read).unwrap(),
        object,
        "not of the published schema"
    );
}

pub fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    published::<Status>(&status);
    (code, status)
}

pub fn expired() -> (u16, Value) {
    failure(410, "Expired", "too old resource version")
}

/// The path of a kind's collection.
pub fn collection(kind: Kind, api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{api_version}/{}", kind.plural_and_short().0)
}

impl State {
    pub fn bump(&mut self, at: &str, name: &Name, change: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        match object["kind"].as_str().unwrap() {
            "Service" => published::<Service>(&object),
            "Namespace" => published::<Namespace>(&object),
            "NetworkPolicy" => published::<NetworkPolicy>(&object),
            "Ingress" => published::<Ingress>(&object),
            "Lease" => published::<Lease>(&object),
            _ => {}
        }
        let all = self.collections.get_mut(at).unwrap();
        match change {
            "DELETED" => all.remove(name),
            _ => all.insert(name.clone(), object.clone()),
        };
        self.log
            .push((self.version, at.to_owned(), change, object.clone()));
        object
    }

    pub fn list(&mut self, at: &str, query: &HashMap<String, String>) -> (u16, Value) {
        let all = &self.collections[at];
        let asked: usize = query["limit"].parse().unwrap();
        let limit = self.page.unwrap_or(asked).min(asked);
        let start: usize = match query.get("continue") {
            Some(token) => token.parse().unwrap(),
            None => 0,
        };
        if start > 0 && std::mem::take(&mut self.expire) {
            return failure(410, "Expired", "The provided continue parameter is too old");
        }
        let mut items: Vec<Value> = all.values().skip(start).take(limit).cloned().collect();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if start + items.len() < all.len() {
            metadata["continue"] = (start + items.len()).to_string().into();
        }
        let core = at.starts_with("/api/") || at.starts_with("/apis/networking.k8s.io/");
        if core {
            for item in &mut items {
                let item = item.as_object_mut().unwrap();
                item.remove("kind");
                item.remove("apiVersion");
            }
        }
        (
            200,
            json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
        )
    }

    /// Server-side apply of a status: lists by type and name are merged, others replaced.
    pub fn apply(
        &mut self,
        at: &str,
        name: &Name,
        query: &HashMap<String, String>,
        body: &Value,
    ) -> (u16, Value) {
        if at.ends_with("/httproutes")
            && let Some(parent) = self.intrude.take()
        {
            let mut object = self.collections[at][name].clone();
            let mut parents = object["status"]["parents"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            parents.push(parent);
            object["status"] = json!({"parents": parents});
            self.bump(at, name, "MODIFIED", object);
        }
        let Some(mut object) = self.collections[at].get(name).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        assert_eq!(query["force"], "true");
        let wanted = &body["metadata"]["resourceVersion"];
        if wanted.is_string() && *wanted != object["metadata"]["resourceVersion"] {
            return failure(409, "Conflict", "the object has been modified");
        }
        self.applied
            .push((format!("{at}/{}/{}", name.0, name.1), body.clone()));
        let owner = (
            query["fieldManager"].clone(),
            format!("{at}/{}/{}", name.0, name.1),
        );
        let before = self
            .owned
            .insert(owner, body["status"].clone())
            .unwrap_or_default();
        let old = object["status"].clone();
        let mut status = body["status"].clone();
        for (list, by) in [("conditions", "type"), ("listeners", "name")] {
            let rest = old[list].as_array().into_iter().flatten();
            let had = |of: &Value, e: &Value| {
                of[list]
                    .as_array()
                    .is_some_and(|a| a.iter().any(|o| o[by] == e[by]))
            };
            let rest: Vec<Value> = rest
                .filter(|e| !had(&status, e) && !had(&before, e))
                .cloned()
                .collect();
            if !rest.is_empty() {
                let mut merged = status[list].as_array().cloned().unwrap_or_default();
                merged.extend(rest);
                status[list] = merged.into();
            }
        }
        if old != status {
            object["status"] = status;
            object = self.bump(at, name, "MODIFIED", object);
        }
        (200, object)
    }

    pub fn lease(&mut self, method: &Method, name: Name, body: &[u8]) -> (u16, Value) {
        let there = self.collections[LEASES].get(&name).cloned();
        let wanted = || -> Value { serde_json::from_slice(body).unwrap() };
        match (method, there) {
            (&Method::GET, Some(lease)) => (200, lease),
            (&Method::POST, None) => (201, self.bump(LEASES, &name, "ADDED", wanted())),
            (&Method::POST, Some(_)) => failure(409, "AlreadyExists", "already exists"),
            (&Method::PUT, Some(lease)) => {
                let wanted = wanted();
                if wanted["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] {
                    return failure(409, "Conflict", "the object has been modified");
                }
                (200, self.bump(LEASES, &name, "MODIFIED", wanted))
            }
            _ => failure(404, "NotFound", "not found"),
        }
    }
}
