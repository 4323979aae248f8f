//! Pods without app-ids, as the walkthrough has them.

use anyhow::Result;
use weft_demo::stage::Stage;
use weft_proto::weft::dataplane::v1::WorkloadSpec;
use weft_testnet::Namespace;

/// Address of Service whoami in `walkthrough/mesh.yaml`.
pub const WHOAMI: &str = "10.96.80.1";
/// Of the one with rules at L7.
pub const RULED: &str = "10.96.80.3";

/// Makes a pod and registers it; nothing runs in it yet.
pub async fn place(stage: &mut Stage, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let spec = WorkloadSpec {
        namespace: "default".into(),
        name: name.into(),
        labels: labels.iter().map(owned).collect(),
        ..WorkloadSpec::default()
    };
    stage.place(node, spec).await?;
    stage.pod_namespace(name)
}
