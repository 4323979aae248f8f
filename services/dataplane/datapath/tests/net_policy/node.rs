//! A node with one pod under test, and a peer of every kind.

use crate::packet::frame;
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use weft_bpf::{Address, Entry, Events, Hooked, Kernel, Options, PolicyKey, pin_dir};
use weft_datapath::{Datapath, Governed, Here, Limits, There, Update};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{
    Backed, Cluster, Group, NamedPorts, Peers, PolicyObject, PolicySet, Subject, compile,
};
use weft_policy_oracle::{
    Direction, Peer,
    generate::{Question, RESERVED, named_ports, surroundings, workloads},
};
use weft_resources::Body;
use weft_testnet::Testnet;

/// Where other nodes are: what comes in nowhere is of this node itself.
const UPLINK: u32 = 4243;

/// The endpoint under test, behind the interface 1.
const POD: u32 = 7;
const IFINDEX: u32 = 1;
/// Endpoints of this node among the workloads: the first one's number, and its interface's.
const FIRST_HERE: u32 = 100;
const FIRST_IFINDEX: u32 = 5000;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Passed,
    /// With Hubble's reason, and nobody was told another one.
    Refused(u8),
    /// Refused and not told.
    Silent,
}

pub struct Node {
    datapath: Datapath<weft_datapath::Kernel>,
    kernel: Kernel,
    events: Events,
    workloads: Vec<(NumericIdentity, Labels)>,
    known: Cluster,
    governed_by: Option<Arc<str>>,
    turn: u16,
    _net: Testnet,
}

/// Every other workload is of this node; of those every other one holds a certificate.
fn is_here(at: usize) -> bool {
    at.is_multiple_of(2)
}

fn is_proven(at: usize) -> bool {
    at.is_multiple_of(4)
}

/// In ranges that policies name, which mean what is outside only.
fn addresses(block: u8, number: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, block.into(), number.into());
    [Ipv4Addr::new(10, block, 0, number).into(), v6.into()]
}

const WORKLOADS: u8 = 200;
const UNKNOWN: u8 = 210;
const OTHERS: u8 = 220;

