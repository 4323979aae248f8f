//! `weft observe`: flows as Hubble's command line asks for them and shows them.

mod filters;
mod inspect;
mod server;
mod times;

use crate::output::{print_raw, print_text};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use filters::Filters;
use server::ServerArgs;
use std::io::{self, IsTerminal, Write};
use weft_flows::hubble::{Layout, Printer, Text, TimeFormat, json};
use weft_proto::hubble::{
    flow::FlowFilter,
    observer::{GetFlowsRequest, observer_client::ObserverClient},
};

/// Flows that are shown when nothing says how many.
const SHOWN: u64 = 20;
/// What the layouts for people show of a flow.
const SHOWN_FIELDS: [&str; 25] = [
    "time",
    "verdict",
    "ethernet",
    "IP",
    "l4",
    "source.identity",
    "source.namespace",
    "source.pod_name",
    "destination.identity",
    "destination.namespace",
    "destination.pod_name",
    "Type",
    "node_name",
    "l7",
    "event_type",
    "source_service",
    "destination_service",
    "is_reply",
    "Summary",
    "ip_trace_id",
    "traffic_direction",
    "policy_match_type",
    "auth_type",
    "source_names",
    "destination_names",
];
const POLICIES: [&str; 4] = [
    "egress_allowed_by",
    "ingress_allowed_by",
    "egress_denied_by",
    "ingress_denied_by",
];

/// Show flows: who called whom, what was decided, and by which rule.
///
/// A flow is shown when one of the values of each filter matches. `--not` before a filter leaves out what
/// it matches.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  weft observe --follow --to-pod default/cart\n  \
                  weft observe --verdict DROPPED --since 5m -o json\n  \
                  weft observe --protocol http --http-status 5+ --not --from-label app=probe\n  \
                  weft observe status"
)]
pub struct Observe {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flows: Flows,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show flows (as without a subcommand)
    Flows(Box<Flows>),
    /// Show how many flows the agent holds and has seen
    Status(inspect::Status),
    /// List nodes or namespaces
    #[command(subcommand)]
    List(inspect::List),
    /// Follow the nodes of the mesh
    Peers(inspect::Peers),
}

#[derive(Debug, Args)]
struct Flows {
    /// All flows that the agent holds
    #[arg(long, help_heading = "Selectors")]
    all: bool,
    /// The last so many flows [default: 20]
    #[arg(long, value_name = "N", help_heading = "Selectors")]
    last: Option<u64>,
    /// The first so many flows
    #[arg(long, value_name = "N", help_heading = "Selectors")]
    first: Option<u64>,
    /// Go on with each new flow
    #[arg(long, short, help_heading = "Selectors")]
    follow: bool,
    /// Only flows since a time: so long ago (30s, 5m, 1h30m) or 2006-01-02[T15:04[:05]Z]
    #[arg(long, value_name = "TIME", value_parser = times::parse, help_heading = "Selectors")]
    since: Option<times::Moment>,
    /// Only flows until a time (not with --follow)
    #[arg(long, value_name = "TIME", value_parser = times::parse, help_heading = "Selectors")]
    until: Option<times::Moment>,
    #[command(flatten)]
    filters: Filters,
    /// Filters as JSON objects; a flow must match one of these or of the flags
    #[arg(long, value_name = "JSON", help_heading = "Raw filters")]
    allowlist: Vec<String>,
    /// Filters as JSON objects; what matches one of them is left out
    #[arg(long, value_name = "JSON", help_heading = "Raw filters")]
    denylist: Vec<String>,
    /// compact, dict, json (or jsonpb), or table
    #[arg(long, short, default_value = "compact", value_name = "FORM", value_parser = layout, help_heading = "Output")]
    output: Layout,
    /// Say which node saw a flow
    #[arg(long, help_heading = "Output")]
    print_node_name: bool,
    /// Say which policies let it pass or refused it
    #[arg(long, help_heading = "Output")]
    print_policy_names: bool,
    /// Addresses and numbers instead of names
    #[arg(long, help_heading = "Output")]
    numeric: bool,
    /// Names instead of addresses
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Output")]
    ip_translation: bool,
    /// StampMilli, YearMonthDay[Hour[Minute]], RFC3339[Milli|Micro|Nano] or RFC1123Z
    #[arg(long, default_value = "StampMilli", value_name = "NAME", value_parser = time_format, help_heading = "Output")]
    time_format: TimeFormat,
    /// auto, always or never
    #[arg(long, default_value = "auto", value_name = "WHEN", value_parser = ["auto", "always", "never"], help_heading = "Output")]
    color: String,
    /// Only these fields: time,verdict,source.pod_name (with -o json)
    #[arg(long, value_delimiter = ',', value_name = "FIELDS", help_heading = "Output")]
    field_mask: Vec<String>,
    /// Ask only for the fields that are shown
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL", help_heading = "Output")]
    use_default_field_masks: bool,
    /// Print the filters as --allowlist and --denylist take them, and end
    #[arg(long, help_heading = "Output")]
    print_raw_filters: bool,
    /// Say nothing of nodes that are away
    #[arg(long, short, help_heading = "Output")]
    silent_errors: bool,
    #[command(flatten)]
    server: ServerArgs,
}

