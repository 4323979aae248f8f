//! The manifest of the service's rights has what it asks for, and nothing else.

use serde::Deserialize;
use std::collections::BTreeSet;
use weft_resources::Kind;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

fn rights(kind: &str) -> BTreeSet<String> {
    let text = include_str!("../../../../../deploy/kubernetes/policy-rbac.yaml");
    let objects: Vec<Object> = serde_saphyr::from_multiple(text).unwrap();
    let mut rights = BTreeSet::new();
    for rule in objects.iter().filter(|o| o.kind == kind).flat_map(|o| &o.rules) {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                rights.extend(rule.verbs.iter().map(|verb| format!("{verb} {group}/{resource}")));
            }
        }
    }
    rights
}

#[test]
fn every_kind_may_be_read_and_those_with_a_status_written() {
    let mut wanted = BTreeSet::new();
    for kind in Kind::ALL {
        let resource = format!("{}/{}", kind.group(), kind.plural_and_short().0);
        wanted.extend(["list", "watch"].map(|verb| format!("{verb} {resource}")));
        if matches!(
            kind,
            Kind::GatewayClass
                | Kind::Gateway
                | Kind::HttpRoute
                | Kind::GrpcRoute
                | Kind::TlsRoute
                | Kind::Ingress
                | Kind::CiliumNetworkPolicy
                | Kind::CiliumClusterwideNetworkPolicy
        ) {
            wanted.insert(format!("get {resource}"));
            wanted.insert(format!("patch {resource}/status"));
        }
    }
    assert_eq!(rights("ClusterRole"), wanted);
    let lease = ["create", "get", "update"].map(|verb| format!("{verb} coordination.k8s.io/leases"));
    assert_eq!(rights("Role"), lease.into());
}
