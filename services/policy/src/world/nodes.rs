//! What is known of the nodes themselves: their addresses, and where their pods have theirs.
//!
//! Every node needs this of every other one: an address that is no workload's is a node's, or lies
//! where pods are, or is outside, and the three are judged differently.

use super::{Dirty, Key, Kind, Shared, World};
use crate::store::Write;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_proto::weft::policy::v1 as pb;

/// Addresses and ranges that are taken of one node, each.
const MAX_TOLD: usize = 64;
/// Shortest prefixes that are taken: a node that claims more than a private network speaks of
/// others' addresses.
const SHORTEST: (u8, u8) = (8, 16);
/// What is taken around a pod when its node names no ranges.
const AROUND: (u8, u8) = (24, 64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    told: BTreeMap<String, pb::Node>,
    /// Per node the ranges around its pods, with how many pods lie in each.
    around: BTreeMap<String, BTreeMap<IpNet, usize>>,
    built: BTreeMap<String, Shared>,
    /// From which ranges shared endpoints have their addresses.
    shared: Vec<String>,
}

impl Nodes {
    /// Names of those that said what they are.
    pub(super) fn told(&self) -> impl Iterator<Item = &String> {
        self.told.keys()
    }

    /// What a node said its addresses are.
    pub(super) fn addresses_of(&self, name: &str) -> &[String] {
        self.told.get(name).map_or(&[], |node| &node.addresses)
    }

    /// To be set before any node is known.
    pub(super) fn set_shared_ranges(&mut self, ranges: &[IpNet]) {
        self.shared = ranges.iter().map(ToString::to_string).collect();
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.built.keys()
    }

    pub(super) fn resource(&self, name: &str) -> Option<Shared> {
        self.built.get(name).cloned()
    }

    /// The node that an address is of, and whether it is its own; otherwise it lies among its pods'.
    pub(super) fn place_of(&self, address: IpAddr) -> Option<(String, bool)> {
        let nodes = || {
            self.built
                .iter()
                .filter_map(|(name, resource)| match &resource.body {
                    Some(pb::resource::Body::Node(node)) => Some((name, node)),
                    _ => None,
                })
        };
        let is = |text: &String| text.parse() == Ok(address);
        let own = nodes().find(|(_, node)| node.addresses.iter().any(is));
        let holds = |text: &String| text.parse::<IpNet>().is_ok_and(|net| net.contains(&address));
        let among = || nodes().find(|(_, node)| node.pod_cidrs.iter().any(holds));
        let own = own.map(|(name, _)| (name.clone(), true));
        own.or_else(|| among().map(|(name, _)| (name.clone(), false)))
    }

    fn build(&mut self, name: &str, dirty: &mut Dirty) {
        let mut node = self.told.get(name).cloned().unwrap_or_default();
        if node.pod_cidrs.is_empty() {
            let around = self.around.get(name).into_iter().flat_map(BTreeMap::keys);
            node.pod_cidrs = around.map(ToString::to_string).collect();
        }
        let nothing = node.addresses.is_empty() && node.pod_cidrs.is_empty();
        let built = (!nothing).then(|| {
            node.name = name.to_owned();
            node.shared_cidrs = self.shared.clone();
            Key::new(Kind::Node, name).with(pb::resource::Body::Node(node)).1
        });
        let old = match built.clone() {
            Some(new) => self.built.insert(name.to_owned(), new),
            None => self.built.remove(name),
        };
        if old != built {
            dirty.keys.insert(Key::new(Kind::Node, name));
        }
    }