fn layout(text: &str) -> Result<Layout, String> {
    Ok(match text {
        "compact" => Layout::Compact,
        "dict" => Layout::Dict,
        "json" | "JSON" | "jsonpb" => Layout::Json,
        "tab" | "table" => Layout::Table,
        _ => return Err("it is compact, dict, json, jsonpb or table".into()),
    })
}

fn time_format(text: &str) -> Result<TimeFormat, String> {
    TimeFormat::by_name(text).ok_or_else(|| "it is StampMilli, YearMonthDay, RFC3339 or RFC1123Z, say".into())
}

impl Observe {
    /// Prints what was asked for; with `--follow` until Ctrl-C.
    pub async fn run(self) -> Result<()> {
        match self.command {
            None => self.flows.run().await,
            Some(Command::Flows(flows)) => flows.run().await,
            Some(Command::Status(status)) => status.run().await,
            Some(Command::List(list)) => list.run().await,
            Some(Command::Peers(peers)) => peers.run().await,
        }
    }
}

impl Flows {
    async fn run(self) -> Result<()> {
        let request = self.request()?;
        if self.print_raw_filters {
            return print_raw_filters(&request);
        }
        let (channel, server) = self.server.connect()?;
        let mut printer = Printer::new(self.output);
        printer.node_name = self.print_node_name;
        printer.policy_names = self.print_policy_names;
        printer.translate = self.ip_translation && !self.numeric;
        printer.color = match self.color.as_str() {
            "always" => true,
            "never" => false,
            _ => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        };
        printer.time = self.time_format;
        let mut client = ObserverClient::new(channel);
        let asked = client.get_flows(request).await;
        let mut stream = asked.map_err(|status| server.error(&status))?.into_inner();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = tokio::signal::ctrl_c() => break,
            };
            let Some(response) = message.map_err(|status| server.error(&status))? else {
                break;
            };
            match printer.write(&response)? {
                Text::Out(text) => print_raw(&text)?,
                Text::Err(text) if !self.silent_errors => io::stderr().write_all(text.as_bytes())?,
                Text::Err(_) | Text::None => {}
            }
        }
        print_raw(&printer.finish())
    }

    fn request(&self) -> Result<GetFlowsRequest> {
        let (first, last) = (self.first.unwrap_or(0), self.last.unwrap_or(0));
        for (is_wrong, one, other) in [
            (first > 0 && last > 0, "--first", "--last"),
            (first > 0 && self.all, "--first", "--all"),
            (first > 0 && self.follow, "--first", "--follow"),
            (last > 0 && self.all, "--last", "--all"),
        ] {
            if is_wrong {
                bail!("cannot set both {one} and {other}");
            }
        }
        if self.output == Layout::Table && self.follow {
            bail!("table output format is not compatible with follow mode");
        }
        if self.output != Layout::Json && !self.field_mask.is_empty() {
            bail!("--field-mask needs -o json: the other forms show fields of their own");
        }
        let (mut whitelist, mut blacklist) = self.filters.lists();
        whitelist.extend(raw("--allowlist", &self.allowlist)?);
        blacklist.extend(raw("--denylist", &self.denylist)?);
        let since = self.since.map(times::Moment::stamp);
        let until = self.until.filter(|_| !self.follow).map(times::Moment::stamp);
        let is_open = since.is_none() && until.is_none() && first == 0;
        let number = match (first, last) {
            (0, 0) if is_open && !self.all && !self.follow => SHOWN,
            (0, last) => last,
            (first, _) => first,
        };
        let mask = if self.output == Layout::Json || !self.use_default_field_masks {
            self.field_mask.clone()
        } else {
            let policies = POLICIES.iter().filter(|_| self.print_policy_names);
            SHOWN_FIELDS
                .iter()
                .chain(policies)
                .map(|f| (*f).to_owned())
                .collect()
        };
        // `--all` with `--follow` begins with what there is.
        let since = match since {
            None if self.all && self.follow => Some(prost_types::Timestamp::default()),
            since => since,
        };
        Ok(GetFlowsRequest {
            number,
            follow: self.follow,
            first: first > 0,
            whitelist,
            blacklist,
            since,
            until,
            field_mask: (!mask.is_empty()).then_some(prost_types::FieldMask { paths: mask }),
            ..Default::default()
        })
    }
}

