//! From rules, a workload's labels and the known identities to a [`PolicySet`].

use crate::{
    CidrPeer, Cluster, DirectionPolicy, Entry, NamedPorts, Peers, PolicySet, Ports, RuleRef,
    fault::{Fault, made},
    index::WITH_PORTS,
    selector::{is_widened, selects_peer, selects_subject},
};
use std::{collections::BTreeMap, sync::Arc};
use weft_model::{Labels, NumericIdentity};
use weft_resources::{
    Authentication, CidrRange, Entity, HttpRule, IcmpRule, NameRule, PeerRule, PolicyRule, Port, PortRule,
};

/// What `world` means: outside the cluster, by either address family.
const WORLD: [NumericIdentity; 3] = [NumericIdentity::WORLD, NumericIdentity(9), NumericIdentity(10)];

/// What `cluster` means besides workloads.
const CLUSTER: [NumericIdentity; 8] = [
    NumericIdentity::HOST,
    NumericIdentity::UNMANAGED,
    NumericIdentity::HEALTH,
    NumericIdentity::INIT,
    NumericIdentity::REMOTE_NODE,
    NumericIdentity::KUBE_APISERVER,
    NumericIdentity::INGRESS,
    NumericIdentity::CLUSTER_UNKNOWN,
];

/// A policy object, as far as the engine reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyObject {
    /// `CiliumNetworkPolicy`, `NetworkPolicy`, `CiliumClusterwideNetworkPolicy`.
    pub kind: String,
    /// Its namespace: of the workloads it is about and, unless it says otherwise, of their peers. Empty for
    /// an object of the cluster, which is about every workload.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its rules.
    pub rules: Vec<PolicyRule>,
}

impl PolicyObject {
    /// Whether it is about a workload with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.rules
            .iter()
            .any(|r| selects_subject(&r.endpoint_selector, &self.namespace, labels))
    }

    fn rule(&self, path: String) -> Arc<RuleRef> {
        let (kind, namespace, name) = (self.kind.clone(), self.namespace.clone(), self.name.clone());
        Arc::new(RuleRef {
            kind,
            namespace,
            name,
            path,
        })
    }

    fn any_peer_rule(&self, is: impl Fn(&PeerRule) -> bool) -> bool {
        let sections = |r: &PolicyRule| {
            let all = [&r.ingress, &r.ingress_deny, &r.egress, &r.egress_deny];
            all.into_iter().flatten().any(&is)
        };
        self.rules.iter().any(sections)
    }

    /// Whether a workload with these labels is among the peers it names: if not, that workload's coming
    /// and going does not change what the object compiles to.
    pub fn names_peer(&self, labels: &Labels, cluster: &Cluster) -> bool {
        self.any_peer_rule(|peer| {
            let by_label = |s| selects_peer(s, &self.namespace, labels);
            let entities = || peer.entities.iter().flatten();
            peer.endpoints.iter().flatten().any(by_label)
                || entities().any(|e| *e == Entity::Cluster)
                || peer.services.iter().flatten().any(|s| cluster.is_behind(s, labels))
                // Its port of that name becomes one that anybody's may be.
                || names_ports(peer) && (entities().any(|e| *e == Entity::All) || names_nobody(peer))
        })
    }

    /// Whether workloads of other namespaces than its own may be among the peers it names.
    pub fn names_other_namespaces(&self) -> bool {
        self.namespace.is_empty()
            || self.any_peer_rule(|peer| {
                let entities = || peer.entities.iter().flatten();
                peer.endpoints.iter().flatten().any(is_widened)
                    || entities().any(|e| *e == Entity::Cluster)
                    || peer.services.is_some()
                    || names_ports(peer) && (entities().any(|e| *e == Entity::All) || names_nobody(peer))
            })
    }

    /// Whether it names ports of peers by name.
    pub fn names_ports_of_peers(&self) -> bool {
        let sections = |r: &PolicyRule| r.egress.iter().chain(&r.egress_deny).any(names_ports);
        self.rules.iter().any(sections)
    }

    /// Whether it names groups of address ranges.
    pub fn names_groups(&self) -> bool {
        let is_group = |r: &weft_resources::CidrRule| !matches!(r.range, CidrRange::Net(_));
        self.any_peer_rule(|peer| peer.cidrs.iter().flatten().any(is_group))
    }

    /// Whether it names Services.
    pub fn names_services(&self) -> bool {
        self.any_peer_rule(|peer| peer.services.is_some())
    }
}

