//! Two versions of an app, and a gateway in front: nothing that clients claim of themselves comes through.

use super::{Cast, NODES, ROUTE_ITSELF, SOON, flow, until};
use crate::{
    command::{output, wait_for},
    load::Plan,
    report::Report,
    stage::{Reply, Stage},
    story::{json, unique},
};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<Cast> {
    report.chapter("An app in two versions behind a gateway, by the manifests of examples/whoami");
    let cast = Cast::new(stage).await?;
    for node in NODES {
        let listed = wait_for("its pods", SOON, || listed(stage, node)).await;
        report.check_result(
            &format!("{node} runs one pod of each version of whoami, with labels and no annotations"),
            listed,
            |names| (names.len() == 2, names.join(", ")),
        );
    }
    conditions(stage, report).await;
    entered(stage, &cast, report).await;
    all_answer(stage, &cast, report).await;
    forged(stage, &cast, report, None).await;
    itself(stage, &cast, report).await?;
    Ok(cast)
}

/// The pods of whoami that an agent serves.
async fn listed(stage: &Stage, node: &str) -> Result<Vec<String>> {
    let mut status = stage.weft(&stage.node(node)?.run_dir);
    status.args(["status", "-o", "json"]);
    let status = json(&output(status).await?);
    let names = status["workloads"].as_array().into_iter().flatten();
    let names: Vec<String> = names
        .filter_map(|w| Some(w["name"].as_str()?.to_owned()))
        .filter(|name| name.starts_with("whoami-"))
        .collect();
    ensure!(names.len() == 2, "{}", status["workloads"]);
    Ok(names)
}

/// As the Gateway API words them.
async fn conditions(stage: &Stage, report: &mut Report) {
    let holds = |conditions: &Value, kind: &str| {
        let all = conditions.as_array().into_iter().flatten();
        all.clone().any(|c| c["type"] == kind && c["status"] == "True")
    };
    let status = wait_for("the status", SOON, || async {
        let gateway = stage.object("gateways", "default-gateway").await?;
        let route = stage.object("httproutes", "whoami").await?;
        let (gateway, route) = (
            &gateway["status"]["conditions"],
            &route["status"]["parents"][0]["conditions"],
        );
        let good = holds(gateway, "Accepted")
            && holds(gateway, "Programmed")
            && holds(route, "Accepted")
            && holds(route, "ResolvedRefs");
        ensure!(good, "{gateway} {route}");
        Ok(())
    })
    .await;
    report.check_result(
        "`weft get`: the Gateway is Accepted and Programmed, its HTTPRoute Accepted with ResolvedRefs",
        status,
        |()| (true, "all True".to_owned()),
    );
}

async fn entered(stage: &Stage, cast: &Cast, report: &mut Report) {
    for (node, gateway) in NODES.iter().zip(&cast.gateways) {
        let url = format!("http://{}/", gateway.ip());
        let reply = until(stage, &cast.outside, &url, &[], |r| r.status == 200).await;
        let client = cast.outside_address.to_string();
        report.check_result(
            &format!("curl from outside, by the gateway on {node}: 200, with what is true of the client"),
            reply,
            |reply| {
                let said = |name| reply.line(name).unwrap_or("nothing");
                let good = said("X-Forwarded-For") == client
                    && said("X-Forwarded-Proto") == "http"
                    && said("X-Forwarded-Host") == gateway.ip().to_string()
                    && said("X-Request-Id").len() == 36
                    && reply.request() == Some("GET / HTTP/1.1");
                (good, seen(reply))
            },
        );
    }
}

fn seen(reply: &Reply) -> String {
    format!(
        "{}; for {}, id {}",
        reply.who(),
        reply.line("X-Forwarded-For").unwrap_or("nobody"),
        reply.line("X-Request-Id").unwrap_or("none")
    )
}

