//! Shared endpoints: for each Service that asks for them, one workload on each node, or one for the
//! cluster, that no node has registered. They are workloads like others to policies, to Services and to
//! whoever reads the registry; their nodes' agents answer at their addresses.
//!
//! Owns who there is to be, and where. What there is are the workloads themselves: they are stored, and
//! keep their addresses and nodes after a restart.

use super::{
    World,
    addresses::{Name, fnv, search},
    check::RegisterError,
    ports::{named_ports, to_wire},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_proto::weft::policy::v1 as pb;
use weft_resources::{Meta, SharedApp, Strategy};

/// The ports of a Dapr runtime, as its sidecar's container names them.
const PORTS: [(&str, u32); 4] = [
    ("dapr-http", 3500),
    ("dapr-grpc", 50001),
    ("dapr-internal", 50002),
    ("dapr-metrics", 9090),
];
/// Labels of the Service that its endpoints have too, and what they are without.
const LABELS: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "dapr-shared"),
    ("app.kubernetes.io/instance", ""),
];
/// Annotations of the Service that are meant for its endpoints.
const ANNOTATIONS: [&str; 1] = ["weft.dev/policy-audit-mode"];

/// What a Service asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    app: SharedApp,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ranges: Vec<IpNet>,
    wanted: BTreeMap<Name, Wanted>,
    /// Something changed that they hang on.
    due: bool,
}

/// What is to become of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SharedChange {
    Put(Box<pb::Workload>),
    Remove(String),
}

/// What is known of nodes, and by whom.
pub(crate) struct Nodes<'a> {
    /// Whether a node may host an app of a namespace; `None` while that is not known.
    pub may_host: &'a dyn Fn(&str, &str, &str) -> Option<bool>,
    /// Nodes that have been away for so long that what is there once for the cluster moves.
    pub away: &'a BTreeSet<String>,
}

impl World {
    /// Gives shared endpoints addresses of these ranges.
    pub(crate) fn give_shared_addresses_of(&mut self, ranges: Vec<IpNet>) {
        self.node_facts.set_shared_ranges(&ranges);
        self.shared.ranges = ranges;
        self.shared.due = true;
    }

    /// Takes what a Service's manifest says of shared endpoints.
    pub(super) fn set_shared(&mut self, name: Name, service: Option<(&SharedApp, &Meta)>) {
        let wanted = service.map(|(app, meta)| {
            let labels = LABELS.iter().map(|(key, default)| {
                let default = if default.is_empty() { &app.app_id } else { *default };
                let value = meta.labels.get(*key).map_or(default, String::as_str);
                ((*key).to_owned(), value.to_owned())
            });
            let annotations = meta.annotations.iter();
            let meant = annotations.filter(|(key, _)| ANNOTATIONS.contains(&key.as_str()));
            Wanted {
                app: app.clone(),
                labels: labels.collect(),
                annotations: meant.map(|(k, v)| (k.clone(), v.clone())).collect(),
            }
        });
        let old = match wanted.clone() {
            Some(wanted) => self.shared.wanted.insert(name, wanted),
            None => self.shared.wanted.remove(&name),
        };
        self.shared.due |= old != wanted;
    }

    /// What nodes are, or may host, is not what it was.
    pub(crate) fn look_at_shared(&mut self) {
        self.shared.due = true;
    }

    /// Whether there is something to be worked out; it is taken as done.
    pub(crate) fn is_shared_due(&mut self) -> bool {
        std::mem::take(&mut self.shared.due)
    }

    /// Whether a workload was made here.
    pub(crate) fn is_shared(&self, id: &str) -> bool {
        self.workloads.get(id).is_some_and(|w| w.message.shared.is_some())
    }

    /// Whether an address is for shared endpoints alone.
    pub(super) fn is_of_shared(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.shared.ranges.iter().any(|range| range.contains(&address))
    }