fn raw(flag: &str, texts: &[String]) -> Result<Vec<FlowFilter>> {
    let mut filters = Vec::new();
    for text in texts {
        filters.extend(json::filters(text).with_context(|| format!("{flag} is no list of filters"))?);
    }
    Ok(filters)
}

/// As YAML, which the flags of Hubble's command line are written in.
fn print_raw_filters(request: &GetFlowsRequest) -> Result<()> {
    let mut lines = Vec::new();
    for (name, filters) in [
        ("allowlist", &request.whitelist),
        ("denylist", &request.blacklist),
    ] {
        if filters.is_empty() {
            continue;
        }
        lines.push(format!("{name}:"));
        for filter in filters {
            let text = json::to_json("flow.FlowFilter", filter)?;
            lines.push(format!("    - '{}'", text.replace('\'', "''")));
        }
    }
    if lines.is_empty() {
        lines.push("{}".into());
    }
    print_text(&lines.join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        observe: Observe,
    }

    fn request(line: &str) -> Result<GetFlowsRequest, String> {
        let words = std::iter::once("observe").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|e| e.to_string())?;
        cli.observe.flows.request().map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn how_many_and_from_where() {
        for (line, number, first, follow) in [
            ("", 20, false, false),
            ("--last 5", 5, false, false),
            ("--first 5", 5, true, false),
            ("--all", 0, false, false),
            ("-f", 0, false, true),
            ("-f --last 3", 3, false, true),
            ("--since 5m", 0, false, false),
            ("--since 2026-01-02 --last 7", 7, false, false),
        ] {
            let request = request(line).unwrap();
            assert_eq!(
                (request.number, request.first, request.follow),
                (number, first, follow),
                "{line}"
            );
        }
        assert!(request("--all -f").unwrap().since.is_some());
        assert!(request("--until 5m").unwrap().until.is_some());
        assert!(request("--until 5m -f").unwrap().until.is_none());
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (line, says) in [
            ("--first 1 --last 1", "--first and --last"),
            ("--first 1 -f", "--follow"),
            ("--last 1 --all", "--all"),
            ("-o table -f", "follow mode"),
            ("--field-mask time", "-o json"),
            ("--since soon", "soon"),
            ("--allowlist {", "--allowlist"),
            ("-o yaml", "jsonpb"),
            ("--time-format Kitchen", "RFC3339"),
        ] {
            let error = request(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn only_what_is_shown_is_asked_for() {
        let paths = |line| request(line).unwrap().field_mask.unwrap_or_default().paths;
        assert!(paths("").contains(&"Summary".to_owned()));
        assert!(!paths("").contains(&"ingress_denied_by".to_owned()));
        assert!(paths("--print-policy-names").contains(&"ingress_denied_by".to_owned()));
        assert_eq!(paths("-o json"), [""; 0]);
        assert_eq!(paths("-o json --field-mask time,verdict"), ["time", "verdict"]);
        assert_eq!(paths("--use-default-field-masks=false"), [""; 0]);
        // And all of it are fields.
        let all: Vec<&str> = SHOWN_FIELDS.iter().chain(&POLICIES).copied().collect();
        assert!(weft_flows::hubble::Mask::new(&all).unwrap().is_some());
    }
}
