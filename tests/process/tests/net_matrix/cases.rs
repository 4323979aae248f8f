//! The cases: what each port stands for, who gets through, and the rules that say so.

use std::net::IpAddr;

/// What each port stands for, and who gets through.
pub struct Case {
    pub port: u16,
    pub what: &'static str,
    /// A workload with the label.
    workload: Verdict,
    /// A host that no mesh knows.
    outside: Verdict,
}

impl Case {
    pub fn of(&self, who: Who) -> Verdict {
        match who {
            Who::Workload => self.workload,
            Who::Outside => self.outside,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Workload,
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// By the rule with this word in its text.
    Let(&'static str),
    /// With this reason, and this word in the rule's text.
    Drop(&'static str, &'static str),
    /// Let through under audit, and told with what it would be dropped for.
    Audit(&'static str, &'static str),
}

impl Verdict {
    /// The same for whom policy is under audit.
    pub fn under_audit(self) -> Self {
        match self {
            Self::Drop(reason, rule) => Self::Audit(reason, rule),
            other => other,
        }
    }

    pub fn passes(self) -> bool {
        !matches!(self, Self::Drop(..))
    }
}

pub const NOT_ALLOWED: Verdict = Verdict::Drop("POLICY_DENIED", "");
const DENIED: Verdict = Verdict::Drop("POLICY_DENY", "matrix");
const UNPROVEN: Verdict = Verdict::Drop("AUTH_REQUIRED", "matrix");
pub const LET: Verdict = Verdict::Let("matrix");

const fn case(port: u16, what: &'static str, workload: Verdict, outside: Verdict) -> Case {
    Case {
        port,
        what,
        workload,
        outside,
    }
}

/// By their offset from the direction's first port.
pub const CASES: &[Case] = &[
    case(1, "labels", LET, NOT_ALLOWED),
    case(2, "deny beats allow", DENIED, LET),
    case(3, "entity world", NOT_ALLOWED, LET),
    case(4, "entity cluster", LET, NOT_ALLOWED),
    case(5, "CIDR with an exception", NOT_ALLOWED, NOT_ALLOWED),
    case(6, "CIDR without the exception", NOT_ALLOWED, LET),
    case(7, "no rule", NOT_ALLOWED, NOT_ALLOWED),
    case(8, "labels and authentication", LET, NOT_ALLOWED),
    case(9, "authentication of anybody", LET, UNPROVEN),
    case(10, "below the range", NOT_ALLOWED, NOT_ALLOWED),
    case(11, "first of the range", LET, LET),
    case(13, "last of the range", LET, LET),
    case(14, "above the range", NOT_ALLOWED, NOT_ALLOWED),
];
pub const INGRESS: u16 = 2000;
/// The same of those under audit: processes share the node's addresses, not their ports.
pub const AUDITED: u16 = 4000;
pub const EGRESS: u16 = 3000;

/// One direction's rules; `Endpoints`, `Entities`, `CIDRSet` are prefixed by from or to.
pub fn rules(way: &str, first: u16, outside: &[IpAddr]) -> String {
    let key = if way == "ingress" { "from" } else { "to" };
    let ports = |port: u16| format!("toPorts: [{{ports: [{{port: \"{}\"}}]}}]", first + port);
    let cidrs = |except: bool| {
        let each = outside.iter().map(|a| {
            let (net, own) = match a {
                IpAddr::V4(_) => ("172.30.0.0/16", 32),
                IpAddr::V6(_) => ("fd00:30::/64", 128),
            };
            if except {
                format!("{{cidr: \"{net}\", except: [\"{a}/{own}\"]}}")
            } else {
                format!("{{cidr: \"{net}\"}}")
            }
        });
        each.collect::<Vec<_>>().join(", ")
    };
    format!(
        "  {way}:
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      {p1}
    - {key}Entities: [all]
      {p2}
    - {key}Entities: [world]
      {p3}
    - {key}Entities: [cluster]
      {p4}
    - {key}CIDRSet: [{except}]
      {p5}
    - {key}CIDRSet: [{plain}]
      {p6}
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      authentication: {{mode: required}}
      {p8}
    - {key}Entities: [all]
      authentication: {{mode: required}}
      {p9}
    - {key}Entities: [all]
      toPorts: [{{ports: [{{port: \"{low}\", endPort: {high}}}]}}]
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      icmps: [{{fields: [{{family: IPv4, type: 8}}, {{family: IPv6, type: 128}}]}}]
  {way}Deny:
    - {key}Endpoints: [{{matchLabels: {{role: peer}}}}]
      {p2}
",
        p1 = ports(1),
        p2 = ports(2),
        p3 = ports(3),
        p4 = ports(4),
        p5 = ports(5),
        p6 = ports(6),
        p8 = ports(8),
        p9 = ports(9),
        except = cidrs(true),
        plain = cidrs(false),
        low = first + 11,
        high = first + 13,
    )
}
