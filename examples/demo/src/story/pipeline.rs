//! The event pipeline: a timer's event -> state is saved -> another app scores it -> a file is written
//! -> it is published -> a viewer shows it. Three apps in Python and JavaScript with Dapr's own SDKs, on
//! two nodes; state and messages on Redis, in a pod of the other node, and on SQLite.

use super::json;
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{API, APP_PORT, Interpreter, Stage, StageOptions},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

/// Where an app listens inside its pod.
const OWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), APP_PORT);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where Redis listens.
const REDIS_PORT: u16 = 6379;
/// Readings that go all the way before the story goes on.
const FIRST: std::ops::RangeInclusive<u64> = 1..=8;

const COMPONENTS: &str = include_str!("../../../pipeline/components.yaml");
const POLICY: &str = include_str!("../../../pipeline/policy.yaml");
const INGEST: &str = include_str!("../../../pipeline/ingest.py");
const SCORER: &str = include_str!("../../../pipeline/scorer.js");
const VIEWER: &str = include_str!("../../../pipeline/viewer.js");

/// Plays it and returns the stage, still running.
pub async fn play(options: &StageOptions, modules: &Path, report: &mut Report) -> Result<Stage> {
    report.note("everything below runs in network namespaces of its own and is removed at the end");
    let mut stage = Stage::new(options)?;
    ensure!(
        stage.has_python(),
        "no Python with the dapr package; `cargo xtask setup` makes one"
    );
    ensure!(
        modules.join("@dapr/dapr").is_dir(),
        "no @dapr/dapr in {}; `cargo xtask setup` installs it",
        modules.display()
    );
    apps(&mut stage, modules, report).await?;
    let seen = flow(&stage, report).await?;
    kept(&stage, &seen, report).await?;
    borders(&stage, report).await?;
    manifests(&stage, report).await?;
    told(&stage, report).await?;
    Ok(stage)
}