fn names_nobody(rule: &PeerRule) -> bool {
    rule.endpoints.is_none()
        && rule.entities.is_none()
        && rule.cidrs.is_none()
        && rule.services.is_none()
        && rule.names.is_none()
}

fn names_ports(rule: &PeerRule) -> bool {
    let mut ports = rule.ports.iter().flatten();
    ports.any(|p| matches!(p.port, Port::Named(_)))
}

/// Whose policy is compiled.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its labels, those of its namespace among them.
    pub labels: &'a Labels,
    /// Its ports by name.
    pub ports: &'a NamedPorts,
}

impl<'a> From<&'a Labels> for Subject<'a> {
    /// One without names for its ports.
    fn from(labels: &'a Labels) -> Self {
        static NONE: NamedPorts = NamedPorts::new();
        Self { labels, ports: &NONE }
    }
}

/// Compiles what all `objects` together say about a workload. Equal results have equal ids, whatever the
/// order of the objects.
pub fn compile<'a, 's>(
    objects: impl IntoIterator<Item = &'a PolicyObject>,
    subject: impl Into<Subject<'s>>,
    cluster: &Cluster,
) -> PolicySet {
    let subject = subject.into();
    let (mut ingress, mut egress) = (DirectionPolicy::default(), DirectionPolicy::default());
    for object in objects {
        for rule in &object.rules {
            if !selects_subject(&rule.endpoint_selector, &object.namespace, subject.labels) {
                continue;
            }
            // Ports have their names at the callee: here for what comes in, at each peer for what goes out.
            let side = |into: &mut DirectionPolicy, allow: &[PeerRule], deny: &[PeerRule], default, name| {
                let default = Option::filter(default, |_| !made(Fault::DefaultDenyIsNotOverridden));
                if default.unwrap_or(!allow.is_empty() || !deny.is_empty()) {
                    into.default_deny = true;
                    into.selected_by.push(object.rule(String::from(name)));
                }
                let own = (name == "ingress" || made(Fault::NamesAreTheSubjects)).then_some(subject.ports);
                for (peers, deny) in [(allow, false), (deny, true)] {
                    for peer in peers {
                        add(into, object, peer, deny, own, cluster);
                    }
                }
            };
            side(
                &mut ingress,
                &rule.ingress,
                &rule.ingress_deny,
                rule.default_deny_ingress,
                "ingress",
            );
            side(
                &mut egress,
                &rule.egress,
                &rule.egress_deny,
                rule.default_deny_egress,
                "egress",
            );
        }
    }
    PolicySet::new(ingress, egress)
}

fn add(
    into: &mut DirectionPolicy,
    object: &PolicyObject,
    rule: &PeerRule,
    deny: bool,
    own: Option<&NamedPorts>,
    cluster: &Cluster,
) {
    let Some(peers) = peers(rule, &object.namespace, cluster) else {
        return;
    };
    for line in lines(rule) {
        for (protocol, ports, peers) in resolve(&line, &peers, own, cluster) {
            let (http, dns) = (line.http.clone(), line.dns.clone());
            into.entries.push(Entry {
                deny: deny && !made(Fault::DenyRuleAllows),
                rule: object.rule(line.path.clone()),
                protocol,
                ports,
                redirect: http.is_some() || dns.is_some(),
                http: http.unwrap_or_default(),
                dns: dns.unwrap_or_default(),
                auth: if made(Fault::AuthenticationIsForgotten) {
                    Authentication::Unsaid
                } else {
                    rule.authentication
                },
                peers,
            });
        }
    }
}

/// What a rule lets its peers do.
struct Line<'r> {
    path: String,
    protocol: Option<u8>,
    port: Named<'r>,
    /// The requests, if these are judged.
    http: Option<Arc<[HttpRule]>>,
    /// The names that may be asked for, if these are judged.
    dns: Option<Arc<[NameRule]>>,
}

enum Named<'r> {
    Ports(Ports),
    Name(&'r str),
}

