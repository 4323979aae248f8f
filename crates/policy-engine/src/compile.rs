//! From rules, a workload's labels and the known identities to a [`PolicySet`].

use crate::{
    CidrPeer, DirectionPolicy, Entry, Peers, PolicySet, Ports, RuleRef,
    fault::{Fault, made},
    index::WITH_PORTS,
    selector::{selects_peer, selects_subject},
};
use std::{collections::BTreeMap, sync::Arc};
use weft_model::{Labels, NumericIdentity};
use weft_resources::{Entity, HttpRule, IcmpRule, PeerRule, PolicyRule, PortRule};

/// The numbers below 256 of peers in the cluster that label selectors can match, by their label
/// `reserved:<name>`. Peers outside have theirs by their address: see [`outside`].
const RESERVED: [(NumericIdentity, &str); 7] = [
    (NumericIdentity::HOST, "reserved:host"),
    (NumericIdentity::UNMANAGED, "reserved:unmanaged"),
    (NumericIdentity::HEALTH, "reserved:health"),
    (NumericIdentity::INIT, "reserved:init"),
    (NumericIdentity::REMOTE_NODE, "reserved:remote-node"),
    (NumericIdentity::KUBE_APISERVER, "reserved:kube-apiserver"),
    (NumericIdentity::INGRESS, "reserved:ingress"),
];

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

    /// Whether a workload with these labels is among the peers it names: if not, that workload's coming
    /// and going does not change what the object compiles to.
    pub fn names_peer(&self, labels: &Labels) -> bool {
        let sections = |r: &PolicyRule| {
            let all = [&r.ingress, &r.ingress_deny, &r.egress, &r.egress_deny];
            all.into_iter().flatten().any(|peer| {
                let by_label = peer
                    .endpoints
                    .iter()
                    .flatten()
                    .any(|s| selects_peer(s, &self.namespace, labels));
                by_label || peer.entities.iter().flatten().any(|e| *e == Entity::Cluster)
            })
        };
        self.rules.iter().any(sections)
    }
}

/// Identities and their labels, the reserved ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identities {
    allocated: BTreeMap<NumericIdentity, Labels>,
    reserved: Vec<(NumericIdentity, Labels)>,
    /// The labels of what is outside: by IPv4, by IPv6.
    outside: [Labels; 2],
}

impl Default for Identities {
    fn default() -> Self {
        let labels = |names: &[&str]| names.iter().map(|n| (String::from(*n), String::new())).collect();
        Self {
            allocated: BTreeMap::new(),
            reserved: RESERVED
                .iter()
                .map(|(id, label)| (*id, labels(&[label])))
                .collect(),
            outside: ["reserved:world-ipv4", "reserved:world-ipv6"]
                .map(|family| labels(&["reserved:world", family])),
        }
    }
}

impl Identities {
    /// Adds or replaces one.
    pub fn insert(&mut self, id: NumericIdentity, labels: Labels) {
        self.allocated.insert(id, labels);
    }

    /// Removes one.
    pub fn remove(&mut self, id: NumericIdentity) {
        self.allocated.remove(&id);
    }

    /// The labels of an allocated one.
    pub fn get(&self, id: NumericIdentity) -> Option<&Labels> {
        self.allocated.get(&id)
    }

    /// The allocated ones, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.allocated.iter().map(|(id, labels)| (*id, labels))
    }
}

