//! Why somebody may or may not reach somebody: asked of the sets that nodes have.

use super::{Key, Kind, World, workloads::Workload};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;
use weft_model::NumericIdentity;
use weft_policy_engine::{
    Authentication, DenyReason, Direction, PeerRef, RequestFacts, Verdict, wire::rule_to_wire,
};
use weft_proto::weft::policy::v1 as pb;

/// Longer texts in a request are refused.
const MAX_TEXT: usize = 8 * 1024;
/// More headers are.
const MAX_HEADERS: usize = 100;
/// As many workloads are named where a name means several.
const NAMED: usize = 5;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExplainError {
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("{field}: {problem}")]
    NotFound { field: &'static str, problem: String },
    #[error("{field}: {name} means {count} workloads with different policies; name one of {examples}")]
    Ambiguous {
        field: &'static str,
        name: String,
        count: usize,
        examples: String,
    },
}

/// One end.
enum Party<'w> {
    Workload(&'w Workload),
    /// Workloads that are not here now, by what is known of them.
    Identity(NumericIdentity),
    /// A node, which is `host` to its own workloads and `remote-node` to others.
    Node(String, Option<IpAddr>),
    Outside(Option<IpAddr>),
}

impl Party<'_> {
    /// As the policy of a workload on `node` sees it.
    fn seen_from(&self, node: Option<&str>) -> PeerRef {
        let (identity, address) = match self {
            Self::Workload(workload) => (workload.identity, first_address(workload)),
            Self::Identity(identity) => (*identity, None),
            Self::Node(name, address) if node == Some(name) => (NumericIdentity::HOST, *address),
            Self::Node(_, address) => (NumericIdentity::REMOTE_NODE, *address),
            Self::Outside(address) => (NumericIdentity::WORLD, *address),
        };
        PeerRef { identity, address }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::Workload(workload) => Some(&workload.message.node),
            _ => None,
        }
    }
}

fn first_address(workload: &Workload) -> Option<IpAddr> {
    workload.message.addresses.first().and_then(|a| a.parse().ok())
}

impl World {
    pub(crate) fn explain(&self, asked: &pb::ExplainRequest) -> Result<pb::ExplainResponse, ExplainError> {
        let invalid = |field, problem: String| ExplainError::Invalid { field, problem };
        let protocol = match asked.protocol {
            0 => 6,
            other => u8::try_from(other).map_err(|_| invalid("protocol", "must be 0 to 255".into()))?,
        };
        let most = if matches!(protocol, 1 | 58) { 255 } else { 65_535 };
        let number = u16::try_from(asked.port).ok().filter(|n| *n <= most);
        let number = number.ok_or_else(|| invalid("port", format!("must be 0 to {most}")))?;
        // A message's type stands for a port.
        let port = number + u16::from(matches!(protocol, 1 | 58));
        let headers = headers(asked.request.as_ref())?;
        let request = asked.request.as_ref().map(|request| RequestFacts {
            method: &request.method,
            path: &request.path,
            host: &request.host,
            headers: &headers,
        });
        if request.is_some() && protocol != 6 {
            return Err(invalid("request", "is made over TCP only".into()));
        }
        let (from, to) = (self.party("from", &asked.from)?, self.party("to", &asked.to)?);
        let judge = |own: &Party<'_>, other: &Party<'_>, direction| {
            let Party::Workload(workload) = own else {
                return pb::Judgement {
                    decision: pb::Decision::NotJudged.into(),
                    ..Default::default()
                };
            };
            let peer = other.seen_from(own.node());
            self.judge_for(workload, peer, direction, (protocol, port), request.as_ref())
        };
        let egress = judge(&from, &to, Direction::Egress);
        let mut ingress = judge(&to, &from, Direction::Ingress);
        if !is_allowed(ingress.decision())
            && protocol == 6
            && let Party::Workload(to) = &to
            && let Some(rule) = self.speaks_as(&to.message, number, &from)
        {
            ingress.decision = pb::Decision::Allowed.into();
            ingress.rules = vec![pb::SpokenRule {
                rule: Some(rule),
                ..Default::default()
            }];
        }
        Ok(pb::ExplainResponse {
            allowed: [&egress, &ingress].iter().all(|j| is_allowed(j.decision())),
            from: Some(self.told(&from, to.node())),
            to: Some(self.told(&to, from.node())),
            egress: Some(egress),
            ingress: Some(ingress),
        })
    }

