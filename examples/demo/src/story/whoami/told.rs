//! What flows tell of all this, in each of the forms in which Hubble's clients read them.

use super::{Cast, SOON, flow, flows, observe, until};
use crate::{command::wait_for, report::Report, stage::Stage, story::unique};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const NEAR: &str = "whoami-v1-0";
const FAR: &str = "whoami-v1-1";

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    report.chapter("`weft observe`: each hop and each refusal, as Hubble's clients read them");
    hops(stage, cast, report).await?;
    forms(stage, cast, report).await;
    refusals(stage, cast, report).await
}

/// A line of `weft observe` that has all of these texts.
async fn line(stage: &Stage, node: &str, arguments: &[&str], texts: &[&str]) -> Result<String> {
    wait_for("the line", SOON, || async {
        let text = observe(stage, node, arguments).await?;
        let found = text.lines().find(|line| texts.iter().all(|t| line.contains(t)));
        let found = found.map(str::to_owned);
        found.with_context(|| format!("no line with {texts:?} of {} lines", text.lines().count()))
    })
    .await
}

async fn hops(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    let path = format!("/{}", unique("hop"));
    let reply = stage
        .curl(
            &cast.visitors[0],
            &format!("http://{}{path}", cast.service.ip()),
            &[],
        )
        .await?;
    let pod = reply.line("Hostname").unwrap_or("none").to_owned();
    let only = format!("^{path}$");
    let arguments = ["--all", "--http-path", &only];
    let to = format!("default/{pod}:80 ");
    let get = format!("GET http://{}{path}", cast.service.ip());
    for (kind, arrow, says) in [
        ("http-request", "->", format!("(HTTP/1.1 {get})")),
        ("http-response", "<-", format!("ms ({get}))")),
    ] {
        let texts = ["default/visitor-0:", arrow, &to, kind, "FORWARDED", &says];
        let line = line(stage, "n1", &arguments, &texts).await;
        report.check_result(
            &format!("{kind} of a visitor to the version that the route picked"),
            line,
            |line| (true, line.clone()),
        );
    }
    // Past the Service: a connection, which the other node tells of as well.
    let far = format!("http://{}/", cast.whoami(stage, FAR)?);
    until(stage, &cast.visitors[0], &far, &[], |r| r.status == 200).await?;
    let to = format!("default/{FAR}:80 ");
    let arguments = ["--all", "--from-pod", "visitor-0", "--to-pod", FAR];
    let texts = ["->", &to, "to-endpoint", "FORWARDED", "TCP Flags: SYN"];
    let line = line(stage, "n2", &arguments, &texts).await;
    report.check_result("to-endpoint where its connection arrives", line, |line| {
        (true, line.clone())
    });
    Ok(())
}

/// All forms tell the same flows.
async fn forms(stage: &Stage, cast: &Cast, report: &mut Report) {
    let told = forms_of(stage, cast).await;
    report.check_result(
        "compact, dict, table, json and jsonpb print the same flows by the same filters",
        told,
        |told| (true, told.clone()),
    );
}

async fn forms_of(stage: &Stage, cast: &Cast) -> Result<String> {
    let path = format!("/{}", unique("form"));
    for _ in 0..2 {
        stage
            .curl(
                &cast.visitors[0],
                &format!("http://{}{path}", cast.service.ip()),
                &[],
            )
            .await?;
    }
    let only = format!("^{path}$");
    let filters = [
        "--pod",
        "default/visitor-0",
        "--http-path",
        &only,
        "--http-method",
        "GET",
    ];
    let known = wait_for("its flows", SOON, || async {
        let known = flows(stage, "n1", &filters).await?;
        // A request and its answer, twice, and once more for each side that was judged here.
        ensure!(known.len() >= 4, "{} flows", known.len());
        Ok(known)
    })
    .await?;
    let summaries: Vec<&str> = known.iter().filter_map(|f| f["Summary"].as_str()).collect();
    ensure!(summaries.len() == known.len(), "a flow has no summary: {known:?}");
    let print = async |form| observe(stage, "n1", &[&["--all", "-o", form], &filters[..]].concat()).await;
    let each = |lines: &mut dyn Iterator<Item = &str>| {
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.len() == summaries.len()
            && lines
                .iter()
                .zip(&summaries)
                .all(|(line, summary)| line.contains(summary))
    };
    let compact = print("compact").await?;
    ensure!(each(&mut compact.lines()), "compact: {compact}");
    let dict = print("dict").await?;
    ensure!(
        each(&mut dict.lines().filter(|l| l.trim_start().starts_with("SUMMARY: "))),
        "dict: {dict}"
    );
    let table = print("table").await?;
    let header = ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"];
    let first: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        first == header && each(&mut table.lines().skip(1)),
        "table: {table}"
    );
    let ids = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(crate::story::json);
        lines.map(|line| line["flow"]["uuid"].clone()).collect()
    };
    let (json, jsonpb) = (print("json").await?, print("jsonpb").await?);
    let wanted: Vec<Value> = known.iter().map(|f| f["uuid"].clone()).collect();
    ensure!(ids(&json) == wanted && ids(&jsonpb) == wanted, "json: {json}");
    Ok(format!("{} flows in each of five forms", known.len()))
}

async fn refusals(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    // The gateway is in no rule of whoami's pods.
    let path = format!("/{}", unique("refused"));
    let url = format!("http://{}{path}", cast.gateways[0].ip());
    let reply = stage.curl(&cast.outside, &url, &[]).await;
    report.check_result(
        "what whoami's policies do not name is refused at the gateway",
        reply,
        |reply| (reply.status == 403, reply.status.to_string()),
    );
    let only = format!("^{path}$");
    let filters = ["--http-path", &only, "--verdict", "DROPPED"];
    let told = flow(stage, "n1", &filters, |_| true).await;
    report.check_result("its flow says who asked, and why not", told, |f| {
        (
            f["source"]["labels"][0] == "reserved:ingress" && f["drop_reason_desc"] == "POLICY_DENIED",
            format!(
                "{} {} {}",
                f["source"]["labels"], f["drop_reason_desc"], f["weft"]["rule"]
            ),
        )
    });
    // And by the kernel, on one node.
    let teller = stage.seat("teller")?;
    let near = format!("http://{}/", cast.whoami(stage, NEAR)?);
    let reply = stage.curl(&teller, &near, &["-m", "1"]).await;
    report.check(
        "teller, on the node of a pod of whoami, gets no answer of it",
        reply.is_err(),
        reply.map_or_else(|e| format!("{e:#}"), |r| r.who()),
    );
    let arguments = [
        "--all",
        "--from-pod",
        "teller",
        "--to-pod",
        NEAR,
        "--print-policy-names",
    ];
    let texts = [
        "default/teller:",
        "policy-verdict:none INGRESS",
        "DENIED BY",
        "whoami-visitors (CiliumNetworkPolicy)",
    ];
    let line = line(stage, "n1", &arguments, &texts).await;
    report.check_result(
        "the kernel's verdict is told with the policies' names",
        line,
        |line| (true, line.clone()),
    );
    Ok(())
}