    /// From what there is to what there is to be. What goes comes first.
    pub(crate) fn shared_changes(&self, nodes: &Nodes<'_>) -> Vec<SharedChange> {
        let mut there: BTreeMap<&str, &pb::Workload> = BTreeMap::new();
        let mut of_service: BTreeMap<Name, BTreeSet<&str>> = BTreeMap::new();
        for message in self.workloads.iter().map(|w| &w.message) {
            let Some(shared) = &message.shared else { continue };
            there.insert(&message.id, message);
            let name = (message.namespace.clone(), shared.service.clone());
            of_service.entry(name).or_default().insert(&message.node);
        }
        let mut wanted = Vec::new();
        for (name, one) in &self.shared.wanted {
            let none = BTreeSet::new();
            let present = of_service.get(name).unwrap_or(&none);
            for node in self.nodes_for(name, one, present, nodes) {
                wanted.push((name, one, node));
            }
        }
        let ids: BTreeSet<String> = wanted
            .iter()
            .map(|(name, one, node)| id(name, one, node))
            .collect();
        let gone = there.keys().filter(|id| !ids.contains(**id));
        let mut changes: Vec<SharedChange> = gone.map(|id| SharedChange::Remove((*id).to_owned())).collect();
        // Those that stay keep what they have; what goes is free at once.
        let kept = there.iter().filter(|(id, _)| ids.contains(**id));
        let kept = kept.flat_map(|(_, message)| &message.addresses);
        let mut taken: BTreeSet<IpAddr> = kept.filter_map(|a| a.parse().ok()).collect();
        for (name, one, node) in wanted {
            let old = there.get(id(name, one, node).as_str()).copied();
            let (message, used_up) = self.shared_message(name, one, node, old, &mut taken);
            // What was derived is not to be compared.
            let same = old.is_some_and(|old| {
                *old == pb::Workload {
                    identity: old.identity,
                    spiffe_id: old.spiffe_id.clone(),
                    ..message.clone()
                }
            });
            if !same {
                if let Some(range) = used_up {
                    tracing::error!(workload = message.id, %range, "no address is left; configure a larger --shared-cidr");
                }
                changes.push(SharedChange::Put(Box::new(message)));
            }
        }
        changes
    }

