//! Two small apps, one in Rust, one in Python with Dapr's own SDK, call each other by plain
//! localhost:3500, on one node and across nodes.

use super::{json, unique};
use crate::{
    report::Report,
    stage::{API, APP_PORT, App, Stage},
};
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};

/// Where an app listens inside its pod.
const OWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), APP_PORT);

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("Unmodified apps call each other by http://localhost:3500/v1.0/invoke/<id>/method/…");
    let python = stage.has_python();
    if !python {
        report.left_out(
            "the Python app",
            "no Python with the dapr package; `cargo xtask setup` makes one",
        );
    }
    let second = if python { App::Python } else { App::Rust };
    stage.start_pod("n1", "cart", App::Rust).await?;
    stage.start_pod("n1", "orders", second).await?;
    stage.start_pod("n2", "billing", App::Rust).await?;
    stage.start_pod("n2", "reports", second).await?;
    let calls = [
        ("cart", "orders", "Rust to Python, same node"),
        ("orders", "cart", "Python to Rust, same node"),
        ("cart", "billing", "Rust to Rust, across nodes"),
        ("orders", "billing", "Python to Rust, across nodes"),
        ("cart", "reports", "Rust to Python, across nodes"),
        ("reports", "orders", "Python to Python, across nodes"),
    ];
    for (from, to, what) in calls {
        let id = unique("call");
        let path = format!("/call?app={to}&id={id}");
        let reply = stage.get(stage.pod(from)?.net.namespace(), OWN, &path, &[]).await;
        report.check_result(&format!("{from} calls {to}: {what}"), reply, |(status, body)| {
            let reply = &json(body)["reply"];
            let fine =
                *status == 200 && reply["app"] == to && reply["id"] == id.as_str() && reply["caller"] == from;
            (
                fine,
                format!("{status}, caller as {to} saw it: {}", reply["caller"]),
            )
        });
    }

    let app = stage.pod("cart")?;
    let pid = app.app.as_ref().map_or(0, |p| p.id());
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let environment = String::from_utf8_lossy(&environment).replace('\0', " ");
    let clean = !environment.is_empty() && !environment.contains("DAPR") && !environment.contains("WEFT");
    report.check(
        "the apps' environment says nothing of Dapr or Weft",
        clean,
        environment.trim(),
    );
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    let (uid, caps) = (field("Uid:"), field("CapEff:"));
    report.check(
        "they run without rights",
        !uid.starts_with('0') && caps.trim_start_matches('0').is_empty(),
        format!(
            "uid {}, capabilities {caps}",
            uid.split('\t').next().unwrap_or("?")
        ),
    );

    let missing = stage
        .get(app.net.namespace(), API, "/v1.0/invoke/nobody/method/echo", &[])
        .await;
    report.check_result(
        "an app-id that nobody has is Dapr's documented error",
        missing,
        |(status, body)| {
            (
                *status == 500 && json(body)["errorCode"] == "ERR_DIRECT_INVOKE",
                format!("{status} {body}"),
            )
        },
    );
    Ok(())
}
