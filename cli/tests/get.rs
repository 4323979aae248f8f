//! `weft get` as an operator uses it, against a running `weft dev`.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use rig::Session;
use serde_json::Value;
use std::process::Output;

const MANIFESTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: cilium}
spec: {controllerName: io.cilium/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: default-gateway}
spec:
  gatewayClassName: cilium
  listeners: [{name: web-gw, port: 80, protocol: HTTP}]
---
apiVersion: v1
kind: Service
metadata: {name: whoami}
spec: {selector: {app: whoami}, clusterIP: 10.96.9.9, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: whoami}
spec:
  parentRefs: [{name: default-gateway}]
  hostnames: [whoami.example.com]
  rules: [{backendRefs: [{name: whoami, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost, namespace: shop}
spec:
  parentRefs: [{name: default-gateway, namespace: default}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: grant}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: whoami}
spec: {endpointSelector: {matchLabels: {app: whoami}}, ingress: [{fromEntities: [cluster]}]}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec: {type: state.in-memory, version: v1}
";

fn output(session: &Session, args: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = session.command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    (status.code(), text(stdout), text(stderr))
}

/// The cells of a table, ages left out: they change.
fn cells(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|l| l.split_whitespace().collect()).collect()
}

fn condition<'v>(of: &'v Value, kind: &str) -> &'v str {
    let all = of["conditions"].as_array().unwrap();
    let one = all.iter().find(|c| c["type"] == kind).unwrap();
    one["status"].as_str().unwrap()
}

#[test]
fn objects_are_shown_with_their_status() {
    let manifests = tempfile::tempdir().unwrap();
    std::fs::write(manifests.path().join("all.yaml"), MANIFESTS).unwrap();
    let folder = manifests.path().to_str().unwrap();
    let session = Session::start(&["--rootless", "--resources", folder]);
    session.until("the gateway to be programmed", || {
        session.weft(&["get", "gtw"]).contains("True")
    });

    // Tables, under all names of a kind.
    let table = session.weft(&["get", "gateways"]);
    let table = cells(&table);
    assert_eq!(table[0], ["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"]);
    assert_eq!(
        (table[1][0], table[1][1], table[1][3]),
        ("default-gateway", "cilium", "True")
    );
    let address = table[1][2].split(',').next().unwrap().to_owned();
    for word in ["gateway", "Gateway", "gtw", "gateways.gateway.networking.k8s.io"] {
        assert_eq!(
            cells(&session.weft(&["get", word, "default-gateway"]))[1][0],
            "default-gateway"
        );
    }
    let table = session.weft(&["get", "svc"]);
    let table = cells(&table);
    assert_eq!(
        table[0],
        ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    );
    assert_eq!(
        table[1][..5],
        [
            "cilium-gateway-default-gateway",
            "ClusterIP",
            &address,
            "<none>",
            "80/TCP"
        ]
    );
    assert_eq!(
        table[2][..5],
        ["whoami", "ClusterIP", "10.96.9.9", "<none>", "80/TCP"]
    );
    let table = session.weft(&["get", "httproutes", "-A"]);
    let table = cells(&table);
    assert_eq!(table[0], ["NAMESPACE", "NAME", "HOSTNAMES", "AGE"]);
    assert_eq!(table[1][..3], ["default", "whoami", "[\"whoami.example.com\"]"]);
    assert_eq!(table[2][..2], ["shop", "lost"]);
    let table = session.weft(&["get", "cnp,component"]);
    assert!(
        table.contains("ciliumnetworkpolicy.cilium.io/whoami") && table.contains("component.dapr.io/store"),
        "{table}"
    );
    let table = session.weft(&["get", "gc"]);
    assert_eq!(
        cells(&table)[1][..3],
        ["cilium", "io.cilium/gateway-controller", "True"]
    );

    // The object with its status, for scripts.
    let one: Value =
        serde_json::from_str(&session.weft(&["get", "httproute", "whoami", "-o", "json"])).unwrap();
    assert_eq!(
        (one["kind"].as_str(), one["metadata"]["generation"].as_u64()),
        (Some("HTTPRoute"), Some(1))
    );
    let parent = &one["status"]["parents"][0];
    assert_eq!(
        (condition(parent, "Accepted"), condition(parent, "ResolvedRefs")),
        ("True", "True")
    );
    let lost: Value =
        serde_json::from_str(&session.weft(&["get", "httproute", "lost", "-n", "shop", "-o", "json"]))
            .unwrap();
    assert_eq!(condition(&lost["status"]["parents"][0], "Accepted"), "False");
    let yaml = session.weft(&["get", "gtw", "default-gateway", "-o", "yaml"]);
    for line in [
        "kind: Gateway",
        "gatewayClassName: cilium",
        "attachedRoutes: 1",
        "reason: Programmed",
        "observedGeneration: 1",
    ] {
        assert!(yaml.contains(line), "{line}: {yaml}");
    }
    let list: Value =
        serde_json::from_str(&session.weft(&["get", "httproutes", "-A", "-o", "json"])).unwrap();
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("List"), Some(2))
    );
    for kind in ["refgrant", "netpol", "ccnp", "configurations", "grpcroutes", "ns"] {
        assert_eq!(
            output(&session, &["get", kind, "-o", "json"]).0,
            Some(0),
            "{kind}"
        );
    }

    // What is not there, and what is no kind.
    let (code, out, error) = output(&session, &["get", "httproute", "nobody", "whoami"]);
    assert_eq!((code, cells(&out)[1][0]), (Some(1), "whoami"));
    assert_eq!(
        error,
        "weft: httproutes.gateway.networking.k8s.io \"nobody\" not found"
    );
    let (code, out, error) = output(&session, &["get", "httproute", "-n", "empty"]);
    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (Some(0), "", "No resources found in empty namespace.")
    );
    let (code, _, error) = output(&session, &["get", "pods"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("there is no resource type \"pods\""), "{error}");
    assert_eq!(output(&session, &["get"]).0, Some(2));
    assert_eq!(output(&session, &["get", "svc", "-o", "xml"]).0, Some(2));

    // A file that is not in force is not silently left out.
    std::fs::write(manifests.path().join("bad.yaml"), "kind: x\n").unwrap();
    session.until("the bad file to be seen", || {
        output(&session, &["get", "svc"])
            .2
            .contains("1 manifest file is not in force")
    });
}

#[test]
fn without_a_policy_service_it_says_where_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().to_str().unwrap();
    let ended = std::process::Command::new(rig::weft_exe())
        .args(["get", "svc", "--run-dir", run_dir])
        .output()
        .unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        error.contains("no policy service answers at") && error.contains("policy.sock"),
        "{error}"
    );
}
