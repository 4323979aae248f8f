//! The API server of a cluster as the source, by the stock client over real sockets: what is read, what
//! survives which failure, what becomes of statuses.

mod failing;
mod reading;
mod rights;
mod statuses;

use crate::{
    api_server::ApiServer,
    rig::{Rig, service},
};
use std::time::Duration;
use weft_policy::{Config, Source};
use weft_proto::weft::policy::v1 as pb;

pub fn of(server: &ApiServer) -> impl FnOnce(&mut Config) + use<> {
    let kubeconfig = server.kubeconfig();
    move |config| {
        config.source = Source::Kubernetes;
        config.resources = None;
        config.kubeconfig = Some(kubeconfig);
        config.retry_seconds = 1;
        config.lease_seconds = 2;
    }
}

async fn rig(server: &ApiServer) -> Rig {
    Rig::configured(of(server)).await
}

fn accepted(list: &pb::ListResponse) -> Vec<String> {
    let accepted = list.resources.iter().filter(|r| r.accepted);
    accepted
        .map(|r| format!("{} {}/{}", r.kind, r.namespace, r.name))
        .collect()
}

fn errors(list: &pb::ListResponse) -> Vec<String> {
    list.resources.iter().flat_map(|r| r.errors.clone()).collect()
}

fn services(server: &ApiServer, names: &[&str]) {
    for name in names {
        server.put(&service("shop", name));
    }
}

async fn until_services(rig: &Rig, names: &[&str]) {
    let wanted: Vec<String> = names.iter().map(|n| format!("Service shop/{n}")).collect();
    rig.list_until(|list| accepted(list) == wanted).await;
}

/// Until this holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
        panic!("never came: {what}");
    }
}

const MANIFESTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}, creationTimestamp: '2026-01-01T00:00:00Z'}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {selector: {app: cart}, ports: [{name: web, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {clusterIP: None, selector: {app: cart}, ports: [{port: 80}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cart, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  endpointSelector: {matchLabels: {app: cart}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: front}}]
      toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{method: GET, path: /items/.*}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: all, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {endpointSelector: {}, egress: [{toEntities: [cluster]}, {toCIDRSet: [{cidrGroupRef: office}]}]}
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: office, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {externalCIDRs: [192.0.2.0/24]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  podSelector: {matchLabels: {app: front}}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80, protocol: TCP}]}]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: state, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {type: state.in-memory, version: v1, metadata: []}
scopes: [cart]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  parentRefs: [{name: web}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
";
