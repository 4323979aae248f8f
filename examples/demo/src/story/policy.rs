//! A policy, as written for Cilium, refuses one caller and lets another in.

use super::json;
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{API, App, Stage},
};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: cart-callers
  namespace: default
spec:
  endpointSelector:
    matchLabels:
      dapr.io/app-id: cart
  ingress:
    - fromEndpoints:
        - matchLabels:
            dapr.io/app-id: orders
        - matchLabels:
            dapr.io/app-id: billing
      toPorts:
        - ports:
            - port: \"50002\"
              protocol: TCP
";

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("A CiliumNetworkPolicy refuses one caller and lets another in");
    stage.start_pod("n1", "stranger", App::Rust).await?;
    let call = |from: &'static str| {
        let stage = &*stage;
        async move {
            stage
                .get(
                    stage.pod(from)?.net.namespace(),
                    API,
                    "/v1.0/invoke/cart/method/echo?id=p",
                    &[],
                )
                .await
        }
    };
    let before = call("stranger").await;
    report.check_result("before: stranger calls cart", before, |(status, _)| {
        (*status == 200, status.to_string())
    });

    stage.apply("cart-callers.yaml", POLICY)?;
    let refused = wait_for("the refusal", Duration::from_secs(15), || async {
        let (status, body) = call("stranger").await?;
        ensure!(status == 403, "still {status}: {body}");
        Ok((status, body))
    })
    .await;
    report.check_result(
        "after: stranger is refused, same node",
        refused,
        |(status, body)| (*status == 403, format!("{status} {}", json(body)["errorCode"])),
    );
    let remote = call("reports").await;
    report.check_result(
        "reports is refused too, from the other node",
        remote,
        |(status, _)| (*status == 403, status.to_string()),
    );
    for (from, place) in [("orders", "same node"), ("billing", "the other node")] {
        let allowed = call(from).await;
        report.check_result(
            &format!("its twin: {from} is let in, {place}"),
            allowed,
            |(status, body)| (*status == 200 && json(body)["caller"] == from, status.to_string()),
        );
    }

    for (from, verdict, what) in [
        ("stranger", "DROPPED", "the refusal is a flow that says why"),
        (
            "orders",
            "FORWARDED",
            "its twin: the flow of the call that was let in names the rule",
        ),
    ] {
        let mut observe = stage.weft(&stage.node("n1")?.run_dir);
        observe.args(["observe", "--all", "--from-pod", from, "--to-pod", "cart"]);
        observe.args(["--verdict", verdict, "-o", "json"]);
        let flows = output(observe).await;
        report.check_result(what, flows, |flows| {
            // No rule speaks for a caller that none lets in.
            let says = |flow: &Value| match from {
                "stranger" => flow["drop_reason_desc"] == "POLICY_DENIED" && flow["Type"] == "L7",
                _ => flow["weft"]["rule"]
                    .as_str()
                    .is_some_and(|r| r.contains("cart-callers")),
            };
            let flow = flows
                .lines()
                .rev()
                .map(|line| json(line)["flow"].clone())
                .find(says);
            let seen = flow.as_ref().map_or_else(
                || flows.chars().take(200).collect(),
                |f| {
                    let why = if from == "stranger" {
                        &f["drop_reason_desc"]
                    } else {
                        &f["weft"]["rule"]
                    };
                    format!("{} {why}", f["verdict"])
                },
            );
            (flow.is_some(), seen)
        });
    }

    // A bad file beside the good one changes nothing.
    stage.apply("broken.yaml", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: broken}\nspec:\n  endpointSelector: {}\n  ingres: []\n")?;
    let said = wait_for("the complaint", Duration::from_secs(15), || async {
        let tail = stage.log_tail("policy");
        ensure!(tail.contains("broken.yaml"), "nothing said yet");
        Ok(tail)
    })
    .await;
    report.check_result(
        "a broken manifest beside it is named with file, line and field",
        said,
        |tail| {
            let line = tail
                .lines()
                .find(|l| l.contains("broken.yaml"))
                .unwrap_or_default();
            (
                line.contains("broken.yaml:6") && line.contains("ingres"),
                line.chars().take(220).collect(),
            )
        },
    );
    let still = call("stranger").await;
    report.check_result("and the good one holds", still, |(status, _)| {
        (*status == 403, status.to_string())
    });
    std::fs::remove_file(stage.resources().join("broken.yaml"))?;
    Ok(())
}
