//! `weft explain`: what policy says of two, and every rule that has a part in it. The exit code is the
//! answer: 0 allowed, 1 denied, 2 when there is none.

use crate::{
    output::{Format, print_text, print_value, table},
    policy::{PolicyArgs, policy_error},
};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_proto::weft::policy::v1::{
    Decision, ExplainRequest, ExplainResponse, ExplainedParty, ExplainedRequest, HttpHeader, Judgement,
    RuleRef, SpokenRule, explain_client::ExplainClient,
};

const DENIED: u8 = 1;
/// Also for a question that nobody could answer, so that it is never taken for a refusal.
const NO_ANSWER: u8 = 2;

/// Say whether policy lets somebody reach somebody, and why.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 allowed, 1 denied, 2 no answer.\n\nExamples:\n  \
    weft explain --from shop/front --to shop/cart --port 50002\n  \
    weft explain --from 192.0.2.7 --to cart --port 80 --method GET --path '/items?max=3'\n  \
    weft explain --from cart --to world --port 53/udp -o json")]
pub struct Explain {
    /// Who connects: [<namespace>/]<app-id or workload>, number of an identity, address, or a name such as
    /// world, host, ingress
    #[arg(long, value_name = "WHO")]
    from: String,
    /// To whom, likewise
    #[arg(long, value_name = "WHO")]
    to: String,
    /// Port at the callee, with /udp, /sctp, /icmp or /icmpv6 (then the message's type) when it is not TCP
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = parse_port)]
    port: Port,
    /// Ask about an HTTP request: its method
    #[arg(long)]
    method: Option<String>,
    /// ... its path, with the query
    #[arg(long)]
    path: Option<String>,
    /// ... its host, with the port if the client names it
    #[arg(long)]
    host: Option<String>,
    /// ... one of its headers; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Clone, Copy)]
struct Port {
    number: u16,
    protocol: u8,
}

const PROTOCOLS: [(&str, u8); 5] = [
    ("tcp", 6),
    ("udp", 17),
    ("sctp", 132),
    ("icmp", 1),
    ("icmpv6", 58),
];

fn parse_port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let known = PROTOCOLS.iter().find(|(name, _)| *name == protocol);
    let Some((_, protocol)) = known else {
        let names = PROTOCOLS.map(|(name, _)| name).join(", ");
        return Err(format!("{protocol:?} is none of {names}"));
    };
    let number = number.parse().map_err(|_| format!("{number:?} is no port"))?;
    Ok(Port {
        number,
        protocol: *protocol,
    })
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as <name>: <value>")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Explain {
    /// Asks and prints the answer.
    pub async fn run(self) -> ExitCode {
        match self.ask().await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(DENIED),
            Err(error) => {
                eprintln!("weft: {}", format!("{error:#}").replace('\n', " "));
                ExitCode::from(NO_ANSWER)
            }
        }
    }

    async fn ask(self) -> Result<bool> {
        let (channel, address) = self.policy.channel().await?;
        let of_request =
            self.method.is_some() || self.path.is_some() || self.host.is_some() || !self.header.is_empty();
        let headers = self.header.iter().map(|(name, value)| HttpHeader {
            name: name.clone(),
            value: Some(value.clone()),
        });
        // What a client sends that is told nothing else.
        let text = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.into());
        let request = of_request.then(|| ExplainedRequest {
            method: text(&self.method, "GET"),
            path: text(&self.path, "/"),
            host: text(&self.host, ""),
            headers: headers.collect(),
        });
        let asked = ExplainRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            port: self.port.number.into(),
            protocol: self.port.protocol.into(),
            request: request.clone(),
        };
        let answer = ExplainClient::new(channel)
            .explain(asked)
            .await
            .map_err(|status| policy_error(&status, &address))?
            .into_inner();
        match self.output {
            Format::Table => print_text(&page(&answer, self.port, request.as_ref()))?,
            format => print_value(&value(&answer), format)?,
        }
        Ok(answer.allowed)
    }
}