    /// Pods came and went.
    pub(super) fn pods_changed(
        &mut self,
        old: Option<&pb::Workload>,
        new: Option<&pb::Workload>,
        dirty: &mut Dirty,
    ) {
        let mut touched = BTreeSet::new();
        for (workload, there) in [(new, true), (old, false)] {
            let Some(workload) = workload else { continue };
            let around = self.around.entry(workload.node.clone()).or_default();
            for range in around_pods(workload) {
                let count = around.entry(range).or_default();
                *count = if there {
                    *count + 1
                } else {
                    count.saturating_sub(1)
                };
                if *count <= 1 {
                    touched.insert(workload.node.clone());
                }
            }
        }
        for name in touched {
            if let Some(around) = self.around.get_mut(&name) {
                around.retain(|_, count| *count > 0);
                if around.is_empty() {
                    self.around.remove(&name);
                }
            }
            self.build(&name, dirty);
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        // 100.64.0.0/10 is what providers use behind their own translation, and many pod networks.
        IpAddr::V4(a) => a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        IpAddr::V6(a) => a.is_unique_local(),
    }
}

fn around_pods(workload: &pb::Workload) -> impl Iterator<Item = IpNet> {
    let pod = workload.kind() == pb::WorkloadKind::Pod && workload.shared.is_none();
    let addresses = workload.addresses.iter().filter(move |_| pod);
    addresses.filter_map(|text| {
        let address = text.parse::<IpAddr>().ok()?.to_canonical();
        let prefix = if address.is_ipv4() { AROUND.0 } else { AROUND.1 };
        let range = IpNet::new(address, prefix).ok()?.trunc();
        is_private(address).then_some(range)
    })
}

/// What a node says of itself, and what of it is not taken.
fn read(name: &str, hello: &pb::Hello) -> (pb::Node, Vec<String>) {
    let mut problems = Vec::new();
    let mut node = pb::Node {
        name: name.to_owned(),
        ..Default::default()
    };
    for text in hello.addresses.iter().take(MAX_TOLD) {
        match text.parse::<IpAddr>().map(|a| a.to_canonical()) {
            // A node without root says that it is reached by loopback: true on its machine only.
            Ok(a) if a.is_loopback() => {}
            Ok(a) if a.is_unspecified() || a.is_multicast() => {
                problems.push(format!("address {a} is no host's"));
            }
            Ok(a) => node.addresses.push(a.to_string()),
            Err(e) => problems.push(format!("address {text:?}: {e}")),
        }
    }
    for text in hello.pod_cidrs.iter().take(MAX_TOLD) {
        match text.parse::<IpNet>().map(|n| n.trunc()) {
            Ok(net) => {
                let shortest = if net.addr().is_ipv4() {
                    SHORTEST.0
                } else {
                    SHORTEST.1
                };
                if net.prefix_len() < shortest {
                    problems.push(format!("range {net} is wider than /{shortest}"));
                } else {
                    node.pod_cidrs.push(net.to_string());
                }
            }
            Err(e) => problems.push(format!("range {text:?}: {e}")),
        }
    }
    if hello.addresses.len() > MAX_TOLD || hello.pod_cidrs.len() > MAX_TOLD {
        problems.push(format!("more than {MAX_TOLD} addresses or ranges"));
    }
    (node, problems)
}

impl World {
    /// A node said what it is. Returns what is to be stored, so that after a restart its addresses
    /// are nobody else's before it is back; and what was not taken.
    pub(crate) fn node_told(&mut self, name: &str, hello: &pb::Hello) -> (Vec<Write>, Vec<String>) {
        let (node, problems) = read(name, hello);
        if self.node_facts.told.get(name) == Some(&node) {
            return (Vec::new(), problems);
        }
        let write = Write::Node {
            name: name.to_owned(),
            message: Box::new(node.clone()),
        };
        self.restore_node(node);
        (vec![write], problems)
    }

    pub(crate) fn restore_node(&mut self, node: pb::Node) {
        let name = node.name.clone();
        self.node_facts.told.insert(name.clone(), node);
        self.node_facts.build(&name, &mut self.dirty);
    }