impl FromIterator<(NumericIdentity, Labels)> for Identities {
    fn from_iter<T: IntoIterator<Item = (NumericIdentity, Labels)>>(iter: T) -> Self {
        Self {
            allocated: iter.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// Compiles what all `objects` together say about a workload with the labels `subject`. Equal results
/// have equal ids, whatever the order of the objects.
pub fn compile<'a>(
    objects: impl IntoIterator<Item = &'a PolicyObject>,
    subject: &Labels,
    identities: &Identities,
) -> PolicySet {
    let (mut ingress, mut egress) = (DirectionPolicy::default(), DirectionPolicy::default());
    for object in objects {
        for rule in &object.rules {
            if !selects_subject(&rule.endpoint_selector, &object.namespace, subject) {
                continue;
            }
            let side = |into: &mut DirectionPolicy, allow: &[PeerRule], deny: &[PeerRule], default, name| {
                let default = Option::filter(default, |_| !made(Fault::DefaultDenyIsNotOverridden));
                if default.unwrap_or(!allow.is_empty() || !deny.is_empty()) {
                    into.default_deny = true;
                    into.selected_by.push(object.rule(String::from(name)));
                }
                for (peers, deny) in [(allow, false), (deny, true)] {
                    for peer in peers {
                        add(into, object, peer, deny, identities);
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
    identities: &Identities,
) {
    let Some(peers) = peers(rule, &object.namespace, identities) else {
        return;
    };
    for (path, protocol, ports, http) in lines(rule) {
        into.entries.push(Entry {
            deny: deny && !made(Fault::DenyRuleAllows),
            rule: object.rule(path),
            protocol,
            ports,
            redirect: http.is_some(),
            http: http.unwrap_or_default(),
            auth: rule.authenticated && !made(Fault::AuthenticationIsForgotten),
            peers: peers.clone(),
        });
    }
}

/// What a rule lets its peers do: its place, protocol, ports and, if requests are judged, which.
type Way = (String, Option<u8>, Ports, Option<Arc<[HttpRule]>>);

fn lines(rule: &PeerRule) -> Vec<Way> {
    let at = |part: &str| format!("{}.{part}", rule.path);
    if let Some(messages) = &rule.icmps {
        let line = |m: &IcmpRule| {
            let port = u16::from(m.kind) + if made(Fault::MessageTypeIsOffByOne) { 2 } else { 1 };
            (at(&m.path), Some(m.protocol), Ports::Range(port, port), None)
        };
        return messages.iter().map(line).collect();
    }
    let Some(ports) = rule.ports.as_ref().filter(|_| !made(Fault::PortsAreIgnored)) else {
        return vec![(rule.path.clone(), None, Ports::Any, None)];
    };
    let all = ports.iter().flat_map(|port| {
        let place = at(&port.path);
        let line = move |(protocol, ports)| {
            let http = port.http.clone().filter(|_| !made(Fault::RequestsAreForgotten));
            (place.clone(), protocol, ports, http)
        };
        shapes(port).into_iter().map(line)
    });
    all.collect()
}

/// A port without a protocol stands for each protocol that has ports.
fn shapes(port: &PortRule) -> Vec<(Option<u8>, Ports)> {
    match (port.protocol, port.first) {
        (protocol, 0) => vec![(protocol, Ports::Any)],
        (Some(protocol), first) => vec![(Some(protocol), Ports::Range(first, port.last))],
        (None, first) => WITH_PORTS
            .iter()
            .filter(|p| **p == 6 || !made(Fault::AnyProtocolIsTcp))
            .map(|p| (Some(*p), Ports::Range(first, port.last)))
            .collect(),
    }
}

/// Whom a rule means; nothing when it means nobody.
fn peers(rule: &PeerRule, namespace: &str, identities: &Identities) -> Option<Peers> {
    // A list that is there and empty selects nobody, whatever stands beside it.
    let empty = rule.endpoints.as_ref().is_some_and(Vec::is_empty)
        || rule.entities.as_ref().is_some_and(Vec::is_empty)
        || rule.cidrs.as_ref().is_some_and(Vec::is_empty);
    if empty && !made(Fault::EmptyListMeansAnybody) {
        return None;
    }
    if rule.endpoints.is_none() && rule.entities.is_none() && rule.cidrs.is_none() {
        // Ports of anybody; a rule that names neither peers nor ports only turns on default deny.
        return (rule.ports.is_some() || rule.icmps.is_some()).then(Peers::any);
    }
    let mut peers = Peers::default();
    if let Some(selectors) = &rule.endpoints {
        let known = identities
            .iter()
            .chain(identities.reserved.iter().map(|(id, labels)| (*id, labels)));
        let meant = known.filter(|(_, labels)| selectors.iter().any(|s| selects_peer(s, namespace, labels)));
        peers.identities.extend(meant.map(|(id, _)| id));
        let [v4, v6] = &identities.outside;
        let meant = |labels| {
            selectors.iter().any(|s| selects_peer(s, namespace, labels))
                && !made(Fault::WorldByLabelIsForgotten)
        };
        outside(&mut peers, meant(v4), meant(v6));
    }
    for entity in rule.entities.iter().flatten() {
        add_entity(&mut peers, *entity, identities);
    }
    for cidr in rule.cidrs.iter().flatten() {
        peers.cidrs.push(CidrPeer {
            cidr: cidr.cidr,
            except: if made(Fault::HolesAreForgotten) {
                Vec::new()
            } else {
                cidr.except.clone()
            },
        });
    }
    // Selectors that select nobody known today stay: who comes tomorrow is then no new rule.
    Some(peers)
}

fn add_entity(peers: &mut Peers, entity: Entity, identities: &Identities) {
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
            peers.identities.extend(identities.iter().map(|(id, _)| id));
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