impl Node {
    pub fn new() -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        std::fs::create_dir_all(node.cgroup()).unwrap();
        let folder = pin_dir(&net.bpffs().unwrap(), node.name());
        let kernel = Kernel::load(&Options::new(node.cgroup(), folder)).unwrap();
        let tables = weft_datapath::Kernel::new(kernel.datapath().unwrap(), kernel.services().unwrap());
        let datapath = Datapath::adopt(tables, Limits::default()).unwrap();
        let workloads = workloads();
        let mut node = Self {
            datapath,
            events: kernel.events().unwrap(),
            kernel,
            known: cluster(&workloads),
            workloads,
            governed_by: None,
            turn: 0,
            _net: net,
        };
        node.fill();
        node
    }

    fn fill(&mut self) {
        let open = Arc::new(PolicySet::unrestricted());
        let mut update = Update {
            complete: true,
            sets: vec![(open.id().into(), Some(open.clone()))],
            ..Update::default()
        };
        for (at, (identity, _)) in self.workloads.iter().enumerate() {
            let (number, id) = (at as u8, Arc::from(format!("w{at}")));
            let addresses = addresses(WORKLOADS, number).to_vec();
            if !is_here(at) {
                let there = There {
                    node: "elsewhere".into(),
                    pod: true,
                    addresses,
                    app_port: 0,
                    identity: *identity,
                    shared: false,
                };
                update.there.push((id, Some(there)));
                continue;
            }
            let here = self.here(
                FIRST_HERE + at as u32,
                addresses,
                *identity,
                open.id(),
                is_proven(at),
            );
            update.here.push((id, Some(here)));
            let interfaces = self.kernel.interfaces().unwrap();
            interfaces
                .set(FIRST_IFINDEX + at as u32, FIRST_HERE + at as u32)
                .unwrap();
        }
        let range = |block: u8| {
            let [v4, v6] = addresses(block, 0);
            [format!("{v4}/16"), format!("{v6}/112")].map(|net| net.parse().unwrap())
        };
        let elsewhere = weft_datapath::Node {
            own: false,
            addresses: Vec::new(),
            pod_cidrs: range(UNKNOWN).to_vec(),
            shared_cidrs: Vec::new(),
        };
        update.nodes.push(("elsewhere".into(), Some(elsewhere)));
        assert_eq!(self.datapath.apply(update).problems, [""; 0]);
        // Peers of which nobody tells the agent yet.
        let tables = self.kernel.datapath().unwrap();
        for (identity, _) in RESERVED {
            for address in addresses(OTHERS, identity as u8) {
                let value = Address {
                    identity,
                    host: identity == 1,
                    ..Address::default()
                };
                tables.addresses.set(address.into(), value).unwrap();
            }
        }
        self.kernel.interfaces().unwrap().set(IFINDEX, POD).unwrap();
        for address in addresses(OTHERS, 100) {
            self.kernel.sources().unwrap().add(POD, address).unwrap();
        }
    }

    fn here(
        &self,
        number: u32,
        addresses: Vec<IpAddr>,
        identity: NumericIdentity,
        set: &str,
        proven: bool,
    ) -> Here {
        Here {
            number,
            pod: true,
            addresses,
            app_port: 0,
            proven,
            capture: false,
            audit: false,
            governed: Some(Governed {
                identity,
                set: set.into(),
            }),
        }
    }

    /// Puts the pod under these policies, as a workload with the labels of `subject`.
    pub fn govern(&mut self, manifests: &[Value], subject: usize) -> Arc<PolicySet> {
        let objects: Vec<PolicyObject> = manifests.iter().map(read).collect();
        let (identity, labels) = &self.workloads[subject];
        let ports = ports(labels);
        let set = Arc::new(compile(
            &objects,
            Subject {
                labels,
                ports: &ports,
            },
            &self.known,
        ));
        let id: Arc<str> = set.id().into();
        let here = self.here(POD, addresses(OTHERS, 100).to_vec(), *identity, &id, true);
        let mut update = Update {
            sets: vec![(id.clone(), Some(set.clone()))],
            here: vec![("pod".into(), Some(here))],
            ..Update::default()
        };
        let old = self.governed_by.replace(id.clone());
        let open = PolicySet::unrestricted();
        update.sets.extend(
            old.filter(|old| *old != id && **old != *open.id())
                .map(|old| (old, None)),
        );
        assert_eq!(self.datapath.apply(update).problems, [""; 0]);
        set
    }

    /// Where a peer is: its address, and the interface by which it comes in.
    fn place(&self, peer: &Peer, v6: bool) -> (IpAddr, u32) {
        let family = usize::from(v6);
        match peer {
            Peer::Workload(labels) => {
                let at = self.workloads.iter().position(|(_, l)| l == labels).unwrap();
                let ifindex = if is_here(at) {
                    FIRST_IFINDEX + at as u32
                } else {
                    UPLINK
                };
                (addresses(WORKLOADS, at as u8)[family], ifindex)
            }
            Peer::Reserved(name) => {
                let (number, _) = RESERVED.iter().find(|(_, n)| n == name).unwrap();
                (addresses(OTHERS, *number as u8)[family], UPLINK)
            }
            Peer::Unknown => (addresses(UNKNOWN, 9)[family], UPLINK),
            Peer::Outside(address) => (*address, UPLINK),
        }
    }

    /// Whether a peer and the pod are both proven to the kernel.
    pub fn is_proven(&self, peer: &Peer) -> bool {
        let Peer::Workload(labels) = peer else {
            return false;
        };
        let at = self.workloads.iter().position(|(_, l)| l == labels);
        at.is_some_and(|at| is_here(at) && is_proven(at))
    }

    /// Whether a rule of the set lets pass what is in the cluster and not known yet.
    pub fn names_unknown(&self, set: &PolicySet, question: &Question) -> bool {
        let policy = match question.direction {
            Direction::Ingress => set.ingress(),
            Direction::Egress => set.egress(),
        };
        let traffic = question.traffic;
        let names = |peers: &Peers| peers.any || peers.identities.contains(&NumericIdentity::CLUSTER_UNKNOWN);
        let port = traffic.number + u16::from(matches!(traffic.protocol, 1 | 58));
        policy.entries.iter().any(|e| {
            let protocol = match e.protocol {
                Some(protocol) => protocol == traffic.protocol,
                None => true,
            };
            !e.deny && names(&e.peers) && protocol && e.ports.contains(port)
        })
    }

    /// Sends the first packet of a connection; answers what became of it and the rule that was told.
    pub fn ask(&mut self, question: &Question, at: usize) -> (Fate, Option<Arc<str>>) {
        let Question {
            direction,
            peer,
            traffic,
            ..
        } = question;
        let v6 = match peer {
            Peer::Outside(address) => address.is_ipv6(),
            _ if traffic.protocol == 1 => false,
            _ if traffic.protocol == 58 => true,
            _ => at % 2 == 1,
        };
        let (other, ingress) = self.place(peer, v6);
        let own = addresses(OTHERS, 100)[usize::from(v6)];
        // Never the same connection again.
        self.turn = self.turn.wrapping_add(1);
        let (hook, from, to) = match direction {
            Direction::Ingress => (weft_bpf::Direction::In, other, own),
            Direction::Egress => (weft_bpf::Direction::Out, own, other),
        };
        let packet = frame(from, to, traffic.protocol, self.turn, traffic.number);
        let hook = Hooked::Interface(hook);
        let ran = self
            .kernel
            .test_run(hook, (IFINDEX, ingress), &packet, 1)
            .unwrap();
        let told = std::iter::from_fn(|| self.events.read()).last();
        let rule = told.and_then(|event| self.datapath.rule_names().get(event.rule));
        let fate = match (ran.action, told) {
            (-1, _) => Fate::Passed,
            (2, Some(event)) => Fate::Refused(event.reason),
            (2, None) => Fate::Silent,
            (other, _) => panic!("the program returned {other}"),
        };
        (fate, rule)
    }

    /// The entries of all sets.
    pub fn entries(&self) -> Vec<(PolicyKey, Entry)> {
        self.kernel.datapath().unwrap().policy.list().unwrap()
    }

    pub fn write(&self, key: PolicyKey, entry: Entry) {
        self.kernel.datapath().unwrap().policy.set(key, entry).unwrap();
    }
}