fn lines(rule: &PeerRule) -> Vec<Line<'_>> {
    let at = |part: &str| format!("{}.{part}", rule.path);
    let line = |path, protocol, ports| Line {
        path,
        protocol,
        port: Named::Ports(ports),
        http: None,
        dns: None,
    };
    if let Some(messages) = &rule.icmps {
        let message = |m: &IcmpRule| {
            let port = u16::from(m.kind) + if made(Fault::MessageTypeIsOffByOne) { 2 } else { 1 };
            line(at(&m.path), Some(m.protocol), Ports::Range(port, port))
        };
        return messages.iter().map(message).collect();
    }
    let Some(ports) = rule.ports.as_ref().filter(|_| !made(Fault::PortsAreIgnored)) else {
        return vec![line(rule.path.clone(), None, Ports::Any)];
    };
    let all = ports.iter().flat_map(|port| {
        let http = port.http.clone().filter(|_| !made(Fault::RequestsAreForgotten));
        let dns = port.dns.clone().filter(|_| !made(Fault::QueriesAreForgotten));
        let one = move |(protocol, shape)| Line {
            path: at(&port.path),
            protocol,
            port: shape,
            http: http.clone(),
            dns: dns.clone(),
        };
        shapes(port).into_iter().map(one)
    });
    all.collect()
}

/// A port without a protocol stands for each protocol that has ports.
fn shapes(port: &PortRule) -> Vec<(Option<u8>, Named<'_>)> {
    match (port.protocol, &port.port) {
        (protocol, Port::Any) => vec![(protocol, Named::Ports(Ports::Any))],
        (protocol, Port::Named(name)) => vec![(protocol, Named::Name(name))],
        (Some(protocol), Port::Range(first, last)) => {
            vec![(Some(protocol), Named::Ports(Ports::Range(*first, *last)))]
        }
        (None, Port::Range(first, last)) => WITH_PORTS
            .iter()
            .filter(|p| **p == 6 || !made(Fault::AnyProtocolIsTcp))
            .map(|p| (Some(*p), Named::Ports(Ports::Range(*first, *last))))
            .collect(),
    }
}

/// A line by numbers: as it is, or for each port that the callee, who is the subject or each of the peers,
/// calls by the name. A name that nobody has means no port.
fn resolve(
    line: &Line<'_>,
    peers: &Peers,
    own: Option<&NamedPorts>,
    cluster: &Cluster,
) -> Vec<(Option<u8>, Ports, Peers)> {
    let name = match line.port {
        Named::Ports(ports) => return vec![(line.protocol, ports, peers.clone())],
        Named::Name(name) => name,
    };
    let meant = |(protocol, _): &&(u8, u16)| {
        line.protocol.is_none_or(|wanted| wanted == *protocol) || made(Fault::NamesAreOfAnyProtocol)
    };
    if let Some(own) = own {
        let found = own.get(name).into_iter().flatten().filter(meant);
        return found
            .map(|(protocol, port)| (Some(*protocol), Ports::Range(*port, *port), peers.clone()))
            .collect();
    }
    let mut by_port: BTreeMap<(u8, u16), Vec<NumericIdentity>> = BTreeMap::new();
    for (identity, ports) in cluster.ports() {
        if !peers.any && !peers.identities.contains(&identity) {
            continue;
        }
        for port in ports.get(name).into_iter().flatten().filter(meant) {
            by_port.entry(*port).or_default().push(identity);
        }
    }
    if by_port.is_empty() {
        // One for nobody: that a rule asks who it is must be seen while nobody is known to have such a port.
        by_port.insert((6, 1), Vec::new());
    }
    let entry = |((protocol, port), identities)| {
        let peers = Peers {
            identities,
            ..Peers::default()
        };
        (Some(protocol), Ports::Range(port, port), peers)
    };
    by_port.into_iter().map(entry).collect()
}