    /// The nodes that are to have one of a Service's endpoints.
    fn nodes_for<'w>(
        &'w self,
        (namespace, service): &Name,
        one: &Wanted,
        present: &BTreeSet<&str>,
        nodes: &Nodes<'_>,
    ) -> Vec<&'w str> {
        let app = &one.app.app_id;
        let may = |node: &str| (nodes.may_host)(node, namespace, self.shared_svid_name(app));
        // What is there stays while nothing speaks against it, also before all nodes are back.
        let stays = |node: &&str| present.contains(node) && may(node) != Some(false);
        let comes = |node: &&str| self.is_connected(node) && may(node) == Some(true);
        let known = || self.node_facts.told().map(String::as_str);
        match one.app.strategy {
            Strategy::Daemonset => known().filter(|n| stays(n) || comes(n)).collect(),
            Strategy::Deployment => {
                let there = |node: &&str| stays(node) && !nodes.away.contains(*node);
                // Each Service has an order of nodes of its own, so that they spread.
                let rank = |node: &&str| {
                    let text = format!("{namespace}/{service}/{node}");
                    fnv(text.bytes())
                };
                let best = known().filter(there).min_by_key(rank);
                let best = best.or_else(|| known().filter(comes).min_by_key(rank));
                // Better one that is away than none.
                best.or_else(|| known().find(stays)).into_iter().collect()
            }
        }
    }

    /// What a shared app is called in its SPIFFE ID.
    fn shared_svid_name<'a>(&self, app_id: &'a str) -> &'a str {
        self.svid_form.name(app_id, "")
    }

    fn shared_message(
        &self,
        name: &Name,
        one: &Wanted,
        node: &str,
        old: Option<&pb::Workload>,
        taken: &mut BTreeSet<IpAddr>,
    ) -> (pb::Workload, Option<IpNet>) {
        let id = id(name, one, node);
        let node_addresses = self.node_facts.addresses_of(node);
        let has = |v4: bool| {
            let mut all = node_addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok());
            all.any(|a| a.is_ipv4() == v4)
        };
        // One that tells no address is reached on its own machine only.
        let v6 = has(false);
        let v4 = has(true) || !v6;
        let (mut addresses, mut used_up) = (Vec::new(), None);
        for range in &self.shared.ranges {
            let is_v4 = range.addr().is_ipv4();
            if !(is_v4 && v4 || !is_v4 && v6) {
                continue;
            }
            let had = old.iter().flat_map(|w| &w.addresses);
            let had = had
                .filter_map(|a| a.parse::<IpAddr>().ok())
                .find(|a| range.contains(a));
            let is_taken = |a: &IpAddr| {
                taken.contains(a) || self.workloads.at(*a).is_some_and(|w| w.message.shared.is_none())
            };
            let found = had.or_else(|| {
                search(
                    range,
                    fnv(id.bytes()),
                    taken.len() + self.workloads.len(),
                    is_taken,
                )
            });
            match found {
                Some(address) => {
                    taken.insert(address);
                    addresses.push(address.to_string());
                }
                None => used_up = Some(*range),
            }
        }
        let ports = PORTS.map(|(name, port)| pb::NamedPort {
            name: name.into(),
            port,
            protocol: 6,
        });
        let mut message = pb::Workload {
            node: node.to_owned(),
            namespace: name.0.clone(),
            name: workload_name(one, node),
            kind: pb::WorkloadKind::Pod.into(),
            app_id: one.app.app_id.clone(),
            labels: one.labels.clone().into_iter().collect(),
            annotations: one.annotations.clone().into_iter().collect(),
            addresses,
            app_protocol: "http".into(),
            named_ports: ports.into(),
            shared: Some(pb::SharedApp {
                remote: one.app.remote.to_string(),
                service: name.1.clone(),
                node_addresses: node_addresses.to_vec(),
            }),
            id,
            ..Default::default()
        };
        // In the registry's own order, since this is compared with what is in there.
        message.named_ports = to_wire(&named_ports(&message).unwrap_or_default());
        (message, used_up)
    }

    /// What a node may not say of a workload because of those that are made here.
    pub(super) fn check_beside_shared(&self, message: &pb::Workload) -> Result<(), RegisterError> {
        let fail = |field: &'static str, problem: String| Err(RegisterError::Invalid { field, problem });
        if self.is_shared(&message.id) {
            return fail(
                "id",
                format!(
                    "{} is a shared endpoint, which the policy service makes itself",
                    message.id
                ),
            );
        }
        let mut addresses = message.addresses.iter().filter_map(|a| a.parse().ok());
        match addresses.find(|a| self.is_of_shared(*a)) {
            Some(address) => fail(
                "addresses",
                format!("{address} is of the range of shared endpoints (--shared-cidr)"),
            ),
            None => Ok(()),
        }
    }

    /// The Service that the app behind a shared endpoint may be: its namespace and name. `own` is the
    /// endpoint's. Agents read the same.
    pub(super) fn service_behind<'a>(shared: &'a pb::SharedApp, own: &'a str) -> Option<(&'a str, &'a str)> {
        let authority = shared.remote.strip_prefix("http://")?;
        let (host, _) = authority.rsplit_once(':')?;
        let mut parts = host.trim_end_matches('.').splitn(3, '.');
        let name = parts.next()?;
        let namespace = parts.next().unwrap_or(own);
        let cluster = matches!(parts.next(), None | Some("svc" | "svc.cluster.local"));
        let sound = weft_model::check_dns_label(namespace).is_ok();
        (cluster && sound).then_some((namespace, name))
    }
}

/// Whether calling the runtime at a port is to speak as its app.
pub(super) fn speaks_at(port: u16) -> bool {
    PORTS[..2].iter().any(|(_, number)| *number == u32::from(port))
}

fn workload_name(one: &Wanted, node: &str) -> String {
    format!("{}-shared-{node}", one.app.app_id)
}

fn id((namespace, _): &Name, one: &Wanted, node: &str) -> String {
    format!("{node}/{namespace}/{}/shared", workload_name(one, node))
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
