//! Answers of the API server that are larger than any good one, or come in pages.

use crate::{
    attest::{assert_refused, attest},
    attest_kubernetes::{join_as_node, rig_of},
    cluster::Cluster,
    rig::Rig,
    workloads::{registered, sign, workload},
};
use serde_json::json;
use tonic::{Code, Status};
use weft_model::SvidForm;
use weft_proto::weft::identity::v1::{Svid, SvidUse, attest_request::Evidence};

const MIB: usize = 1 << 20;

async fn show(rig: &Rig, token: &str) -> Result<Svid, Status> {
    attest(rig, None, Some(Evidence::KubernetesToken(token.into())), "").await
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read_to_its_end() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let token = cluster.token("shop", "cart-1", "runner");
    let note = |bytes: usize| {
        cluster.change("shop", "cart-1", |pod| {
            pod["metadata"]["annotations"]["note"] = json!("x".repeat(bytes));
        });
    };
    // Larger than what the API server itself would store.
    note(2 * MIB);
    show(&rig, &token).await.unwrap();
    note(4 * MIB);
    let too_large = (Code::Unavailable, "ATTESTOR_AWAY", "more than 4194304 bytes");
    assert_refused(&rig, show(&rig, &token).await, too_large).await;
    note(10);
    show(&rig, &token).await.unwrap();
}

#[tokio::test]
async fn the_pods_of_a_node_are_found_on_every_page() {
    let cluster = Cluster::start().await;
    cluster.pod("weft-system", "agent-1", "weft-agent", "n1", None);
    for n in 0..249 {
        let app = format!("app-{n:03}");
        cluster.pod("shop", &app, "runner", "n1", Some(&app));
    }
    cluster.pod("shop", "zz-last", "runner", "n1", Some("last"));
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let (node, _drain) = join_as_node(&cluster, &rig, "agent-1", "n1").await;
    registered(
        &rig,
        vec![workload("n1", "shop", "last"), workload("n1", "shop", "none")],
    );
    let ask = async |id: &str| sign(&rig, &node.svid, id, SvidUse::Workload).await;
    let lists = || {
        let asked = &cluster.state.lock().asked;
        asked
            .iter()
            .filter(|a| a.ends_with("/namespaces/shop/pods"))
            .count()
    };
    ask("n1/shop/last/1").await.unwrap();
    assert_eq!(lists(), 3, "pages of a hundred");
    let status = ask("n1/shop/none/1").await.unwrap_err();
    assert!(status.message().contains("no pod of shop/none"), "{status}");
}