/// Whom a rule means; nothing when it means nobody.
fn peers(rule: &PeerRule, namespace: &str, cluster: &Cluster) -> Option<Peers> {
    // A list that is there and empty selects nobody, whatever stands beside it.
    let empty = rule.endpoints.as_ref().is_some_and(Vec::is_empty)
        || rule.entities.as_ref().is_some_and(Vec::is_empty)
        || rule.cidrs.as_ref().is_some_and(Vec::is_empty)
        || rule.services.as_ref().is_some_and(Vec::is_empty)
        || rule.names.as_ref().is_some_and(Vec::is_empty);
    if empty && !made(Fault::EmptyListMeansAnybody) {
        return None;
    }
    if names_nobody(rule) {
        // Ports of anybody; a rule that names neither peers nor ports only turns on default deny.
        return (rule.ports.is_some() || rule.icmps.is_some()).then(Peers::any);
    }
    let mut peers = Peers::default();
    if let Some(selectors) = &rule.endpoints {
        let is_meant = |labels: &Labels| selectors.iter().any(|s| selects_peer(s, namespace, labels));
        // Where every selector is about the policy's own namespace, the label sets of all others need not be
        // looked at: a compile of everything would compare each rule with each of them.
        if namespace.is_empty() || selectors.iter().any(is_widened) {
            let known = cluster.iter().chain(cluster.reserved());
            let meant = known.filter(|(_, labels)| is_meant(labels));
            peers.identities.extend(meant.map(|(id, _)| id));
        } else {
            let meant = cluster
                .of_namespace(namespace)
                .filter(|(_, labels)| is_meant(labels));
            peers.identities.extend(meant.map(|(id, _)| id));
        }
        let [v4, v6] = cluster.outside();
        let meant = |labels| {
            selectors.iter().any(|s| selects_peer(s, namespace, labels))
                && !made(Fault::WorldByLabelIsForgotten)
        };
        outside(&mut peers, meant(v4), meant(v6));
    }
    for entity in rule.entities.iter().flatten() {
        add_entity(&mut peers, *entity, cluster);
    }
    for service in rule.services.iter().flatten() {
        let meant = cluster
            .iter()
            .filter(|(_, labels)| cluster.is_behind(service, labels));
        peers.identities.extend(meant.map(|(id, _)| id));
    }
    peers.names.extend(rule.names.iter().flatten().cloned());
    for cidr in rule.cidrs.iter().flatten() {
        for range in cluster.ranges(&cidr.range) {
            let within = cidr
                .except
                .iter()
                .filter(|hole| range.contains(*hole) || hole.contains(&range));
            peers.cidrs.push(CidrPeer {
                cidr: range,
                except: if made(Fault::HolesAreForgotten) {
                    Vec::new()
                } else {
                    within.copied().collect()
                },
            });
        }
    }
    // Selectors that select nobody known today stay: who comes tomorrow is then no new rule.
    Some(peers)
}

fn add_entity(peers: &mut Peers, entity: Entity, cluster: &Cluster) {
    let one = match entity {
        Entity::All => {
            peers.any = true;
            return;
        }
        Entity::None => return,
        Entity::World => return outside(peers, true, true),
        Entity::WorldIpv4 => return outside(peers, true, made(Fault::WorldIpv4IsWorld)),
        Entity::WorldIpv6 => return outside(peers, false, true),
        Entity::Cluster => {
            let known = CLUSTER
                .iter()
                .filter(|id| **id != NumericIdentity::CLUSTER_UNKNOWN || !made(Fault::UnknownIsNotInCluster));
            peers.identities.extend(known);
            peers.identities.extend(cluster.iter().map(|(id, _)| id));
            return;
        }
        Entity::Host => NumericIdentity::HOST,
        Entity::RemoteNode => NumericIdentity::REMOTE_NODE,
        Entity::Init => NumericIdentity::INIT,
        Entity::Ingress => NumericIdentity::INGRESS,
        Entity::Unmanaged => NumericIdentity::UNMANAGED,
        Entity::Health => NumericIdentity::HEALTH,
        Entity::KubeApiserver => NumericIdentity::KUBE_APISERVER,
    };
    peers.identities.push(one);
}

/// Adds what is outside the cluster, by IPv4, by IPv6 or altogether. One family is told from the other by
/// addresses: as a range, which matches outside only.
fn outside(peers: &mut Peers, v4: bool, v6: bool) {
    let (number, cidr) = match (v4, v6) {
        (false, false) => return,
        (true, true) => return peers.identities.extend(WORLD),
        (true, false) => (WORLD[1], ipnet::Ipv4Net::default().into()),
        (false, true) => (WORLD[2], ipnet::Ipv6Net::default().into()),
    };
    peers.identities.push(number);
    let except = Vec::new();
    peers.cidrs.push(CidrPeer { cidr, except });
}
