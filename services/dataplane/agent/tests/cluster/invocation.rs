//! Apps call each other, on one node and between two, and policy has its say on both.

use crate::{
    flows::Verdict,
    support::{Mesh, eventually, get, serve_app, spec},
};
use weft_proto::weft::dataplane::v1::{AddRequest, WorkloadSpec};

pub const CART_FOR_ORDERS: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: cart
  namespace: default
spec:
  endpointSelector:
    matchLabels:
      dapr.io/app-id: cart
  ingress:
  - fromEndpoints:
    - matchLabels:
        dapr.io/app-id: orders
    toPorts:
    - ports:
      - port: "50002"
        protocol: TCP
"#;

#[tokio::test(flavor = "multi_thread")]
async fn two_apps_of_one_node_call_each_other() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let cart = agent.add("cart", serve_app("cart").await).await;
    let orders = agent.add("orders", serve_app("orders").await).await;
    assert_eq!(cart.placed.spiffe_id, "spiffe://cluster.local/ns/default/cart");
    assert!(cart.placed.identity >= 256 && cart.placed.cgroup.is_empty());

    let answer = orders.invoke("cart", "checkout?id=7").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "cart /checkout?id=7 by orders of default")
    );
    let answer = cart.invoke("orders.default", "list").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "orders /list by cart of default")
    );
    // What an app says of itself is overwritten.
    let forged = [
        ("dapr-caller-app-id", "admin"),
        ("dapr-caller-namespace", "kube-system"),
    ];
    let answer = orders.invoke_with("cart", "forged", &forged).await;
    assert_eq!(answer.body, "cart /forged by orders of default");

    let flow = agent.flow("/checkout", "ingress").await;
    let (source, destination) = (flow.source.unwrap(), flow.destination.unwrap());
    assert_eq!(
        (source.app_id.as_str(), destination.app_id.as_str()),
        ("orders", "cart")
    );
    assert_eq!(
        (flow.via.as_str(), flow.caller_proof.as_str()),
        ("same-node", "port-token")
    );

    // Without its token nobody speaks for an app; with another's neither.
    let path = "/v1.0/invoke/cart/method/checkout";
    assert_eq!(get(orders.http, path, &[]).await.unwrap().status, 401);
    let other = [("dapr-api-token", cart.token.as_str())];
    assert_eq!(get(orders.http, path, &other).await.unwrap().status, 401);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_another_namespace_on_another_node_is_found_when_it_is_called() {
    let mesh = Mesh::new(&[]).await;
    let near = mesh.agent("n1", [127, 0, 0, 2]).await;
    let far = mesh.agent("n2", [127, 0, 0, 3]).await;
    let orders = near.add("orders", serve_app("orders").await).await;
    let cart = WorkloadSpec {
        namespace: "stock".into(),
        ..spec("cart", serve_app("cart").await)
    };
    far.workloads()
        .add(AddRequest { spec: Some(cart) })
        .await
        .unwrap();
    let answer = eventually("the other namespace", async || {
        let answer = orders.invoke("cart.stock", "x").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.body, "cart /x by orders of default");
    // In its own namespace there is none of that name.
    assert_ne!(orders.invoke("cart", "x").await.status, 200);
    // The callee's node comes to know the caller, too.
    eventually("the caller to be known", async || {
        orders.invoke("cart.stock", "who").await;
        let flow = far.flow("/who", "ingress").await;
        flow.source.is_some_and(|s| s.identity >= 256).then_some(())
    })
    .await;
    far.stop().await;
    near.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_refuses_one_caller_and_lets_its_twin_in_on_both_nodes() {
    let mesh = Mesh::new(&[("cart.yaml", CART_FOR_ORDERS)]).await;
    let near = mesh.agent("n1", [127, 0, 0, 2]).await;
    let far = mesh.agent("n2", [127, 0, 0, 3]).await;
    near.add("cart", serve_app("cart").await).await;

    for (agent, via) in [(&near, "same-node"), (&far, "tunnel")] {
        let orders = agent.add("orders", serve_app("orders").await).await;
        let thief = agent.add("thief", serve_app("thief").await).await;
        // The far node learns of the cart a moment later, and the near one of the far callers.
        let answer = eventually("an allowed call", async || {
            let answer = orders.invoke("cart", via).await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert_eq!(answer.body, format!("cart /{via} by orders of default"));
        let refused = thief.invoke("cart", &format!("{via}-thief")).await;
        assert_eq!(refused.status, 403, "{refused:?}");

        let flow = near.flow(&format!("/{via}"), "ingress").await;
        assert_eq!(flow.verdict(), Verdict::Forwarded);
        assert!(flow.rule.contains("default/cart"), "{flow:?}");
        // The callee's node judges who comes in.
        let flow = near.flow(&format!("/{via}-thief"), "ingress").await;
        assert_eq!(flow.verdict(), Verdict::Dropped, "{flow:?}");
        assert_eq!(flow.drop_reason, "POLICY_DENIED");
        assert_eq!(flow.source.unwrap().app_id, "thief");
    }
    let flow = near.flow("/tunnel", "ingress").await;
    assert_eq!(flow.caller_proof, "tunnel-svid");
    assert_eq!(flow.source.unwrap().node, "n2");
    assert!(
        near.metrics.text().contains("\nweft_dataplane_workloads "),
        "{}",
        near.metrics.text()
    );
    far.stop().await;
    near.stop().await;
}
