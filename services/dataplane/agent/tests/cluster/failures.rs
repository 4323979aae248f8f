//! The control plane goes away; what runs goes on.

use crate::support::{Mesh, eventually, serve_app, spec};
use weft_proto::weft::dataplane::v1::{AddRequest, GetRequest};

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_without_the_control_plane_and_after_a_restart() {
    let mut mesh = Mesh::new(&[]).await;
    let near = mesh.agent("n1", [127, 0, 0, 2]).await;
    let far = mesh.agent("n2", [127, 0, 0, 3]).await;
    near.add("cart", serve_app("cart").await).await;
    let orders = near.add("orders", serve_app("orders").await).await;
    far.add("shop", serve_app("shop").await).await;
    let call = async |app: &str| orders.invoke(app, "x").await.status == 200;
    eventually("a call to the other node", async || {
        call("shop").await.then_some(())
    })
    .await;

    mesh.stop_control().await;
    eventually("the agent to notice", async || {
        let status = near.status().get(GetRequest {}).await.unwrap().into_inner();
        status
            .upstreams
            .iter()
            .all(|u| !u.connected && !u.error.is_empty())
            .then_some(())
    })
    .await;
    for _ in 0..50 {
        assert!(call("cart").await && call("shop").await);
    }

    // The agent starts anew, on what it kept: the same apps on the same ports.
    near.stop().await;
    let near = mesh.agent("n1", [127, 0, 0, 2]).await;
    eventually("calls on this node and to the other", async || {
        let answers = [orders.invoke("cart", "x").await, orders.invoke("shop", "x").await];
        answers.iter().all(|a| a.status == 200).then_some(())
    })
    .await;
    let status = near.status().get(GetRequest {}).await.unwrap().into_inner();
    assert_eq!(status.workloads.len(), 2);
    assert!(status.policy_version > 0);

    // Who is new can not be named: refused with the reason, and nothing is left of it.
    let request = AddRequest {
        spec: Some(spec("new", 0)),
    };
    let refused = near.workloads().add(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("policy service"), "{refused}");
    eventually("it to be removed", async || {
        let status = near.status().get(GetRequest {}).await.unwrap().into_inner();
        (status.workloads.len() == 2).then_some(())
    })
    .await;
    near.stop().await;
    far.stop().await;
}