    /// The app behind a shared endpoint may speak as itself, whatever policies say: what names it.
    fn speaks_as(&self, to: &pb::Workload, port: u16, from: &Party<'_>) -> Option<pb::RuleRef> {
        let shared = to.shared.as_ref().filter(|_| super::shared::speaks_at(port))?;
        let (namespace, name) = Self::service_behind(shared, &to.namespace)?;
        let key = Key::new(Kind::Service, format!("{namespace}/{name}"));
        let made = self.objects.is_made(&(namespace.to_owned(), name.to_owned()));
        let is = match from {
            Party::Identity(identity) => made && *identity == NumericIdentity::INGRESS,
            Party::Workload(from) => match &self.objects.resource(&key)?.body {
                Some(pb::resource::Body::Service(service)) => service.endpoints.contains(&from.message.id),
                _ => false,
            },
            Party::Node(..) | Party::Outside(_) => false,
        };
        is.then(|| pb::RuleRef {
            kind: "Service".into(),
            namespace: to.namespace.clone(),
            name: shared.service.clone(),
            path: "metadata.annotations.weft.dev/remote".into(),
        })
    }

    fn judge_for(
        &self,
        workload: &Workload,
        peer: PeerRef,
        direction: Direction,
        (protocol, port): (u8, u16),
        request: Option<&RequestFacts<'_>>,
    ) -> pb::Judgement {
        let Some(set) = self.policies.set(&workload.governed()) else {
            return pb::Judgement::default();
        };
        let found = set.explain(direction, peer, protocol, port, request);
        let (decision, authenticated) = match found.verdict {
            Verdict::Allowed {
                redirect: true, auth, ..
            } => (pb::Decision::AllowedByRequest, auth),
            Verdict::Allowed { auth, .. } => (pb::Decision::Allowed, auth),
            Verdict::Denied { reason, .. } => match reason {
                DenyReason::PolicyDeny => (pb::Decision::DeniedByRule, false),
                DenyReason::PolicyDenied => (pb::Decision::DeniedByDefault, false),
                DenyReason::RequestDenied => (pb::Decision::RequestDenied, false),
            },
        };
        let policy = match direction {
            Direction::Ingress => set.ingress(),
            Direction::Egress => set.egress(),
        };
        let rules = found.spoken.iter().map(|spoken| pb::SpokenRule {
            rule: Some(rule_to_wire(&spoken.entry.rule)),
            deny: spoken.entry.deny,
            authenticated: spoken.entry.auth == Authentication::Required && !spoken.entry.deny,
            by_request: spoken.entry.redirect && !spoken.entry.deny,
            names_request: spoken.means_request == Some(true),
        });
        pb::Judgement {
            decision: decision.into(),
            authenticated,
            rules: rules.collect(),
            selected_by: policy.selected_by.iter().map(|r| rule_to_wire(r)).collect(),
            policy_set: set.id().to_owned(),
        }
    }

