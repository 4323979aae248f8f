//! The policies as published: the gateway alone may call the runtime of ingress, ingress alone may invoke
//! whoami; and one of ours, which closes whoami's pods to all but whoami.

use super::{Cast, POLICIES, POLICY_PODS, SOON, anywhere, until};
use crate::{
    command::wait_for,
    report::Report,
    stage::{API, Reply, Stage},
};
use anyhow::{Result, bail};
use std::net::SocketAddr;

pub async fn play(stage: &Stage, cast: &Cast, runtime: SocketAddr, report: &mut Report) -> Result<()> {
    report.chapter(
        "Published CiliumNetworkPolicies: gateway to ingress:3500, ingress to whoami:50002, nobody else",
    );
    let cart = stage.seat("cart")?;
    let visitor = &cast.visitors[0];
    let runtime = format!("http://{runtime}/v1.0/invoke/whoami.default/method/");
    let invoke = format!("http://{API}/v1.0/invoke/whoami/method/");
    let service = format!("http://{}/", cast.service);
    let ways = [
        (
            "a visitor calls ingress-dapr:3500",
            ("visitor-0", visitor),
            &runtime,
            "ingress-from-gateway",
        ),
        (
            "app cart invokes whoami",
            ("cart", &cart),
            &invoke,
            "whoami-from-ingress",
        ),
        (
            "a visitor calls Service whoami",
            ("visitor-0", visitor),
            &service,
            "whoami-pods",
        ),
    ];
    for (what, (_, from), url, _) in ways {
        let before = until(stage, from, url, &["-m", "2"], |r| r.status == 200).await;
        report.check_result(&format!("before: {what}"), before, |reply| (true, reply.who()));
    }
    stage.apply("dapr-policies.yaml", POLICIES)?;
    stage.apply("whoami-pods.yaml", POLICY_PODS)?;
    for (what, (pod, from), url, policy) in ways {
        let refused = wait_for("the refusal", SOON, || async {
            match stage.curl(from, url, &["-m", "2"]).await {
                Ok(Reply { status: 200, .. }) => bail!("still 200"),
                Ok(reply) => Ok(reply.status.to_string()),
                Err(error) => Ok(format!("{error:#}")),
            }
        })
        .await;
        report.check_result(&format!("after: {what}, and gets nothing"), refused, |how| {
            (true, how.clone())
        });
        let filters = ["--verdict", "DROPPED", "--from-pod", pod];
        let told = anywhere(stage, &filters, |flow| {
            let by = flow["ingress_denied_by"].as_array().into_iter().flatten();
            by.clone().any(|by| by["name"] == policy)
        })
        .await;
        report.check_result(&format!("its flow names {policy}"), told, |flow| {
            let name = |side: &str| flow[side]["pod_name"].as_str().unwrap_or_default().to_owned();
            (
                true,
                format!(
                    "{} -> {}, {} {}",
                    name("source"),
                    name("destination"),
                    flow["drop_reason_desc"],
                    flow["weft"]["rule"]
                ),
            )
        });
    }
    let url = format!("http://{}/", cast.gateways[0].ip());
    let reply = until(stage, &cast.outside, &url, &[], |r| r.status == 200).await;
    report.check_result(
        "its twin: from outside, by gateway, ingress and whoami, all is as before",
        reply,
        |reply| (reply.line("Dapr-Caller-App-Id") == Some("ingress"), reply.who()),
    );
    Ok(())
}