async fn all_answer(stage: &Stage, cast: &Cast, report: &mut Report) {
    let plan = Plan {
        address: cast.gateways[0],
        path: "/?id=".into(),
        expect: Vec::new(),
        connections: 4,
        rate: 200,
        reconnect: false,
        answerers: cast.pods.iter().map(|pod| format!("Hostname: {pod}\n")).collect(),
    };
    let load = async {
        let client = stage.client(&cast.outside, &plan).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.stop().await
    };
    report.check_result("all four pods answer", load.await, |outcome| {
        let counts: Vec<String> = cast
            .pods
            .iter()
            .enumerate()
            .map(|(who, pod)| {
                let count = outcome.answers.iter().filter(|(_, by)| *by == who).count();
                format!("{pod} {count}")
            })
            .collect();
        let all = cast
            .pods
            .iter()
            .enumerate()
            .all(|(who, _)| outcome.answers.iter().any(|(_, by)| *by == who));
        (all && outcome.good == outcome.sent, counts.join(", "))
    });
}

const FORGED: [(&str, &str); 7] = [
    ("dapr-caller-app-id", "admin"),
    ("dapr-caller-namespace", "kube-system"),
    ("dapr-callee-app-id", "vault"),
    ("x-forwarded-for", "10.9.9.9"),
    ("x-forwarded-host", "bank.example"),
    ("x-forwarded-proto", "https"),
    ("forwarded", "for=10.9.9.9"),
];

/// What a client claims of itself; `caller`: the app that calls whoami in truth.
pub async fn forged(stage: &Stage, cast: &Cast, report: &mut Report, caller: Option<&str>) {
    let path = format!("/{}", unique("forged"));
    let url = format!("http://{}{path}", cast.gateways[0].ip());
    let headers = FORGED.map(|(name, value)| format!("{name}: {value}"));
    let mut more: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
    more.extend(["-H", "x-own: kept"]);
    let reply = stage.curl(&cast.outside, &url, &more).await;
    let client = cast.outside_address.to_string();
    report.check_result(
        "forged dapr-caller-app-id and forwarding headers from outside do not arrive; what is true does",
        reply,
        |reply| {
            let forged = FORGED.iter().filter(|(_, value)| {
                let mut said = reply.text.lines().filter_map(|line| line.split_once(": "));
                said.any(|(_, said)| said.contains(value))
            });
            let arrived: Vec<&str> = forged.map(|(name, _)| *name).collect();
            let first = reply.line("X-Forwarded-For").and_then(|f| f.split(", ").next());
            let good = reply.status == 200
                && arrived.is_empty()
                && first == Some(&client)
                && reply.line("X-Forwarded-Proto") == Some("http")
                && reply.line("Dapr-Caller-App-Id") == caller
                // The twin: a header that claims nothing is passed on.
                && reply.line("X-Own") == Some("kept");
            (good, format!("{}; forged that arrived: {arrived:?}", seen(reply)))
        },
    );
    let only = format!("{path}$");
    let told = flow(stage, "n1", &["--http-path", &only], |flow| {
        flow["weft"]["forged"].is_array()
    })
    .await;
    report.check_result(
        "and the flow at the gateway says which headers were forged",
        told,
        |flow| {
            let named = flow["weft"]["forged"].as_array().into_iter().flatten();
            let named: Vec<&str> = named.filter_map(Value::as_str).collect();
            let all = FORGED.iter().all(|(name, _)| named.contains(name));
            (all && named.len() == FORGED.len(), named.join(", "))
        },
    );
}

/// A route whose parent is its backend.
async fn itself(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    stage.apply("whoami-itself.yaml", ROUTE_ITSELF)?;
    let url = format!("http://{}/", cast.service);
    let reply = until(stage, &cast.visitors[0], &url, &[], |r| {
        r.line("X-Passed").is_some()
    })
    .await;
    report.check_result(
        "a route of Service whoami to Service whoami is passed once: no loop",
        reply,
        |reply| {
            let passed: Vec<&str> = reply.values("X-Passed").collect();
            (
                reply.status == 200 && passed == ["once"],
                format!("{}; X-Passed {passed:?}", reply.who()),
            )
        },
    );
    std::fs::remove_file(stage.resources().join("whoami-itself.yaml"))?;
    let reply = until(stage, &cast.visitors[0], &url, &[], |r| {
        r.line("X-Passed").is_none()
    })
    .await;
    report.check_result("its twin: without the route it is not passed", reply, |reply| {
        (reply.status == 200, reply.who())
    });
    Ok(())
}
