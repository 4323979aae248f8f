//! Whom an address means: workloads, Services, nodes, and the ranges of their pods.
//!
//! Owns the index, made of what the policy service sent. A pod has its addresses to itself. A
//! process shares its node's: there its app's port and those that it declares (`named_ports`) are known to
//! be its own. Its other ports are known to its own node's kernel, by who bound them, and to nobody
//! elsewhere: the caller's policy is asked here, before the connection is made, so they count as their node's.

use rand::seq::IndexedRandom;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1::{self as pb, WorkloadKind};

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// One workload, by its id, at this address of its own.
    Workload(String, SocketAddr),
    /// A Service that no workload serves at an address of this family.
    Unserved,
    /// A node, the cluster, or the outside, by its identity.
    Reserved(NumericIdentity),
}

/// The index. Not shared by itself; [`crate::mesh::Mesh`] holds it under its lock.
#[derive(Debug, Default)]
pub struct Places {
    workloads: HashMap<String, Keys>,
    pods: HashMap<IpAddr, BTreeSet<String>>,
    processes: HashMap<SocketAddr, BTreeSet<String>>,
    services: HashMap<String, pb::Service>,
    frontends: HashMap<SocketAddr, BTreeSet<(String, usize)>>,
    nodes: HashMap<String, (Vec<IpAddr>, Vec<ipnet::IpNet>)>,
    /// Where shared endpoints have their addresses, by the node of which it was told.
    shared: HashMap<String, Vec<ipnet::IpNet>>,
}

#[derive(Debug, Clone)]
struct Keys {
    pod: bool,
    shared: bool,
    addresses: Vec<IpAddr>,
    /// The app's.
    port: u16,
    /// All that are known to be its own, if it is a process.
    ports: BTreeSet<u16>,
}

/// IANA number of TCP; 0 stands for it too.
const TCP: u32 = 6;

/// The TCP ports by which a process is known.
pub fn ports(w: &pb::Workload) -> BTreeSet<u16> {
    let declared = w.named_ports.iter().filter(|p| matches!(p.protocol, 0 | TCP));
    let all = declared.map(|p| p.port).chain([w.app_port]);
    all.filter_map(|port| u16::try_from(port).ok().filter(|port| *port != 0))
        .collect()
}

fn parsed<T: std::str::FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    parsed(texts).iter().map(IpAddr::to_canonical).collect()
}

fn forget<K: std::hash::Hash + Eq, V: Ord>(all: &mut HashMap<K, BTreeSet<V>>, key: K, value: &V) {
    if let Some(values) = all.get_mut(&key) {
        values.remove(value);
        if values.is_empty() {
            all.remove(&key);
        }
    }
}

impl Places {
    /// Takes a workload as the policy service sent it.
    pub fn put(&mut self, w: &pb::Workload) {
        self.remove(&w.id);
        let keys = Keys {
            pod: w.kind() == WorkloadKind::Pod,
            shared: w.shared.is_some(),
            addresses: addresses(&w.addresses),
            port: u16::try_from(w.app_port).unwrap_or(0),
            ports: ports(w),
        };
        for address in &keys.addresses {
            if keys.pod {
                self.pods.entry(*address).or_default().insert(w.id.clone());
                continue;
            }
            for port in &keys.ports {
                let at = SocketAddr::new(*address, *port);
                self.processes.entry(at).or_default().insert(w.id.clone());
            }
        }
        self.workloads.insert(w.id.clone(), keys);
    }

    /// It is gone.
    pub fn remove(&mut self, id: &str) {
        let Some(keys) = self.workloads.remove(id) else {
            return;
        };
        let id = id.to_owned();
        for address in keys.addresses {
            forget(&mut self.pods, address, &id);
            for port in &keys.ports {
                forget(&mut self.processes, SocketAddr::new(address, *port), &id);
            }
        }
    }

