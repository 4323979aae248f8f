//! The walkthrough: an app in two versions behind a gateway, by the manifests of `examples/whoami`.

mod explained;
mod gateway;
mod policies;
mod proven;
mod redirect;
mod shared;
mod split;
mod told;

use crate::{
    command::{output, wait_for},
    report::Report,
    stage::{Reply, Seat, Stage},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const WHOAMI: &str = include_str!("../../../whoami/whoami.yaml");
const SERVICES: &str = include_str!("../../../whoami/services.yaml");
const GATEWAY: &str = include_str!("../../../whoami/gateway.yaml");
const ROUTE_DIRECT: &str = include_str!("../../../whoami/route-direct.yaml");
const ROUTE_RUNTIME: &str = include_str!("../../../whoami/route-runtime.yaml");
const SHARED_INGRESS: &str = include_str!("../../../whoami/shared-ingress.yaml");
const SHARED_WHOAMI: &str = include_str!("../../../whoami/shared-whoami.yaml");
const LOCAL_REDIRECT: &str = include_str!("../../../whoami/local-redirect.yaml");
const POLICIES: &str = include_str!("../../../whoami/policies.yaml");
const POLICY_PODS: &str = include_str!("../../../whoami/policy-pods.yaml");
const ROUTE_ITSELF: &str = include_str!("../../../whoami/route-itself.yaml");
const SPLIT_EVENLY: &str = include_str!("../../../whoami/split-50-50.yaml");
const SPLIT_MOSTLY: &str = include_str!("../../../whoami/split-90-10.yaml");
const VISITORS: &str = include_str!("../../../whoami/policy-visitors.yaml");
const REQUESTS: &str = include_str!("../../../whoami/policy-requests.yaml");

const NODES: [&str; 2] = ["n1", "n2"];
/// What a change may take from the file to the far end, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Who plays.
struct Cast {
    /// A host that no mesh knows.
    outside: Seat,
    outside_address: IpAddr,
    /// In pods without app-id, one on each node.
    visitors: [Seat; 2],
    /// Of the gateway, at each node.
    gateways: Vec<SocketAddr>,
    /// The Service's address.
    service: SocketAddr,
    /// Names of the pods of whoami.
    pods: Vec<String>,
}

pub async fn play(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let cast = gateway::play(stage, report).await?;
    let runtime = shared::play(stage, &cast, report).await?;
    split::play(stage, &cast, report).await?;
    redirect::play(stage, &cast, runtime, report).await?;
    policies::play(stage, &cast, runtime, report).await?;
    proven::play(stage, &cast, report).await?;
    told::play(stage, &cast, report).await?;
    explained::play(stage, &cast, runtime, report).await?;
    let hints = hints(stage, &cast)?;
    stage.hints.push(hints);
    Ok(())
}

/// The same by hand.
fn hints(stage: &Stage, cast: &Cast) -> Result<String> {
    let weft = stage.weft_by_hand();
    let (control, n1) = (stage.identity_run_dir(), &stage.node("n1")?.run_dir);
    let (control, n1) = (control.display(), n1.display());
    let visitor = stage.pod("visitor-0")?;
    let cgroup = visitor.cgroup.as_ref().context("no cgroup")?.display();
    let (gateway, service) = (cast.gateways[0].ip(), cast.service);
    let outside = cast.outside.namespace().path().display();
    let visitor = visitor.net.namespace().path().display();
    let files = stage.resources();
    let files = files.display();
    Ok(format!(
        "# whoami by its gateway, from a host outside; and by its Service, from a process of pod visitor-0\n\
         nsenter --net={outside} curl -i http://{gateway}/\n\
         sh -c 'echo $$ >{cgroup}/cgroup.procs; exec nsenter --net={visitor} curl -i http://{service}/'\n\
         # Its manifests: edit one, and ask again\n\
         ls {files}\n\
         {weft} get gateways,httproutes,cnp --run-dir {control}\n\
         # Who reached it, who did not, and why\n\
         {weft} observe --to-pod whoami --print-policy-names --run-dir {n1}\n\
         {weft} explain --from visitor-0 --to whoami-v1-1 --port 80 --run-dir {control}\n\
         {weft} explain --from cart --to whoami-v1-1 --port 80 --path /secret --run-dir {control}"
    ))
}

impl Cast {
    async fn new(stage: &mut Stage) -> Result<Self> {
        let host = stage.testnet().node("outside")?;
        let pods = stage.deploy(WHOAMI, &NODES).await?;
        let mut visitors = Vec::new();
        for (number, node) in NODES.iter().enumerate() {
            let name = format!("visitor-{number}");
            stage.place_plain(node, &name, &[("app", "visitor")]).await?;
            visitors.push(stage.seat(&name)?);
        }
        for (file, text) in [
            ("whoami-services.yaml", SERVICES),
            ("whoami-gateway.yaml", GATEWAY),
            ("whoami-route.yaml", ROUTE_DIRECT),
        ] {
            stage.apply(file, text)?;
        }
        let service = SocketAddr::new(address(stage, "whoami").await?, 80);
        let gateways = NODES
            .iter()
            .map(|node| Ok((stage.node(node)?.net.v4(), 80).into()))
            .collect::<Result<_>>()?;
        Ok(Self {
            outside: stage.seat_outside(&host)?,
            outside_address: host.v4().into(),
            visitors: visitors.try_into().ok().context("a visitor on each node")?,
            gateways,
            service,
            pods,
        })
    }

    /// A pod of whoami.
    fn whoami(&self, stage: &Stage, name: &str) -> Result<SocketAddr> {
        Ok((stage.pod(name)?.net.v4(), 80).into())
    }
}

/// The address that a Service was given.
async fn address(stage: &Stage, service: &str) -> Result<IpAddr> {
    wait_for("the Service's address", SOON, || async {
        let service = stage.object("services", service).await?;
        let address = service["spec"]["clusterIP"].as_str().context("it has none")?;
        Ok(address.parse()?)
    })
    .await
}

/// Asks until it is as wanted: a change takes a moment from its file to both nodes.
async fn until(
    stage: &Stage,
    from: &Seat,
    url: &str,
    more: &[&str],
    wanted: impl Fn(&Reply) -> bool,
) -> Result<Reply> {
    wait_for("the reply", SOON, || async {
        let reply = stage.curl(from, url, more).await?;
        ensure!(wanted(&reply), "{}", reply.text);
        Ok(reply)
    })
    .await
}

/// Flows of a node, as Hubble's JSON has them.
async fn flows(stage: &Stage, node: &str, filters: &[&str]) -> Result<Vec<Value>> {
    let lines = observe(stage, node, &[&["--all", "-o", "json"], filters].concat()).await?;
    Ok(lines
        .lines()
        .map(|line| super::json(line)["flow"].clone())
        .collect())
}

async fn observe(stage: &Stage, node: &str, arguments: &[&str]) -> Result<String> {
    let mut observe = stage.weft(&stage.node(node)?.run_dir);
    observe.arg("observe").args(arguments);
    output(observe).await
}

/// The first flow that is as wanted; it is written down a moment after the reply.
async fn flow(stage: &Stage, node: &str, filters: &[&str], wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for("the flow", SOON, || async {
        let flows = flows(stage, node, filters).await?;
        let found = flows.iter().find(|flow| wanted(flow)).cloned();
        found.with_context(|| {
            format!(
                "{} flows with {filters:?}, the last {:?}",
                flows.len(),
                flows.last()
            )
        })
    })
    .await
}

/// The same on whichever node tells of it.
async fn anywhere(stage: &Stage, filters: &[&str], wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for("the flow", SOON, || async {
        let mut all = flows(stage, NODES[0], filters).await?;
        all.extend(flows(stage, NODES[1], filters).await?);
        let found = all.iter().rev().find(|flow| wanted(flow)).cloned();
        found.with_context(|| format!("{} flows with {filters:?}, none is that", all.len()))
    })
    .await
}