fn page(answer: &ExplainResponse, port: Port, request: Option<&ExplainedRequest>) -> String {
    let name = |party: &Option<ExplainedParty>| {
        let party = party.as_ref();
        party.map_or(String::new(), |p| format!("{} (identity {})", p.name, p.identity))
    };
    let protocol = PROTOCOLS.iter().find(|(_, number)| *number == port.protocol);
    let protocol = protocol.map_or(String::new(), |(name, _)| name.to_uppercase());
    let mut text = format!(
        "{}: {} -> {}, {protocol} {}",
        if answer.allowed { "ALLOWED" } else { "DENIED" },
        name(&answer.from),
        name(&answer.to),
        port.number
    );
    if let Some(request) = request {
        text += &format!(", {} {}", request.method, request.path);
    }
    text += "\n\n";
    let mut rows = Vec::new();
    for (side, judgement) in [("egress", &answer.egress), ("ingress", &answer.ingress)] {
        let Some(judgement) = judgement else { continue };
        let mut first = [side.to_owned(), verdict(judgement)];
        for (rule, says) in reasons(judgement, request.is_some()) {
            let [side, verdict] = std::mem::take(&mut first);
            rows.push(vec![side, verdict, rule, says]);
        }
    }
    text + &table(&["SIDE", "VERDICT", "RULE", "SAYS"], &rows)
}

fn decision(judgement: &Judgement) -> &'static str {
    match judgement.decision() {
        Decision::NotJudged => "not judged",
        Decision::Allowed => "allowed",
        Decision::AllowedByRequest => "allowed by request",
        Decision::DeniedByRule => "denied by rule",
        Decision::DeniedByDefault => "denied by default",
        Decision::RequestDenied => "request denied",
        Decision::Unspecified => "not known",
    }
}

fn verdict(judgement: &Judgement) -> String {
    let proof = if judgement.authenticated {
        " if both are proven"
    } else {
        ""
    };
    format!("{}{proof}", decision(judgement))
}

/// What stands behind a verdict: rules, or that there is none.
fn reasons(judgement: &Judgement, of_request: bool) -> Vec<(String, String)> {
    if judgement.decision() == Decision::NotJudged {
        return vec![(
            String::new(),
            "no workload of the mesh: no policy is about it".into(),
        )];
    }
    let mut rows: Vec<_> = judgement
        .rules
        .iter()
        .map(|spoken| (rule(spoken.rule.as_ref()), says(spoken, of_request).to_owned()))
        .collect();
    if rows.is_empty() {
        let selected = judgement.selected_by.iter();
        rows.extend(selected.map(|r| (rule(Some(r)), "selects it, and no rule allows this".to_owned())));
    }
    if rows.is_empty() {
        rows.push((String::new(), "no policy selects it in this direction".into()));
    }
    rows
}

fn says(spoken: &SpokenRule, of_request: bool) -> &'static str {
    match (spoken.deny, spoken.by_request, of_request, spoken.names_request) {
        (true, ..) => "refuses",
        (_, true, true, true) => "allows this request",
        (_, true, true, false) => "allows other requests",
        (_, true, false, _) => "allows the requests that it names",
        _ if spoken.authenticated => "allows who is proven",
        _ => "allows",
    }
}

/// As flows name it.
fn rule(rule: Option<&RuleRef>) -> String {
    rule.map_or(String::new(), |r| {
        format!("{}/{}/{}: {}", r.kind, r.namespace, r.name, r.path)
    })
}

fn value(answer: &ExplainResponse) -> Value {
    let party = |party: &Option<ExplainedParty>| {
        party.as_ref().map(|p| {
            json!({
                "name": p.name, "identity": p.identity, "labels": p.labels, "node": p.node, "address": p.address,
            })
        })
    };
    let reference =
        |r: &RuleRef| json!({"kind": r.kind, "namespace": r.namespace, "name": r.name, "path": r.path});
    let judgement = |judgement: &Option<Judgement>| {
        judgement.as_ref().map(|j| {
            json!({
                "decision": decision(j),
                "authenticationRequired": j.authenticated,
                "policySet": j.policy_set,
                "selectedBy": j.selected_by.iter().map(reference).collect::<Vec<_>>(),
                "rules": j.rules.iter().map(|s| json!({
                    "rule": s.rule.as_ref().map(reference),
                    "deny": s.deny,
                    "authenticationRequired": s.authenticated,
                    "byRequest": s.by_request,
                    "namesRequest": s.names_request,
                })).collect::<Vec<_>>(),
            })
        })
    };
    json!({
        "allowed": answer.allowed,
        "from": party(&answer.from),
        "to": party(&answer.to),
        "egress": judgement(&answer.egress),
        "ingress": judgement(&answer.ingress),
    })
}
