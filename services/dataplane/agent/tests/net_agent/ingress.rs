//! An Ingress, from another machine to pods and processes of two nodes.

use crate::requests::{SERVICES, eventually, from_outside, scene};

const INGRESS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: default}
spec:
  ingressClassName: cilium
  rules:
  - http:
      paths:
      - {path: /one, pathType: Prefix, backend: {service: {name: whoami-v1, port: {name: http}}}}
      - {path: /two, pathType: Prefix, backend: {service: {name: whoami-v2, port: {number: 80}}}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: from-shop, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v1}}
  ingress: [{fromEndpoints: [{matchLabels: {dapr.io/app-id: shop}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: from-ingress, namespace: default}
spec:
  endpointSelector: {matchLabels: {dapr.io/app-id: v2}}
  ingress: [{fromEntities: [ingress]}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_is_served_on_port_80_of_the_node_and_judged_as_ingress() {
    let scene = scene(&[("services.yaml", SERVICES), ("ingress.yaml", INGRESS)]).await;
    eventually("v2 does not answer through the Ingress", async || {
        from_outside(&scene, 80, "/two").is_ok_and(|answer| answer == (200, "v2 /two".into()))
    })
    .await;
    assert_eq!(from_outside(&scene, 80, "/none").unwrap().0, 404);
    // Its twin, to whom the policy says otherwise.
    eventually("v1 is not denied", async || {
        from_outside(&scene, 80, "/one").is_ok_and(|(status, _)| status == 403)
    })
    .await;
    let flows = scene.rig.nodes[0].flows("/two").await;
    let sent = flows.iter().find(|f| f.status == 200).unwrap();
    assert_eq!(sent.route, "Ingress/default/web");
    assert_eq!(sent.source.as_ref().unwrap().identity, 8);
    // For hosts only: the others are nobody's.
    scene.rig.write(
        "ingress.yaml",
        &INGRESS.replace("- http:", "- host: shop.example.com\n    http:"),
    );
    eventually("a host without rules is served", async || {
        from_outside(&scene, 80, "/two").is_ok_and(|(status, _)| status == 404)
    })
    .await;
}