fn ports(labels: &Labels) -> NamedPorts {
    let mut ports = NamedPorts::new();
    for (name, protocol, number) in named_ports(labels) {
        ports
            .entry(name.to_owned())
            .or_default()
            .insert((protocol, number));
    }
    ports
}

/// What policies name, as the policy service would have read it.
fn cluster(workloads: &[(NumericIdentity, Labels)]) -> Cluster {
    let mut cluster: Cluster = workloads.iter().cloned().collect();
    for (number, labels) in workloads {
        cluster.set_ports(*number, ports(labels));
    }
    for manifest in surroundings() {
        let text = manifest.to_string();
        let resource = weft_resources::parse("s.json", text.as_bytes())
            .unwrap()
            .remove(0);
        let labels = |source: &str| {
            let own = resource.meta.labels.iter();
            own.map(|(k, v)| (format!("{source}:{k}"), v.clone())).collect()
        };
        match &resource.body {
            Body::CiliumCidrGroup(group) => {
                let (labels, cidrs) = (labels("cidrgroup"), group.cidrs.clone());
                cluster.set_group(&resource.meta.name, Some(Group { labels, cidrs }));
            }
            Body::Service(service) => {
                let (labels, selector) = (labels("k8s"), service.selector.clone());
                let backed = Some(Backed { labels, selector });
                cluster.set_service(&resource.meta.namespace, &resource.meta.name, backed);
            }
            other => panic!("{other:?}"),
        }
    }
    cluster
}

fn read(manifest: &Value) -> PolicyObject {
    let mut all = weft_resources::parse("p.json", manifest.to_string().as_bytes())
        .unwrap_or_else(|problems| panic!("{problems:#?} in {manifest:#}"));
    let resource = all.remove(0);
    let kind = resource.kind().name().to_owned();
    let (Body::CiliumNetworkPolicy(policy)
    | Body::CiliumClusterwideNetworkPolicy(policy)
    | Body::NetworkPolicy(policy)) = resource.body
    else {
        panic!("{manifest:#} is no policy");
    };
    PolicyObject {
        kind,
        namespace: resource.meta.namespace,
        name: resource.meta.name,
        rules: policy.rules,
    }
}
