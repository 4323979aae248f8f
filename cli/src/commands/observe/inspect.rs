//! What there is besides flows: the server's state, nodes, namespaces.

use super::server::ServerArgs;
use crate::output::{print_text, table};
use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::time::Duration;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weft_flows::hubble::json::to_json;
use weft_proto::hubble::{
    observer::{
        GetNamespacesRequest, GetNodesRequest, Node, ServerStatusRequest, ServerStatusResponse,
        observer_client::ObserverClient,
    },
    peer::{NotifyRequest, peer_client::PeerClient},
    relay::NodeState,
};

const NOT_AVAILABLE: &str = "N/A";

/// Show how many flows the agent holds and has seen
#[derive(Debug, Args)]
pub struct Status {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = StatusForm::Compact)]
    output: StatusForm,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StatusForm {
    Compact,
    Dict,
    #[value(alias = "jsonpb")]
    Json,
    #[value(alias = "tab")]
    Table,
}

/// List nodes or namespaces
#[derive(Debug, Subcommand)]
pub enum List {
    /// The nodes of the mesh
    #[command(alias = "node")]
    Nodes(Listing),
    /// The namespaces that the agent knows
    #[command(alias = "namespace")]
    Namespaces(Listing),
}

#[derive(Debug, Args)]
pub struct Listing {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = ListForm::Table)]
    output: ListForm,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListForm {
    Table,
    Wide,
    Json,
}

/// Follow the nodes of the mesh
#[derive(Debug, Args)]
pub struct Peers {
    #[command(flatten)]
    server: ServerArgs,
}

impl Status {
    pub async fn run(self) -> Result<()> {
        let (channel, server) = self.server.connect()?;
        let request = HealthCheckRequest {
            service: "hubble.server.Observer".into(),
        };
        let checked = HealthClient::new(channel.clone()).check(request).await;
        let health = checked
            .map_err(|status| server.error(&status))?
            .into_inner()
            .status();
        let is_healthy = health == ServingStatus::Serving;
        if self.output == StatusForm::Compact {
            let text = if is_healthy {
                "Ok".to_owned()
            } else {
                format!("Unavailable: {}", health.as_str_name())
            };
            print_text(&format!("Healthcheck (via {}): {text}", server.shown()))?;
        }
        if !is_healthy {
            bail!("not healthy");
        }
        let asked = ObserverClient::new(channel)
            .server_status(ServerStatusRequest {})
            .await;
        let status = asked.map_err(|status| server.error(&status))?.into_inner();
        print_text(&match self.output {
            StatusForm::Compact => compact(&status),
            StatusForm::Dict => fields(&status)
                .into_iter()
                .map(|(_, name, value)| format!("{name:>19}: {value}"))
                .collect::<Vec<_>>()
                .join("\n"),
            StatusForm::Json => to_json("observer.ServerStatusResponse", &status)?,
            StatusForm::Table => {
                let (header, row): (Vec<&str>, Vec<String>) = fields(&status)
                    .into_iter()
                    .map(|(name, _, value)| (name, value))
                    .unzip();
                table(&header, &[row])
            }
        })
    }
}

fn compact(status: &ServerStatusResponse) -> String {
    let percent = match status.max_flows {
        0 => String::new(),
        max => format!(" ({:.2}%)", status.num_flows as f64 / max as f64 * 100.0),
    };
    let (held, max) = (grouped(status.num_flows), grouped(status.max_flows));
    let mut text = format!("Current/Max Flows: {held}/{max}{percent}\nFlows/s: ");
    let up = Duration::from_nanos(status.uptime_ns).as_secs_f64();
    let rate = match status.flows_rate {
        rate if rate > 0.0 => Some(rate),
        _ if up > 0.0 => Some(status.seen_flows as f64 / up),
        _ => None,
    };
    text += &rate.map_or(NOT_AVAILABLE.into(), |r| format!("{r:.2}"));
    if let Some(connected) = status.num_connected_nodes {
        text += &format!("\nConnected Nodes: {connected}");
        if let Some(away) = status.num_unavailable_nodes {
            text += &format!("/{}", connected + away);
        }
    }
    text
}