async fn apps(stage: &mut Stage, modules: &Path, report: &mut Report) -> Result<()> {
    report.chapter("Two nodes, three apps with Dapr's own SDKs, components of five manifests");
    for name in ["identity", "policy", "placement"] {
        stage.start_service(name).await?;
    }
    stage.start_node("n1", &["default/*"]).await?;
    stage
        .start_node("n2", &["default/scorer", "default/default"])
        .await?;
    stage.apply("pipeline-components.yaml", COMPONENTS)?;
    stage.apply("pipeline-policy.yaml", POLICY)?;
    let mut redis = Command::new("redis-server");
    redis.env_clear().args([
        "--port",
        &REDIS_PORT.to_string(),
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        "/",
    ]);
    let labels = [("app", "redis")];
    stage
        .start_server("n2", "redis", &labels, redis, REDIS_PORT)
        .await?;
    let node = Interpreter::Node(stage.show_modules(modules)?);
    stage.start_script("n2", "scorer", &node, SCORER).await?;
    stage.start_script("n1", "viewer", &node, VIEWER).await?;
    stage
        .start_script("n1", "ingest", &Interpreter::Python, INGEST)
        .await?;
    for (app, wanted) in [
        ("ingest", &["archive", "bus", "readings", "tick"][..]),
        ("viewer", &["bus", "views"]),
        ("scorer", &[]),
    ] {
        let told = metadata(stage, app).await?;
        let components = told["components"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = components.iter().filter_map(|c| c["name"].as_str()).collect();
        report.check(
            &format!("{app} has the components that its scopes give it, and no others"),
            names == wanted,
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        );
    }
    Ok(())
}

async fn metadata(stage: &Stage, app: &str) -> Result<Value> {
    let namespace = stage.pod_namespace(app)?;
    let (_, body) = stage.get(&namespace, API, "/v1.0/metadata", &[]).await?;
    Ok(json(&body))
}

async fn seen(stage: &Stage) -> Result<(Vec<Value>, Value)> {
    let viewer = stage.pod_namespace("viewer")?;
    let (_, body) = stage.get(&viewer, OWN, "/seen", &[]).await?;
    let told = json(&body);
    let seen = told["seen"].as_array().cloned().unwrap_or_default();
    Ok((seen, told["again"].clone()))
}

/// The numbers of readings, in order.
fn numbers(seen: &[Value]) -> Vec<u64> {
    let ids = seen.iter().filter_map(|s| s["id"].as_str());
    let mut numbers: Vec<u64> = ids.filter_map(|id| id.strip_prefix("r-")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

async fn flow(stage: &Stage, report: &mut Report) -> Result<Vec<Value>> {
    report.chapter("bindings.cron -> ingest (Python) -> scorer (JavaScript, other node) -> pubsub -> viewer (JavaScript)");
    // The one that is asked for again comes later than those after it.
    let came = wait_for("the first eight readings at the viewer", PATIENCE, || async {
        let (seen, again) = seen(stage).await?;
        let there = numbers(&seen);
        ensure!(
            FIRST.clone().all(|number| there.contains(&number)),
            "{there:?} so far; {}",
            stage.log_tail("ingest")
        );
        Ok((seen, again))
    });
    let (seen, again) = came.await?;
    let ids: Vec<&str> = seen.iter().filter_map(|s| s["id"].as_str()).collect();
    let all = numbers(&seen);
    report.check(
        "the timer's events went all the way to the viewer, and of the first none is missing",
        FIRST.clone().all(|number| all.contains(&number)),
        ids.join(", "),
    );
    report.check(
        "each of them once",
        all.windows(2).all(|two| two[0] < two[1]) && all.len() == seen.len(),
        format!("{all:?}"),
    );
    let scored = seen
        .iter()
        .all(|s| s["score"].as_u64() == s["value"].as_u64().map(|v| v * 2));
    report.check("each scored by the app on the other node", scored, &seen[0]);
    let callers = seen.iter().all(|s| s["caller"] == "ingest");
    report.check("which saw who really called", callers, &seen[0]["caller"]);
    report.check(
        "the one that the viewer answered with RETRY came again",
        again == 1 && ids.contains(&"r-3"),
        format!("asked again: {again}; {}", ids.join(", ")),
    );
    Ok(seen)
}

async fn kept(stage: &Stage, seen: &[Value], report: &mut Report) -> Result<()> {
    report.chapter("What was kept on the way");
    let first = &seen[0];
    let id = first["id"].as_str().unwrap_or_default();
    let ingest = stage.pod_namespace("ingest")?;
    let saved = stage
        .get(&ingest, API, &format!("/v1.0/state/readings/{id}"), &[])
        .await;
    report.check_result(
        "the reading is in ingest's state store",
        saved,
        |(status, body)| {
            let value = json(body);
            let fine = *status == 200 && value["id"] == id && value["value"] == first["value"];
            (fine, format!("{status} {body}"))
        },
    );
    let redis = stage.pod_namespace("redis")?;
    let mut cli = Command::new("nsenter");
    cli.arg(format!("--net={}", redis.path().display()))
        .args(["redis-cli", "-p", &REDIS_PORT.to_string(), "HGET"])
        .args([&format!("ingest||{id}"), "data"]);
    report.check_result("which is Redis, in Dapr's form", output(cli).await, |text| {
        (json(text)["id"] == id, format!("ingest||{id}: {}", text.trim()))
    });
    let viewer = stage.pod_namespace("viewer")?;
    let view = stage
        .get(&viewer, API, &format!("/v1.0/state/views/{id}"), &[])
        .await;
    report.check_result(
        "its score is in the viewer's, a file of SQLite, saved by the JavaScript SDK",
        view,
        |(status, body)| {
            (
                *status == 200 && json(body) == first["score"],
                format!("{status} {body}"),
            )
        },
    );
    let folder = stage
        .node("n1")?
        .run_dir
        .with_file_name("apps")
        .join("default/ingest/archive");
    let file = fs::read_to_string(folder.join(format!("{id}.json")));
    let file = file.context("no such file");
    report.check_result("and a file of it beneath ingest's own folder", file, |text| {
        (
            json(text)["score"] == first["score"],
            format!("{}: {text}", folder.display()),
        )
    });
    Ok(())
}

async fn borders(stage: &Stage, report: &mut Report) -> Result<()> {
    report.chapter("What an app may not");
    let viewer = stage.pod_namespace("viewer")?;
    let (status, body) = stage.get(&viewer, API, "/v1.0/state/readings/r-1", &[]).await?;
    report.check(
        "the viewer does not get at ingest's store: it is not in its scopes",
        status == 400 && json(&body)["errorCode"] == "ERR_STATE_STORE_NOT_FOUND",
        format!("{status} {body}"),
    );
    let refused = post(stage, "viewer", "/v1.0/publish/bus/scored", "{}").await?;
    report.check(
        "nor may it publish to the topic: publishingScopes give it none",
        refused.0 == 403 && json(&refused.1)["errorCode"] == "ERR_PUBSUB_FORBIDDEN",
        format!("{} {}", refused.0, refused.1),
    );
    let path = "/v1.0/invoke/scorer/method/score";
    let denied = post(stage, "viewer", path, "{\"value\": 1}").await?;
    let allowed = post(stage, "ingest", path, "{\"value\": 1}").await?;
    report.check(
        "policy keeps it from the scorer, and lets ingest call it",
        denied.0 == 403 && allowed.0 == 200 && json(&allowed.1)["score"] == 2,
        format!("{} and {} {}", denied.0, allowed.0, allowed.1),
    );
    Ok(())
}

/// A POST from a pod, by curl.
async fn post(stage: &Stage, app: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let namespace = stage.pod_namespace(app)?;
    let mut curl = Command::new("nsenter");
    curl.arg(format!("--net={}", namespace.path().display()))
        .args([
            "curl",
            "-s",
            "-m",
            "20",
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ])
        .arg(format!("http://{API}{path}"));
    let text = output(curl).await?;
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    Ok((status.trim().parse()?, body.to_owned()))
}

async fn manifests(stage: &Stage, report: &mut Report) -> Result<()> {
    report.chapter("Manifests take effect while everything runs");
    let pid = |app: &str| {
        stage
            .pods
            .get(app)
            .and_then(|pod| pod.app.as_ref())
            .map(|process| process.id())
    };
    let (before, agent) = (pid("ingest"), stage.agent_pid("n1")?);
    stage.apply(
        "pipeline-components.yaml",
        &COMPONENTS.replace("@every 300ms", "@every 1h"),
    )?;
    let quiet = wait_for("a quiet timer", PATIENCE, || async {
        let first = seen(stage).await?.0.len();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let then = seen(stage).await?.0.len();
        ensure!(first == then, "still {} new", then - first);
        Ok(then)
    });
    report.check_result("with another schedule the events stop", quiet.await, |n| {
        (true, format!("{n} in all"))
    });
    let (count, _) = seen(stage).await?;
    stage.apply("pipeline-components.yaml", COMPONENTS)?;
    let again = wait_for("more readings", PATIENCE, || async {
        let now = seen(stage).await?.0.len();
        ensure!(now > count.len(), "still {now}");
        Ok(now)
    });
    report.check_result("with the first one they come again", again.await, |n| {
        (true, format!("{n} in all"))
    });
    let state = stage
        .get(
            &stage.pod_namespace("ingest")?,
            API,
            "/v1.0/state/readings/r-1",
            &[],
        )
        .await;
    report.check_result(
        "the store that did not change kept its state",
        state,
        |(status, body)| (*status == 200, format!("{status} {body}")),
    );
    report.check(
        "nothing was restarted: neither the app nor the agent",
        pid("ingest") == before && before.is_some() && stage.agent_pid("n1")? == agent,
        format!("agent {agent}"),
    );
    Ok(())
}

async fn told(stage: &Stage, report: &mut Report) -> Result<()> {
    report.chapter("A flow for each step, with identity and outcome");
    let flows = observed(stage, "n1").await?;
    for (kind, from, to) in [
        ("binding", "tick", "ingest"),
        ("state", "ingest", "readings"),
        ("invoke", "ingest", "scorer"),
        ("binding", "ingest", "archive"),
        ("connection", "ingest", "redis"),
        ("publish", "ingest", "bus"),
        ("deliver", "bus", "viewer"),
        ("state", "viewer", "views"),
    ] {
        let is = |flow: &&Value| {
            flow["weft"]["kind"] == kind
                && flow["is_reply"] == false
                && flow["source"]["pod_name"] == from
                && flow["destination"]["pod_name"] == to
                && flow["verdict"] == "FORWARDED"
        };
        let found = flows.iter().find(is);
        report.check(
            &format!("{kind}: {from} -> {to}"),
            found.is_some(),
            found
                .and_then(|f| f["Summary"].as_str().or(f["summary"].as_str()))
                .unwrap_or("no such flow"),
        );
    }
    let denied = |flow: &&Value| {
        flow["source"]["pod_name"] == "scorer"
            && flow["destination"]["pod_name"] == "redis"
            && flow["verdict"] == "DROPPED"
    };
    let there = observed(stage, "n2").await?;
    let found = there.iter().find(denied);
    report.check(
        "and the scorer's component was not let to Redis, by policy",
        found.is_some_and(|flow| flow["drop_reason_desc"] == "POLICY_DENIED"),
        found.map_or("no such flow".to_owned(), |flow| {
            flow["drop_reason_desc"].to_string()
        }),
    );
    Ok(())
}

/// The flows of a node.
async fn observed(stage: &Stage, node: &str) -> Result<Vec<Value>> {
    let mut observe = stage.weft(&stage.node(node)?.run_dir);
    observe.args(["observe", "--all", "-o", "json"]);
    let lines = output(observe).await?;
    Ok(lines.lines().map(|line| json(line)["flow"].clone()).collect())
}
