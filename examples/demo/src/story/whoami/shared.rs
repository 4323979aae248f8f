//! Shared endpoints: the gateway's requests go to the runtime of app "ingress", which no pod runs, and that
//! invokes app "whoami".

use super::{Cast, ROUTE_RUNTIME, SHARED_INGRESS, SHARED_WHOAMI, gateway, until};
use crate::{
    report::Report,
    stage::{Reply, Stage},
};
use anyhow::Result;
use std::net::SocketAddr;

/// As whom whoami's Service is called.
const HOST: &str = "whoami.default.svc.cluster.local:80";

pub async fn play(stage: &Stage, cast: &Cast, report: &mut Report) -> Result<SocketAddr> {
    report.chapter("Shared endpoints: from the gateway through the runtime of app ingress to app whoami");
    stage.apply("ingress-dapr.yaml", SHARED_INGRESS)?;
    stage.apply("whoami-dapr.yaml", SHARED_WHOAMI)?;
    let runtime = SocketAddr::new(super::address(stage, "ingress-dapr").await?, 3500);
    for (method, asked) in [("/", "/a?b=1"), ("//", "/a?b=1"), ("/", "/"), ("//", "/")] {
        let path = format!("whoami.default/method{method}{}", asked.trim_start_matches('/'));
        let url = format!("http://{runtime}/v1.0/invoke/{path}");
        let reply = until(stage, &cast.visitors[0], &url, &[], |r| r.status == 200).await;
        report.check_result(
            &format!("a visitor asks the runtime of ingress for {path}: whoami gets {asked}"),
            reply,
            |reply| {
                (
                    reply.request() == Some(&format!("GET {asked} HTTP/1.1")),
                    seen(reply),
                )
            },
        );
    }
    stage.apply("whoami-route.yaml", ROUTE_RUNTIME)?;
    let client = cast.outside_address.to_string();
    let gateway = cast.gateways[0].ip().to_string();
    for asked in ["/", "/a?b=1"] {
        let url = format!("http://{gateway}{asked}");
        let invoked = |r: &Reply| r.status == 200 && r.line("Dapr-Callee-App-Id").is_some();
        let reply = until(stage, &cast.outside, &url, &[], invoked).await;
        report.check_result(
            &format!("curl {asked} from outside: whoami gets exactly that, and who called whom"),
            reply,
            |reply| (holds(reply, asked, &client, &gateway), seen(reply)),
        );
    }
    gateway::forged(stage, cast, report, Some("ingress")).await;
    Ok(runtime)
}

/// All that whoami is told of the request.
fn holds(reply: &Reply, asked: &str, client: &str, gateway: &str) -> bool {
    let said = |name| reply.line(name).unwrap_or_default();
    // The client, then the hands between.
    let first = said("X-Forwarded-For").split(", ").next();
    reply.request() == Some(&format!("GET {asked} HTTP/1.1"))
        && said("Host") == HOST
        && said("Dapr-Caller-App-Id") == "ingress"
        && said("Dapr-Callee-App-Id") == "whoami"
        && said("Traceparent").len() == 55
        && said("Traceparent").ends_with("-01")
        && said("Forwarded").contains(&format!("for={client}"))
        && first == Some(client)
        && said("X-Forwarded-Host") == gateway
        && said("X-Forwarded-Proto") == "http"
}

fn seen(reply: &Reply) -> String {
    let said = |name| reply.line(name).unwrap_or("none");
    format!(
        "{}: {}, Host {}, {} -> {}, Forwarded {}, X-Forwarded-For {}, Traceparent {}",
        reply.who(),
        reply.request().unwrap_or("no request"),
        said("Host"),
        said("Dapr-Caller-App-Id"),
        said("Dapr-Callee-App-Id"),
        said("Forwarded"),
        said("X-Forwarded-For"),
        said("Traceparent")
    )
}