/// Name in a table, name in a list, and value.
fn fields(status: &ServerStatusResponse) -> Vec<(&'static str, &'static str, String)> {
    let or_none = |n: Option<u32>| n.map_or(NOT_AVAILABLE.to_owned(), |n| n.to_string());
    let rate = match status.flows_rate {
        rate if rate > 0.0 => format!("{rate:.2}"),
        _ => NOT_AVAILABLE.into(),
    };
    vec![
        ("NUM FLOWS", "NUM FLOWS", grouped(status.num_flows)),
        ("MAX FLOWS", "MAX FLOWS", grouped(status.max_flows)),
        ("SEEN FLOWS", "SEEN FLOWS", grouped(status.seen_flows)),
        ("FLOWS PER SECOND", "FLOWS PER SECOND", rate),
        ("UPTIME", "UPTIME", age(status.uptime_ns)),
        (
            "NUM CONNECTED NODES",
            "NUM CONNECTED NODES",
            or_none(status.num_connected_nodes),
        ),
        (
            "NUM UNAVAILABLE NODES",
            "NUM UNAVAIL. NODES",
            or_none(status.num_unavailable_nodes),
        ),
        ("VERSION", "VERSION", status.version.clone()),
    ]
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1h2m3s`, as Go writes durations, in whole seconds.
fn age(nanoseconds: u64) -> String {
    let seconds = nanoseconds.saturating_add(500_000_000) / 1_000_000_000;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{s}s"),
        (h, m) => format!("{h}h{m}m{s}s"),
    }
}

impl List {
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Nodes(listing) => nodes(listing).await,
            Self::Namespaces(listing) => namespaces(listing).await,
        }
    }
}

async fn nodes(listing: Listing) -> Result<()> {
    let (channel, server) = listing.server.connect()?;
    let asked = ObserverClient::new(channel).get_nodes(GetNodesRequest {}).await;
    let mut nodes = asked.map_err(|status| server.error(&status))?.into_inner().nodes;
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if listing.output == ListForm::Json {
        return print_list("observer.Node", &nodes);
    }
    let is_wide = listing.output == ListForm::Wide;
    let mut header = vec!["NAME", "STATUS", "AGE", "FLOWS/S", "CURRENT/MAX-FLOWS"];
    if is_wide {
        header.extend(["VERSION", "ADDRESS", "TLS"]);
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node, is_wide)).collect();
    print_text(&table(&header, &rows))
}

fn row(node: &Node, is_wide: bool) -> Vec<String> {
    let none = || NOT_AVAILABLE.to_owned();
    let up = Duration::from_nanos(node.uptime_ns).as_secs_f64();
    let (age, rate) = if node.uptime_ns > 0 {
        (age(node.uptime_ns), format!("{:.2}", node.seen_flows as f64 / up))
    } else {
        (none(), none())
    };
    let held = match node.max_flows {
        0 => none(),
        max => format!(
            "{}/{max} ({:6.2}%)",
            node.num_flows,
            node.num_flows as f64 / max as f64 * 100.0
        ),
    };
    let state = match node.state() {
        NodeState::NodeConnected => "Connected",
        NodeState::NodeUnavailable => "Unavailable",
        NodeState::NodeGone => "Gone",
        NodeState::NodeError => "Error",
        NodeState::UnknownNodeState => "Unknown",
    };
    let mut row = vec![node.name.clone(), state.to_owned(), age, rate, held];
    if is_wide {
        let version = if node.version.is_empty() {
            none()
        } else {
            node.version.clone()
        };
        let tls = match &node.tls {
            None => none(),
            Some(tls) if tls.enabled => "Enabled".into(),
            Some(_) => "Disabled".into(),
        };
        row.extend([version, node.address.clone(), tls]);
    }
    row
}

async fn namespaces(listing: Listing) -> Result<()> {
    let (channel, server) = listing.server.connect()?;
    let asked = ObserverClient::new(channel)
        .get_namespaces(GetNamespacesRequest {})
        .await;
    let namespaces = asked
        .map_err(|status| server.error(&status))?
        .into_inner()
        .namespaces;
    if listing.output == ListForm::Json {
        return print_list("observer.Namespace", &namespaces);
    }
    let is_wide = listing.output == ListForm::Wide;
    let header: &[&str] = if is_wide {
        &["NAMESPACE", "CLUSTER"]
    } else {
        &["NAMESPACE"]
    };
    let rows: Vec<Vec<String>> = namespaces
        .into_iter()
        .map(|n| {
            if is_wide {
                vec![n.namespace, n.cluster]
            } else {
                vec![n.namespace]
            }
        })
        .collect();
    print_text(&table(header, &rows))
}

fn print_list(name: &str, list: &[impl prost::Message]) -> Result<()> {
    let items = list.iter().map(|item| to_json(name, item));
    let items = items.collect::<Result<Vec<_>, _>>()?;
    print_text(&format!("[{}]", items.join(",")))
}

impl Peers {
    pub async fn run(self) -> Result<()> {
        let (channel, server) = self.server.connect()?;
        let asked = PeerClient::new(channel).notify(NotifyRequest {}).await;
        let mut stream = asked.map_err(|status| server.error(&status))?.into_inner();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            let Some(told) = message.map_err(|status| server.error(&status))? else {
                return Ok(());
            };
            let tls = told
                .tls
                .as_ref()
                .map(|t| format!(" (TLS.ServerName: {})", t.server_name));
            print_text(&format!(
                "{:<12} {} {}{}",
                told.r#type().as_str_name(),
                told.address,
                told.name,
                tls.unwrap_or_default()
            ))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ages_as_hubble_writes_them() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [1, 61, 3600, 3_723].map(|s| age(s * 1_000_000_000)),
            ["1s", "1m1s", "1h0m0s", "1h2m3s"]
        );
    }

    #[test]
    fn a_status_in_lines() {
        let status = ServerStatusResponse {
            num_flows: 1024,
            max_flows: 4095,
            seen_flows: 2000,
            uptime_ns: 10_000_000_000,
            flows_rate: 1.5,
            ..Default::default()
        };
        assert_eq!(
            compact(&status),
            "Current/Max Flows: 1,024/4,095 (25.01%)\nFlows/s: 1.50"
        );
        let relay = ServerStatusResponse {
            flows_rate: 0.0,
            num_connected_nodes: Some(2),
            num_unavailable_nodes: Some(1),
            ..status
        };
        assert_eq!(
            compact(&relay),
            "Current/Max Flows: 1,024/4,095 (25.01%)\nFlows/s: 200.00\nConnected Nodes: 2/3"
        );
    }
}