    /// Finds whom a text means.
    fn party(&self, field: &'static str, text: &str) -> Result<Party<'_>, ExplainError> {
        if text.is_empty() || text.len() > 512 {
            let problem = "must be a workload, an identity, an address or a name such as world".into();
            return Err(ExplainError::Invalid { field, problem });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return self.party_at(field, address.to_canonical());
        }
        if let Ok(number) = text.parse::<u32>() {
            return self.party_of(field, NumericIdentity(number));
        }
        let name = text.strip_prefix("reserved:").unwrap_or(text);
        let reserved = (1..256)
            .map(NumericIdentity)
            .find(|n| n.reserved_name() == Some(name));
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let of_namespace = self.workloads.in_namespace(namespace);
        let found: Vec<&Workload> = of_namespace
            .filter_map(|id| self.workloads.get(id))
            .filter(|w| w.message.app_id == name || w.message.name == name)
            .collect();
        match (found.first(), reserved) {
            (Some(first), _) => {
                let governed = first.governed();
                if found.iter().all(|w| w.governed() == governed) {
                    return Ok(Party::Workload(first));
                }
                let examples = found.iter().map(|w| format!("{namespace}/{}", w.message.name));
                let examples: Vec<String> = examples.take(NAMED).collect();
                Err(ExplainError::Ambiguous {
                    field,
                    name: text.to_owned(),
                    count: found.len(),
                    examples: examples.join(", "),
                })
            }
            (None, Some(number)) => self.party_of(field, number),
            (None, None) => Err(ExplainError::NotFound {
                field,
                problem: format!("no workload of namespace {namespace} has the app-id or the name {name:?}"),
            }),
        }
    }

    fn party_of(&self, field: &'static str, number: NumericIdentity) -> Result<Party<'_>, ExplainError> {
        if number == NumericIdentity::WORLD {
            return Ok(Party::Outside(None));
        }
        if !number.is_allocated() && number.reserved_name().is_some() {
            return Ok(Party::Identity(number));
        }
        let mut here = self.workloads.with_identity(number);
        let found = here.next().and_then(|id| self.workloads.get(id));
        match (found, self.workloads.labels(number)) {
            (Some(workload), _) => Ok(Party::Workload(workload)),
            // Nobody has it now; others' policies may still name it.
            (None, Some(_)) => Ok(Party::Identity(number)),
            (None, None) => Err(ExplainError::NotFound {
                field,
                problem: format!("no identity has the number {number}"),
            }),
        }
    }

    fn party_at(&self, field: &'static str, address: IpAddr) -> Result<Party<'_>, ExplainError> {
        if let Some(workload) = self.workloads.at(address) {
            return Ok(Party::Workload(workload));
        }
        if let Some((namespace, name)) = self.objects.service_at(address) {
            let problem = format!(
                "{address} is the address of Service {namespace}/{name}; policy is about who is behind it: name one of \
                 its workloads"
            );
            return Err(ExplainError::Invalid { field, problem });
        }
        Ok(match self.node_facts.place_of(address) {
            Some((node, true)) => Party::Node(node, Some(address)),
            // Among a node's pods, and nobody's yet.
            Some((_, false)) => Party::Identity(NumericIdentity::CLUSTER_UNKNOWN),
            None => Party::Outside(Some(address)),
        })
    }

    fn told(&self, party: &Party<'_>, seen_by: Option<&str>) -> pb::ExplainedParty {
        let PeerRef { identity, address } = party.seen_from(seen_by);
        let name = match party {
            Party::Workload(w) => format!("{}/{}", w.message.namespace, w.message.name),
            Party::Node(node, _) => format!("node {node}"),
            Party::Identity(_) | Party::Outside(_) => match (identity.reserved_name(), address) {
                (Some(name), Some(address)) => format!("{name} ({address})"),
                (Some(name), None) => name.to_owned(),
                (None, _) => format!("identity {identity}"),
            },
        };
        let labels = self.workloads.labels(identity);
        let labels = labels.map(|l| l.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
        pb::ExplainedParty {
            name,
            identity: identity.0,
            labels: labels.unwrap_or_default(),
            node: party.node().unwrap_or_default().to_owned(),
            address: address.map(|a| a.to_string()).unwrap_or_default(),
        }
    }
}

fn is_allowed(decision: pb::Decision) -> bool {
    use pb::Decision::{Allowed, AllowedByRequest, NotJudged};
    matches!(decision, NotJudged | Allowed | AllowedByRequest)
}

fn headers(request: Option<&pb::ExplainedRequest>) -> Result<HeaderMap, ExplainError> {
    let mut map = HeaderMap::new();
    let Some(request) = request else {
        return Ok(map);
    };
    let invalid = |problem: String| ExplainError::Invalid {
        field: "request",
        problem,
    };
    let texts = [&request.method, &request.path, &request.host];
    if texts.iter().any(|t| t.len() > MAX_TEXT) || request.headers.len() > MAX_HEADERS {
        return Err(invalid("is too large".into()));
    }
    let problem = |name: &str| invalid(format!("{name:?} and its value are no header"));
    for header in &request.headers {
        let name: HeaderName = header.name.parse().map_err(|_| problem(&header.name))?;
        let value = header.value.as_deref().unwrap_or_default();
        let value = HeaderValue::from_str(value).map_err(|_| problem(&header.name))?;
        map.append(name, value);
    }
    Ok(map)
}
