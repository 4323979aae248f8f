//! From a gateway by the shared runtime of app ingress to that of app whoami, and by the route of its
//! Service to its pod.

use crate::walkthrough::{PATH, Way};
use anyhow::Result;
use std::time::Duration;
use weft_demo::{command::wait_for, stage::Stage};
use weft_testnet::Spawn;

/// The manifests of the walkthrough, as they are published.
const MANIFESTS: [(&str, &str); 5] = [
    (
        "gateway.yaml",
        include_str!("../../../examples/whoami/gateway.yaml"),
    ),
    (
        "route-runtime.yaml",
        include_str!("../../../examples/whoami/route-runtime.yaml"),
    ),
    (
        "shared-ingress.yaml",
        include_str!("../../../examples/whoami/shared-ingress.yaml"),
    ),
    (
        "shared-whoami.yaml",
        include_str!("../../../examples/whoami/shared-whoami.yaml"),
    ),
    (
        "policies.yaml",
        include_str!("../../../examples/whoami/policies.yaml"),
    ),
];
const PATIENCE: Duration = Duration::from_secs(20);

/// The way, once it answers; a client that is no workload asks at the node's address.
pub async fn prepare(stage: &Stage, ours: &[(&'static str, i32)]) -> Result<Way> {
    for (name, text) in MANIFESTS {
        stage.apply(name, text)?;
    }
    let way = Way {
        name: "chain",
        from: stage.control.namespace().clone(),
        spawn: Spawn::nobody(),
        url: format!("http://{}{PATH}", stage.node("n1")?.net.v4()),
        under_test: ours.to_vec(),
    };
    wait_for("the chain", PATIENCE, || way.measure(1, 1)).await?;
    Ok(way)
}
