//! The local API: adding, attaching, removing, and what the status says.

use crate::support::{Mesh, eventually, get, serve_app, spec};
use weft_proto::weft::dataplane::v1::{
    AddRequest, AttachRequest, GetRequest, ListRequest, RemoveRequest, WorkloadSpec, workload_spec::Place,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_goes_with_its_stream_and_what_is_added_when_removed() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let cart = agent.add("cart", serve_app("cart").await).await;
    let count = async || {
        agent
            .workloads()
            .list(ListRequest {})
            .await
            .unwrap()
            .into_inner()
            .workloads
            .len()
    };

    let request = AttachRequest {
        spec: Some(spec("orders", serve_app("orders").await)),
        resume_id: String::new(),
    };
    let mut stream = agent.workloads().attach(request).await.unwrap().into_inner();
    let placed = stream.message().await.unwrap().unwrap().placed.unwrap();
    assert_eq!(cart.invoke("orders", "x").await.status, 200);
    assert_eq!(count().await, 2);
    drop(stream);
    eventually("the attached one to go", async || {
        (count().await == 1).then_some(())
    })
    .await;
    assert_ne!(cart.invoke("orders", "x").await.status, 200);
    let port: u16 = placed.environment["DAPR_HTTP_PORT"].parse().unwrap();
    eventually("its port to close", async || {
        get(port, "/v1.0/healthz", &[]).await.err()
    })
    .await;

    let id = cart.placed.id.clone();
    agent
        .workloads()
        .remove(RemoveRequest { id: id.clone() })
        .await
        .unwrap();
    assert_eq!(count().await, 0);
    let again = agent.workloads().remove(RemoveRequest { id }).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_added_is_refused_with_the_reason() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    let add =
        async |spec: Option<WorkloadSpec>| agent.workloads().add(AddRequest { spec }).await.unwrap_err();
    assert_eq!(add(None).await.code(), tonic::Code::InvalidArgument);
    let wrong = WorkloadSpec {
        namespace: "No Namespace".into(),
        ..spec("cart", 0)
    };
    let refused = add(Some(wrong)).await;
    assert!(refused.message().contains("spec.namespace"), "{refused}");
    let pod = WorkloadSpec {
        place: Some(Place::NetnsPid(1)),
        ..spec("cart", 0)
    };
    let refused = add(Some(pod)).await;
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("needs root"), "{refused}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_what_is_there_and_what_is_not() {
    let mesh = Mesh::new(&[]).await;
    let agent = mesh.agent("n1", [127, 0, 0, 2]).await;
    agent.add("cart", 0).await;
    let status = eventually("all upstreams", async || {
        let status = agent.status().get(GetRequest {}).await.unwrap().into_inner();
        status.upstreams.iter().all(|u| u.connected).then_some(status)
    })
    .await;
    let names: Vec<_> = status.upstreams.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["identity", "policy", "placement"]);
    assert_eq!((status.node.as_str(), status.workloads.len()), ("n1", 1));
    assert_eq!(status.spiffe_id, "spiffe://cluster.local/weft/node/n1");
    assert!(status.certificate_not_after.is_some());
    let missing = status
        .capabilities
        .iter()
        .find(|c| c.name == "kernel-attribution")
        .unwrap();
    assert!(!missing.active && missing.reason.contains("root"), "{missing:?}");
    agent.stop().await;
}
