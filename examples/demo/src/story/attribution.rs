//! The kernel says who calls: not a header, not an environment variable, not a process's looks.

use super::{json, unique};
use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{API, Stage},
};
use anyhow::{Context, Result};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::chown,
    time::Duration,
};
use weft_testnet::Spawn;

/// A port on the node's own loopback for the process workload.
const COURIER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
const USER: u32 = 61_002;

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.chapter("Who calls is what the kernel knows");
    let forged = [
        ("dapr-caller-app-id", "admin"),
        ("dapr-caller-namespace", "kube-system"),
        ("x-forwarded-for", "10.0.0.1"),
    ];
    let cart = stage.pod("cart")?.net.namespace().clone();
    let reply = stage
        .get(&cart, API, "/v1.0/invoke/billing/method/echo?id=1", &forged)
        .await;
    report.check_result(
        "a forged dapr-caller-app-id arrives overwritten with the truth",
        reply,
        |(status, body)| {
            let body = json(body);
            (
                *status == 200 && body["caller"] == "cart" && body["callerNamespace"] == "default",
                format!("caller {}", body["caller"]),
            )
        },
    );

    // A process of the node, in no namespace of its own, beside another that is no workload.
    let out = stage.dir().join("out");
    fs::create_dir_all(&out)?;
    chown(&out, Some(USER), Some(USER))?;
    let id = unique("child");
    let hidden = out.join("hidden-child.json");
    let script = format!(
        "setsid sh -c 'curl -s --retry 0 -m 20 \"http://localhost:3500/v1.0/invoke/cart/method/echo?id={id}\" -o {0}.part && mv {0}.part {0}' & \
         exec {1}/weft-example-cart courier {2}",
        hidden.display(),
        stage.dir().join("bin").display(),
        COURIER.port()
    );
    let node = stage.node("n1")?;
    let namespace = node.net.namespace().clone();
    let mut run = stage.weft(&node.run_dir.clone());
    run.args([
        "run",
        "--app-id",
        "courier",
        "--app-port",
        &COURIER.port().to_string(),
        "--user",
        &format!("{USER}:{USER}"),
    ]);
    run.args(["--", "sh", "-c", &script]);
    let log = fs::File::create(stage.dir().join("log/courier.log"))?;
    run.stdout(log.try_clone()?).stderr(log);
    let mut courier = namespace.spawn(run, &Spawn::root())?;
    let up = wait_for("courier", Duration::from_secs(30), || {
        let namespace = namespace.clone();
        async move { Ok(namespace.connect(COURIER).map(drop)?) }
    })
    .await;
    if let Err(error) = up {
        report.check(
            "a process started by `weft run` comes up",
            false,
            format!("{error:#}; {}", stage.log_tail("courier")),
        );
        return Ok(());
    }
    let id2 = unique("process");
    let reply = stage
        .get(&namespace, COURIER, &format!("/call?app=cart&id={id2}"), &[])
        .await;
    report.check_result(
        "a process of the node, started by `weft run`, is known by its cgroup",
        reply,
        |(status, body)| {
            let reply = &json(body)["reply"];
            (
                *status == 200 && reply["caller"] == "courier" && reply["id"] == id2.as_str(),
                format!("{status}, caller {}", reply["caller"]),
            )
        },
    );
    let child = wait_for("the child's reply", Duration::from_secs(25), || {
        let hidden = hidden.clone();
        async move { fs::read_to_string(&hidden).context("no reply yet") }
    })
    .await;
    report.check_result(
        "its hidden child, in a session of its own, is the same workload",
        child,
        |body| {
            let body = json(body);
            (
                body["caller"] == "courier" && body["id"] == id.as_str(),
                format!("caller {}", body["caller"]),
            )
        },
    );
    let called = stage
        .get(&cart, API, "/v1.0/invoke/courier/method/echo?id=7", &[])
        .await;
    report.check_result(
        "and is called by its app-id from a pod",
        called,
        |(status, body)| {
            (
                *status == 200 && json(body)["app"] == "courier",
                format!("{status}"),
            )
        },
    );

    // The same address, the same network namespace, the same user; only the cgroup differs.
    let path = "/v1.0/invoke/cart/method/echo?id=stranger";
    let outsider = stage.get(&namespace, API, path, &[]).await;
    report.check(
        "its twin: a process of the node that is no workload gets no answer",
        outsider.is_err(),
        outsider.map_or_else(
            |e| format!("{e:#}").chars().take(90).collect(),
            |(status, _)| format!("status {status}"),
        ),
    );
    let mut status = stage.weft(&stage.node("n1")?.run_dir);
    status.args(["status", "-o", "json"]);
    let before = json(&output(status).await?)["workloads"]
        .to_string()
        .contains("courier");
    crate::stage::terminate(&courier);
    let ended = wait_for("its end", Duration::from_secs(15), || {
        let ended = courier.try_wait();
        async move { ended?.context("it still runs") }
    })
    .await;
    let gone = wait_for("its removal", Duration::from_secs(15), || {
        let mut status = stage.weft(&stage.nodes["n1"].run_dir);
        status.args(["status", "-o", "json"]);
        async move {
            let there = json(&output(status).await?)["workloads"]
                .to_string()
                .contains("courier");
            anyhow::ensure!(!there, "it is still listed");
            Ok(())
        }
    })
    .await;
    report.check(
        "when the process ends, the workload is gone",
        before && ended.is_ok() && gone.is_ok(),
        match gone {
            Ok(()) => "removed".to_owned(),
            Err(e) => format!("{e:#}"),
        },
    );
    Ok(())
}
