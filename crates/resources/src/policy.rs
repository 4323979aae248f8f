//! Network policies: what their rules are, whichever kind of object wrote them.
//!
//! The difference between a list that is absent and one that is empty is kept ([`Option`]): an absent
//! list of peers with ports means every peer, an empty one means none.

mod cilium;
mod expression;
mod group;
mod http;
mod icmp;
mod kubernetes;
mod names;
mod parts;
mod services;

pub use expression::{ExpressionSet, expression, expressions};
pub use names::NameRule;
pub(crate) use {
    cilium::read as read_cilium, group::read as read_cidr_group, kubernetes::read as read_kubernetes,
};

use crate::selector::LabelSelector;
use ipnet::IpNet;
use std::sync::Arc;

/// More rules about requests at one port are refused.
pub const MAX_HTTP_RULES: usize = 1000;
/// More headers in one of them are refused.
pub const MAX_HEADERS: usize = 32;
/// More names and patterns in one list are refused.
pub const MAX_NAME_RULES: usize = 1000;

/// All rules of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `spec`, then `specs`.
    pub rules: Vec<PolicyRule>,
}

/// One `spec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// The workloads it is about; of the object's namespace unless the object is the cluster's.
    pub endpoint_selector: LabelSelector,
    /// Who may come in.
    pub ingress: Vec<PeerRule>,
    /// Who may not, whatever else allows it.
    pub ingress_deny: Vec<PeerRule>,
    /// Where they may go.
    pub egress: Vec<PeerRule>,
    /// Where they may not, whatever else allows it.
    pub egress_deny: Vec<PeerRule>,
    /// `enableDefaultDeny.ingress`; absent: if there is an ingress section.
    pub default_deny_ingress: Option<bool>,
    /// `enableDefaultDeny.egress`; absent: if there is an egress section.
    pub default_deny_egress: Option<bool>,
}

/// One element of `ingress`, `egress`, `ingressDeny` or `egressDeny`. At most one of `endpoints`,
/// `entities`, `cidrs`, `services` and `names` has elements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerRule {
    /// Where it stands in the object: `ingress[0]`, `specs[1].egressDeny[2]`.
    pub path: String,
    /// `fromEndpoints`, `toEndpoints`.
    pub endpoints: Option<Vec<LabelSelector>>,
    /// `fromEntities`, `toEntities`.
    pub entities: Option<Vec<Entity>>,
    /// `fromCIDR` and `fromCIDRSet`, `toCIDR` and `toCIDRSet`.
    pub cidrs: Option<Vec<CidrRule>>,
    /// `toServices`: what is behind these Services.
    pub services: Option<Vec<ServiceRule>>,
    /// `toFQDNs`: what is outside the cluster at the addresses that these names have.
    pub names: Option<Vec<NameRule>>,
    /// `toPorts`, flattened; absent when no port is named: every port.
    pub ports: Option<Vec<PortRule>>,
    /// `icmps`, flattened; never beside `ports`.
    pub icmps: Option<Vec<IcmpRule>>,
    /// `authentication.mode`.
    pub authentication: Authentication,
}

/// Whether what a rule allows must be proven. What says more counts more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authentication {
    /// The rule says nothing.
    #[default]
    Unsaid,
    /// It need not, also where a wider rule says that it must.
    Disabled,
    /// Both ends must be.
    Required,
}

/// Ranges of addresses with holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrRule {
    /// The ranges.
    pub range: CidrRange,
    /// What of them is not meant.
    pub except: Vec<IpNet>,
}

/// Where the ranges of a [`CidrRule`] are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CidrRange {
    /// Here; host bits are zero.
    Net(IpNet),
    /// In the CiliumCIDRGroup of this name. While there is none, no address is meant.
    Group(String),
    /// In all CiliumCIDRGroups with these labels.
    Groups(LabelSelector),
}

/// A CiliumCIDRGroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CidrGroup {
    /// `externalCIDRs`; host bits are zero.
    pub cidrs: Vec<IpNet>,
}

/// Services that a rule means, of one namespace or, without one, of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRule {
    /// Their namespace.
    pub namespace: Option<String>,
    /// Which of its Services.
    pub which: Services,
}

/// See [`ServiceRule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Services {
    /// `k8sService`: the one of this name.
    Named(String),
    /// `k8sServiceSelector`: those with these labels.
    Labelled(LabelSelector),
}

/// One element of `toPorts[].ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRule {
    /// Within the rule: `toPorts[0].ports[1]`.
    pub path: String,
    /// IANA number; absent for `ANY`.
    pub protocol: Option<u8>,
    /// Which of its ports.
    pub port: Port,
    /// `rules.http`: the requests that may be made there; absent for anything.
    pub http: Option<Arc<[HttpRule]>>,
    /// `rules.dns`: the names that may be asked for there; absent for anything. Never beside `http`.
    pub dns: Option<Arc<[NameRule]>>,
}

/// Ports of a [`PortRule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Every one.
    Any,
    /// First and last, inclusive; the first is not 0 and not above the last.
    Range(u16, u16),
    /// What the callee calls so among the ports of its containers.
    Named(String),
}

/// One element of `icmps[].fields`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpRule {
    /// Within the rule: `icmps[0].fields[1]`.
    pub path: String,
    /// IANA number of the protocol: 1 for IPv4, 58 for IPv6.
    pub protocol: u8,
    /// The message's type.
    pub kind: u8,
}

/// Requests that are meant: all parts must fit, and an absent one fits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpRule {
    /// Regular expression for all of the path, with its query.
    pub path: Option<String>,
    /// Regular expression for all of the method.
    pub method: Option<String>,
    /// Regular expression for all of the host, with its port where the client names it.
    pub host: Option<String>,
    /// Headers that must be there, in lower case, with their value where one is given.
    pub headers: Vec<(String, Option<String>)>,
}

/// A group of peers that has a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Entity {
    All,
    World,
    WorldIpv4,
    WorldIpv6,
    Cluster,
    Host,
    RemoteNode,
    Init,
    Ingress,
    Unmanaged,
    Health,
    KubeApiserver,
    None,
}

impl Entity {
    pub(crate) const NAMES: [(&'static str, Self); 13] = [
        ("all", Self::All),
        ("world", Self::World),
        ("world-ipv4", Self::WorldIpv4),
        ("world-ipv6", Self::WorldIpv6),
        ("cluster", Self::Cluster),
        ("host", Self::Host),
        ("remote-node", Self::RemoteNode),
        ("init", Self::Init),
        ("ingress", Self::Ingress),
        ("unmanaged", Self::Unmanaged),
        ("health", Self::Health),
        ("kube-apiserver", Self::KubeApiserver),
        ("none", Self::None),
    ];
}