    /// A node is gone for good. Returns what is to be stored.
    pub(crate) fn node_gone(&mut self, name: &str) -> Vec<Write> {
        if self.node_facts.told.remove(name).is_none() {
            return Vec::new();
        }
        self.node_facts.build(name, &mut self.dirty);
        vec![Write::RemoveNode {
            name: name.to_owned(),
        }]
    }

    /// Nodes that said what they are, or have workloads.
    pub(crate) fn known_nodes(&self) -> BTreeSet<String> {
        let told = self.node_facts.told.keys();
        told.chain(self.workloads.nodes()).cloned().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hello(addresses: &[&str], pod_cidrs: &[&str]) -> pb::Hello {
        let texts = |all: &[&str]| all.iter().map(|a| (*a).to_owned()).collect();
        pb::Hello {
            addresses: texts(addresses),
            pod_cidrs: texts(pod_cidrs),
            ..Default::default()
        }
    }

    fn node(nodes: &Nodes, name: &str) -> Option<pb::Node> {
        match &nodes.resource(name)?.body {
            Some(pb::resource::Body::Node(node)) => Some(node.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_can_not_be_a_nodes_is_left_out_and_named() {
        let said = hello(
            &["192.0.2.1", "127.0.0.1", "0.0.0.0", "x"],
            &["10.1.2.3/24", "0.0.0.0/0", "fd00::/8", "fd00:1::/64"],
        );
        let (node, problems) = read("n1", &said);
        assert_eq!(node.addresses, ["192.0.2.1"]);
        assert_eq!(node.pod_cidrs, ["10.1.2.0/24", "fd00:1::/64"]);
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn without_ranges_those_around_private_pods_count_as_long_as_a_pod_is_there() {
        let pod = |name: &str, address: &str| pb::Workload {
            id: name.into(),
            node: "n1".into(),
            kind: pb::WorkloadKind::Pod.into(),
            addresses: vec![address.into()],
            ..Default::default()
        };
        let (mut nodes, mut dirty) = (Nodes::default(), Dirty::default());
        let (a, b, public) = (pod("a", "10.1.2.3"), pod("b", "10.1.2.4"), pod("c", "192.0.2.3"));
        nodes.pods_changed(None, Some(&a), &mut dirty);
        assert_eq!(node(&nodes, "n1").unwrap().pod_cidrs, ["10.1.2.0/24"]);
        assert_eq!(dirty.keys.len(), 1);
        dirty = Dirty::default();
        nodes.pods_changed(None, Some(&b), &mut dirty);
        nodes.pods_changed(None, Some(&public), &mut dirty);
        assert!(dirty.keys.is_empty(), "{dirty:?}");
        nodes.pods_changed(Some(&a), None, &mut dirty);
        assert!(dirty.keys.is_empty(), "one of two pods there went: {dirty:?}");
        nodes.pods_changed(Some(&b), None, &mut dirty);
        assert!(node(&nodes, "n1").is_none());
    }

    #[test]
    fn a_nodes_own_word_counts_more() {
        let mut world = World::new(weft_model::TrustDomain::default(), "e".into());
        let (writes, _) = world.node_told("n1", &hello(&["192.0.2.1"], &["10.1.0.0/16"]));
        assert_eq!(writes.len(), 1);
        assert!(
            world
                .node_told("n1", &hello(&["192.0.2.1"], &["10.1.0.0/16"]))
                .0
                .is_empty()
        );
        let pod = pb::Workload {
            node: "n1".into(),
            kind: pb::WorkloadKind::Pod.into(),
            addresses: vec!["10.2.0.1".into()],
            ..Default::default()
        };
        world.node_facts.pods_changed(None, Some(&pod), &mut world.dirty);
        assert_eq!(node(&world.node_facts, "n1").unwrap().pod_cidrs, ["10.1.0.0/16"]);
        assert_eq!(world.node_gone("n1").len(), 1);
        // Its pod is still there.
        assert_eq!(node(&world.node_facts, "n1").unwrap().pod_cidrs, ["10.2.0.0/24"]);
    }
}
