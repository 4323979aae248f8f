//! What flows tell of all this, in each of the forms in which Hubble's clients read them.

use super::{Cast, NODES, SOON, flows, observe, until};
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::Stage,
    story::unique,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const NEAR: &str = "whoami-v1-0";
const FAR: &str = "whoami-v1-1";

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    report.chapter("`weft observe`: each hop and each refusal, as Hubble's clients read them");
    hops(stage, cast, report).await?;
    forms(stage, cast, report).await;
    refusals(stage, cast, report).await?;
    elsewhere(stage, report).await
}

/// A line of `weft observe` of either node that has all of these texts.
async fn line(stage: &Stage, arguments: &[&str], texts: &[&str]) -> Result<String> {
    wait_for("the line", SOON, || async {
        let mut text = observe(stage, NODES[0], arguments).await?;
        text += "\n";
        text += &observe(stage, NODES[1], arguments).await?;
        let found = text.lines().find(|line| texts.iter().all(|t| line.contains(t)));
        found
            .map(str::to_owned)
            .with_context(|| format!("no line with {texts:?} in:\n{text}"))
    })
    .await
}

/// What curl through the gateway becomes: three requests, each with its answer.
async fn hops(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
    let path = format!("/{}", unique("hop"));
    let gateway = cast.gateways[0].ip();
    let url = format!("http://{gateway}{path}");
    let reply = stage.curl(&cast.outside, &url, &[]).await?;
    let pod = reply.line("Hostname").unwrap_or("none");
    let only = format!("{path}$");
    let arguments = ["--all", "--http-path", &only];
    let version = format!("default/{pod}:80 ");
    for (what, from, to) in [
        (
            "gateway to ingress",
            "(ingress)",
            "default/ingress-shared-n1:3500 ",
        ),
        ("ingress to whoami", "default/ingress-shared-n1", ":50002 "),
        (
            "whoami to the version that its route picked",
            "default/whoami-shared-",
            &version,
        ),
    ] {
        for (kind, arrow) in [("http-request", "->"), ("http-response", "<-")] {
            let texts = [from, arrow, to, kind, "FORWARDED", &path];
            let line = line(stage, &arguments, &texts).await;
            report.check_result(&format!("{what}: {kind}"), line, |line| {
                // An answer says how long it took.
                let timed = line.contains("(HTTP/1.1 200 ") && line.contains("ms (GET ");
                (timed == (kind == "http-response"), line.clone())
            });
        }
    }
    let far = format!("http://{}/", cast.whoami(stage, FAR)?);
    until(stage, &cast.visitors[0], &far, &[], |r| r.status == 200).await?;
    let to = format!("default/{FAR}:80 ");
    let arguments = ["--all", "--from-pod", "visitor-0", "--to-pod", FAR];
    let texts = ["->", &to, "to-endpoint", "FORWARDED", "TCP Flags: SYN"];
    let line = line(stage, &arguments, &texts).await;
    report.check_result(
        "a visitor's connection to the other node: to-endpoint there",
        line,
        |line| (true, line.clone()),
    );
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

/// By the kernel, of two pods of one node.
async fn refusals(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<()> {
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
        "whoami-pods (CiliumNetworkPolicy)",
    ];
    let line = line(stage, &arguments, &texts).await;
    report.check_result(
        "the kernel's verdict is told with the policies' names",
        line,
        |line| (true, line.clone()),
    );
    Ok(())
}

/// Of another node, by an operator's certificate.
async fn elsewhere(stage: &Stage, report: &mut Report) -> Result<()> {
    let folder = stage.dir().join("operator");
    std::fs::create_dir_all(&folder)?;
    let mut cert = stage.weft(&stage.identity_run_dir());
    cert.args(["admin", "cert", "--ttl", "60", "--out"]).arg(&folder);
    output(cert).await?;
    let file = |name: &str| folder.join(name).display().to_string();
    let (ca, client, key) = (file("ca.pem"), file("client.pem"), file("client-key.pem"));
    let server = format!("tls://{}:4244", stage.node("n2")?.net.v4());
    let own = ["--tls-client-cert-file", &client, "--tls-client-key-file", &key];
    for (what, certificate, admitted) in [
        (
            "with an operator's certificate n2 tells its flows on port 4244",
            &own[..],
            true,
        ),
        ("its twin: without one it does not", &[], false),
    ] {
        let mut observe = stage.weft(&stage.node("n1")?.run_dir);
        observe.args(["observe", "--last", "3", "--print-node-name", "--server", &server]);
        observe.args(["--tls-ca-cert-files", &ca]).args(certificate);
        // Whoever asks is anywhere that has a way there.
        let namespace = stage.node("n1")?.net.namespace().clone();
        let asked = tokio::task::spawn_blocking(move || namespace.run(|| observe.output())).await???;
        let said = String::from_utf8_lossy(if admitted { &asked.stdout } else { &asked.stderr }).into_owned();
        let told = said.lines().filter(|l| l.contains(" [n2]: ")).count();
        report.check(
            what,
            asked.status.success() == admitted && told == if admitted { 3 } else { 0 },
            said.lines().last().unwrap_or("nothing"),
        );
    }
    Ok(())
}