    /// Takes a Service or a node; other kinds are not for here.
    pub fn put_other(&mut self, name: &str, body: Option<&pb::resource::Body>) {
        match body {
            Some(pb::resource::Body::Service(service)) => {
                self.remove_other("service", name);
                for (at, port) in frontends(service) {
                    self.frontends
                        .entry(at)
                        .or_default()
                        .insert((name.to_owned(), port));
                }
                self.services.insert(name.to_owned(), service.clone());
            }
            Some(pb::resource::Body::Node(node)) => {
                let ranges = parsed(&node.pod_cidrs);
                self.nodes
                    .insert(name.to_owned(), (addresses(&node.addresses), ranges));
                self.shared.insert(name.to_owned(), parsed(&node.shared_cidrs));
            }
            _ => {}
        }
    }

    /// It is gone.
    pub fn remove_other(&mut self, kind: &str, name: &str) {
        match kind {
            "service" => {
                let Some(service) = self.services.remove(name) else {
                    return;
                };
                for (at, port) in frontends(&service) {
                    forget(&mut self.frontends, at, &(name.to_owned(), port));
                }
            }
            "node" => {
                self.nodes.remove(name);
                self.shared.remove(name);
            }
            _ => {}
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whom an address means, as seen from `node`. `ready` says which workloads can be reached.
    pub fn find(&self, node: &str, to: SocketAddr, ready: impl Fn(&str) -> bool) -> Meaning {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        // A frontend that two Services claim is the first one's, as in the kernel.
        if let Some((name, port)) = self.frontends.get(&to).and_then(BTreeSet::first) {
            let backends = self.backends(name, *port, to.is_ipv4(), ready);
            return match backends.choose(&mut rand::rng()) {
                Some((id, address)) => Meaning::Workload((*id).to_owned(), *address),
                None => Meaning::Unserved,
            };
        }
        let holders = self.pods.get(&to.ip()).or_else(|| self.processes.get(&to));
        if let Some(holders) = holders {
            return match holders.first() {
                // Nobody but its agent could be reached there.
                Some(id) if holders.len() == 1 && self.is_shared(id) && !ready(id) => Meaning::Unserved,
                Some(id) if holders.len() == 1 => Meaning::Workload(id.clone(), to),
                // Not told apart: somebody of the cluster, and nobody's rule is for them.
                _ => Meaning::Reserved(NumericIdentity::CLUSTER_UNKNOWN),
            };
        }
        let mut shared = self.shared.values().flatten();
        if shared.any(|range| range.contains(&to.ip())) {
            return Meaning::Unserved;
        }
        let mut of_nodes = self.nodes.iter().filter(|(_, (all, _))| all.contains(&to.ip()));
        if let Some((name, _)) = of_nodes.next() {
            return Meaning::Reserved(if name == node {
                NumericIdentity::HOST
            } else {
                NumericIdentity::REMOTE_NODE
            });
        }
        let mut ranges = self.nodes.values().flat_map(|(_, ranges)| ranges);
        Meaning::Reserved(if ranges.any(|range| range.contains(&to.ip())) {
            NumericIdentity::CLUSTER_UNKNOWN
        } else {
            NumericIdentity::WORLD
        })
    }

    fn is_shared(&self, id: &str) -> bool {
        self.workloads.get(id).is_some_and(|keys| keys.shared)
    }

    /// A Service, as `<namespace>/<name>`.
    pub fn service(&self, name: &str) -> Option<&pb::Service> {
        self.services.get(name)
    }

    /// The Service that has an address: `<namespace>/<name>`, and the port of it.
    pub fn service_at(&self, at: SocketAddr) -> Option<(&str, u16)> {
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        let (name, _) = self.frontends.get(&at)?.first()?;
        Some((name, at.port()))
    }

    /// The ready endpoints of a Service's TCP port with their addresses, of IPv4 or IPv6 where they
    /// have one, and what the port says it speaks. `None`: no such Service or port.
    pub fn members(
        &self,
        service: &str,
        port: u16,
        v4: bool,
        ready: impl Fn(&str) -> bool,
    ) -> Option<(Vec<(&str, SocketAddr)>, &str)> {
        let found = self.services.get(service)?;
        let tcp = |p: &pb::ServicePort| matches!(p.protocol, 0 | TCP) && p.port == u32::from(port);
        let number = found.ports.iter().position(tcp)?;
        let mut members = self.backends(service, number, v4, &ready);
        let other = self.backends(service, number, !v4, &ready);
        let only = other
            .into_iter()
            .filter(|(id, _)| !members.iter().any(|(there, _)| there == id));
        let only: Vec<_> = only.collect();
        members.extend(only);
        Some((members, &found.ports[number].app_protocol))
    }

    fn backends(
        &self,
        service: &str,
        port: usize,
        v4: bool,
        ready: impl Fn(&str) -> bool,
    ) -> Vec<(&str, SocketAddr)> {
        let Some(service) = self.services.get(service) else {
            return Vec::new();
        };
        let target = service.ports.get(port).map_or(0, |p| p.target_port);
        let target = u16::try_from(target).unwrap_or(0);
        let at = |id: &String| {
            let keys = self.workloads.get(id)?;
            let port = if target == 0 { keys.port } else { target };
            let address = keys.addresses.iter().find(|a| a.is_ipv4() == v4)?;
            (port != 0).then(|| SocketAddr::new(*address, port))
        };
        let ids = service.endpoints.iter().filter(|id| ready(id.as_str()));
        ids.filter_map(|id| Some((id.as_str(), at(id)?))).collect()
    }
}

fn frontends(service: &pb::Service) -> impl Iterator<Item = (SocketAddr, usize)> + use<'_> {
    let ports = service.ports.iter().enumerate();
    let tcp = ports.filter(|(_, p)| matches!(p.protocol, 0 | TCP));
    tcp.flat_map(|(number, p)| {
        let port = u16::try_from(p.port).unwrap_or(0);
        let all = addresses(&service.cluster_ips).into_iter();
        all.map(move |ip| (SocketAddr::new(ip, port), number))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn workload(id: &str, kind: WorkloadKind, addresses: &[&str], port: u32) -> pb::Workload {
        pb::Workload {
            id: id.into(),
            kind: kind.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            app_port: port,
            ..Default::default()
        }
    }

    fn service(ip: &str, port: u32, target: u32, endpoints: &[&str]) -> pb::resource::Body {
        pb::resource::Body::Service(pb::Service {
            cluster_ips: vec![ip.into()],
            ports: vec![pb::ServicePort {
                port,
                target_port: target,
                ..Default::default()
            }],
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    fn node(addresses: &[&str], ranges: &[&str]) -> pb::resource::Body {
        pb::resource::Body::Node(pb::Node {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            pod_cidrs: ranges.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_means_its_pod_its_process_its_node_or_nobody() {
        let mut places = Places::default();
        places.put(&workload("pod", WorkloadKind::Pod, &["10.1.0.5", "fd00::5"], 80));
        places.put(&workload("process", WorkloadKind::Process, &["192.0.2.1"], 8080));
        places.put_other("n1", Some(&node(&["192.0.2.1"], &["10.1.0.0/24"])));
        places.put_other("n2", Some(&node(&["192.0.2.2"], &[])));
        let find = |places: &Places, to: &str| places.find("n1", at(to), |_| true);
        let workload_at = |id: &str, to: &str| Meaning::Workload(id.into(), at(to));
        let reserved = Meaning::Reserved;
        for to in ["10.1.0.5:1", "[fd00::5]:9"] {
            assert_eq!(find(&places, to), workload_at("pod", to));
        }
        assert_eq!(
            find(&places, "[::ffff:10.1.0.5]:7"),
            workload_at("pod", "10.1.0.5:7")
        );
        // Of a process the port of its app is known to be its own, and what it declares.
        assert_eq!(
            find(&places, "192.0.2.1:8080"),
            workload_at("process", "192.0.2.1:8080")
        );
        assert_eq!(find(&places, "192.0.2.1:8081"), reserved(NumericIdentity::HOST));
        assert_eq!(
            find(&places, "192.0.2.2:8080"),
            reserved(NumericIdentity::REMOTE_NODE)
        );
        assert_eq!(
            find(&places, "10.1.0.6:80"),
            reserved(NumericIdentity::CLUSTER_UNKNOWN)
        );
        assert_eq!(find(&places, "10.2.0.6:80"), reserved(NumericIdentity::WORLD));
        let mut declares = workload("process", WorkloadKind::Process, &["192.0.2.1"], 8080);
        declares.named_ports = [("a", 8082, 6), ("b", 8083, 0), ("c", 8084, 17)]
            .map(|(name, port, protocol)| pb::NamedPort {
                name: name.into(),
                port,
                protocol,
            })
            .into();
        places.put(&declares);
        for to in ["192.0.2.1:8080", "192.0.2.1:8082", "192.0.2.1:8083"] {
            assert_eq!(find(&places, to), workload_at("process", to));
        }
        for to in ["192.0.2.1:8081", "192.0.2.1:8084"] {
            assert_eq!(find(&places, to), reserved(NumericIdentity::HOST));
        }
        places.put(&workload("process", WorkloadKind::Process, &["192.0.2.1"], 8080));
        assert_eq!(find(&places, "192.0.2.1:8082"), reserved(NumericIdentity::HOST));
        // Two at one address: which is meant can not be told.
        places.put(&workload("twin", WorkloadKind::Pod, &["10.1.0.5"], 80));
        assert_eq!(
            find(&places, "10.1.0.5:1"),
            reserved(NumericIdentity::CLUSTER_UNKNOWN)
        );
        places.remove("twin");
        assert_eq!(find(&places, "10.1.0.5:1"), workload_at("pod", "10.1.0.5:1"));
        // It moves.
        places.put(&workload("pod", WorkloadKind::Pod, &["10.1.0.7"], 80));
        assert_eq!(
            find(&places, "10.1.0.5:1"),
            reserved(NumericIdentity::CLUSTER_UNKNOWN)
        );
        assert_eq!(find(&places, "10.1.0.7:1"), workload_at("pod", "10.1.0.7:1"));
    }

    #[test]
    fn a_service_means_one_of_its_ready_backends_of_the_same_family() {
        let mut places = Places::default();
        places.put(&workload("a", WorkloadKind::Pod, &["10.1.0.1", "fd00::1"], 80));
        places.put(&workload("b", WorkloadKind::Pod, &["10.1.0.2"], 81));
        places.put_other(
            "default/web",
            Some(&service("10.96.0.1", 8080, 0, &["a", "b", "c"])),
        );
        places.put_other("default/web6", Some(&service("fd96::1", 8080, 99, &["a", "b"])));
        let mut found = BTreeSet::new();
        for _ in 0..200 {
            match places.find("n1", at("10.96.0.1:8080"), |_| true) {
                Meaning::Workload(id, address) => found.insert((id, address)),
                other => panic!("{other:?}"),
            };
        }
        let wanted = [
            ("a".to_owned(), at("10.1.0.1:80")),
            ("b".to_owned(), at("10.1.0.2:81")),
        ];
        assert_eq!(found, BTreeSet::from(wanted));
        let only = |to, id: &'static str| places.find("n1", at(to), move |ready| ready == id);
        assert_eq!(
            only("[fd96::1]:8080", "a"),
            Meaning::Workload("a".into(), at("[fd00::1]:99"))
        );
        assert_eq!(only("[fd96::1]:8080", "b"), Meaning::Unserved);
        assert_eq!(
            only("10.96.0.1:8081", "a"),
            Meaning::Reserved(NumericIdentity::WORLD)
        );
        places.remove_other("service", "default/web");
        let gone = places.find("n1", at("10.96.0.1:8080"), |_| true);
        assert_eq!(gone, Meaning::Reserved(NumericIdentity::WORLD));
    }
}
