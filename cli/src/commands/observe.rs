//! `weft observe`: flows of the local agent.

use crate::{
    connect::{AgentArgs, agent_error},
    output::print_text,
};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::time::{Duration, SystemTime};
use weft_proto::weft::dataplane::v1::{
    FlowFilter, ObserveRequest, Verdict, flows_client::FlowsClient, observe_response::Item,
};

/// Show flows.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  weft observe --follow --to cart\n  \
    weft observe --verdict dropped --since 5m -o json")]
pub struct Observe {
    /// Show the last so many flows; 0 for all that the agent holds
    #[arg(long, default_value_t = 20, value_name = "N")]
    last: u32,
    /// Go on with each new flow
    #[arg(long, short)]
    follow: bool,
    /// Only flows since so long ago: 30s, 5m, 2h
    #[arg(long, value_name = "AGO", value_parser = parse_ago)]
    since: Option<Duration>,
    /// Only flows with this namespace on either side
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    /// Only flows with this app-id or workload on either side
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only flows from this app-id or workload
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Only flows to this app-id or workload
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Only flows that ended so
    #[arg(long, value_enum)]
    verdict: Option<VerdictArg>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Output::Compact)]
    output: Output,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VerdictArg {
    Forwarded,
    Audit,
    Dropped,
    Error,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A line per flow, for people
    Compact,
    /// A JSON object per line, for scripts
    Json,
}

fn parse_ago(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as a number with s, m or h, say 5m".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .map_err(|_| wrong())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

impl Observe {
    /// Prints flows until they end, or with `--follow` until Ctrl-C.
    pub async fn run(self) -> Result<()> {
        let (channel, socket) = self.agent.agent()?;
        let verdict = match self.verdict {
            None => Verdict::Unspecified,
            Some(VerdictArg::Forwarded) => Verdict::Forwarded,
            Some(VerdictArg::Audit) => Verdict::Audit,
            Some(VerdictArg::Dropped) => Verdict::Dropped,
            Some(VerdictArg::Error) => Verdict::Error,
        };
        let filter = FlowFilter {
            namespace: self.namespace.unwrap_or_default(),
            workload: self.workload.unwrap_or_default(),
            from: self.from.unwrap_or_default(),
            to: self.to.unwrap_or_default(),
            verdict: verdict.into(),
        };
        let since = self
            .since
            .and_then(|ago| SystemTime::now().checked_sub(ago))
            .map(Into::into);
        let request = ObserveRequest {
            last: self.last,
            follow: self.follow,
            filters: vec![filter],
            since,
        };
        let mut stream = FlowsClient::new(channel)
            .observe(request)
            .await
            .map_err(|status| agent_error(&status, &socket))?
            .into_inner();
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            match message.map(|m| m.map(|m| m.item)) {
                Ok(Some(Some(Item::Flow(flow)))) => print_text(&match self.output {
                    Output::Compact => weft_flows::compact(&flow),
                    Output::Json => weft_flows::json(&flow),
                })?,
                Ok(Some(Some(Item::Lost(count)))) => {
                    eprintln!("weft: {count} flows were lost: they came faster than they were read");
                }
                Ok(Some(None)) => {}
                Ok(None) => return Ok(()),
                Err(status) => bail!("the agent ended the stream: {}", status.message()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ago() {
        assert_eq!(parse_ago("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_ago("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "5", "m", "-1s", "5d", "5µ"] {
            assert!(parse_ago(bad).is_err(), "{bad} was taken");
        }
    }
}
