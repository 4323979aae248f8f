//! The kernel's own table of policies, full: what does not fit is closed and told, what fits goes on, and
//! room is used when there is some. Needs root.
#![allow(clippy::unwrap_used)]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};
use weft_bpf::{Direction, Event, Events, Hooked, Kernel as Programs, Options, pin_dir};
use weft_datapath::{Datapath, Governed, Here, Kernel, Limits, There, Update};
use weft_model::{Labels, NumericIdentity};
use weft_policy_engine::{Cluster, PolicyObject, PolicySet, compile};
use weft_testnet::{Node, Testnet};

/// Entries that there is room for: those of either policy, not those of both.
const ROOM: u32 = 64;
/// Who is let in by either policy, each by an entry of its own.
const FRIENDS: u32 = 40;
const FIRST: u32 = 300;
/// The interface that exists everywhere, loopback, and where other nodes are.
const IFINDEX: u32 = 1;
const UPLINK: u32 = 4_000;
const NO_CONFIGURATION: u8 = 165;

const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: friends, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{matchLabels: {role: friend}}]
    toPorts: [{ports: [{port: 'PORT', protocol: TCP}]}]
";

/// What lets friends in at a port.
fn policy(port: u16, identities: &Cluster) -> Arc<PolicySet> {
    let text = POLICY.replace("PORT", &port.to_string());
    let resource = weft_resources::parse("p", text.as_bytes()).unwrap().remove(0);
    let weft_resources::Body::CiliumNetworkPolicy(policy) = &resource.body else {
        panic!("{resource:?}")
    };
    let object = PolicyObject {
        kind: "CiliumNetworkPolicy".into(),
        namespace: "shop".into(),
        name: "friends".into(),
        rules: policy.rules.clone(),
    };
    let subject = Labels::for_workload([("app", "cart")], "shop", "", "");
    Arc::new(compile([&object], &subject, identities))
}

fn friend(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a02_0000 + number).into()
}

fn pod(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a01_0000 + number).into()
}

/// A TCP SYN with an Ethernet header.
fn syn(from: IpAddr, port: u16, to: IpAddr, target: u16) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("IPv4 only")
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 7, 0, 0, 64, 6, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(port.to_be_bytes());
    frame.extend(target.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([5 << 4, 2, 0, 0, 0, 0, 0, 0]);
    frame
}

struct Rig {
    programs: Programs,
    events: Events,
    datapath: Datapath<Kernel>,
    turn: u16,
    _node: Node,
    _net: Testnet,
}

impl Rig {
    fn new() -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        std::fs::create_dir_all(node.cgroup()).unwrap();
        let mut options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), "n"));
        options.max_policy_entries = ROOM;
        let programs = Programs::load(&options).unwrap();
        let tables = Kernel::new(programs.datapath().unwrap(), programs.services().unwrap());
        Self {
            events: programs.events().unwrap(),
            programs,
            datapath: Datapath::adopt(tables, Limits::default()).unwrap(),
            turn: 0,
            _node: node,
            _net: net,
        }
    }

    /// Whether a friend's connection to a pod's port passes, and what was told of it.
    fn passes(&mut self, number: u32, port: u16) -> (bool, Option<Event>) {
        self.programs.interfaces().unwrap().set(IFINDEX, number).unwrap();
        while self.events.read().is_some() {}
        self.turn += 1;
        let frame = syn(friend(7), 1_000 + self.turn, pod(number), port);
        let hook = Hooked::Interface(Direction::In);
        let run = self.programs.test_run(hook, (IFINDEX, UPLINK), &frame, 1);
        (run.unwrap().action == -1, self.events.read())
    }
}

fn here(number: u32, set: &PolicySet) -> (Arc<str>, Option<Here>) {
    let here = Here {
        number,
        pod: true,
        addresses: vec![pod(number)],
        app_port: 80,
        proven: false,
        capture: false,
        audit: false,
        governed: Some(Governed {
            identity: NumericIdentity(290 + number),
            set: set.id().into(),
        }),
    };
    (format!("pod-{number}").into(), Some(here))
}

#[test]
fn what_finds_no_room_is_closed_and_told_until_there_is_some() {
    let mut rig = Rig::new();
    let mut identities = Cluster::default();
    let mut first = Update {
        complete: true,
        ..Update::default()
    };
    for n in 0..FRIENDS {
        let identity = NumericIdentity(FIRST + n);
        let version = n.to_string();
        let labels = [("role", "friend"), ("version", version.as_str())];
        identities.insert(identity, Labels::for_workload(labels, "shop", "", ""));
        let there = There {
            node: "n2".into(),
            pod: true,
            addresses: vec![friend(n)],
            app_port: 0,
            identity,
            shared: false,
        };
        first.there.push((format!("friend-{n}").into(), Some(there)));
    }
    let (one, two) = (policy(80, &identities), policy(81, &identities));
    for set in [&one, &two] {
        first.sets.push((set.id().into(), Some(set.clone())));
    }
    first.here.push(here(1, &one));
    let outcome = rig.datapath.apply(first);
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert!(rig.passes(1, 80).0 && !rig.passes(1, 81).0);

    let second = Update {
        here: vec![here(2, &two)],
        ..Update::default()
    };
    let outcome = rig.datapath.apply(second);
    let [problem] = &outcome.problems[..] else {
        panic!("{:?}", outcome.problems)
    };
    assert!(
        problem.contains("full") && problem.contains("closed"),
        "{problem}"
    );
    assert_eq!(rig.datapath.problems(), outcome.problems);
    // All of it is closed, not what did not fit of it alone; the other pod is as it was.
    for port in [80, 81] {
        let (passes, event) = rig.passes(2, port);
        assert!(!passes, "{port}");
        assert_eq!(event.unwrap().reason, NO_CONFIGURATION);
    }
    assert!(rig.passes(1, 80).0);

    // Its twin differs in the room.
    let gone = Update {
        here: vec![("pod-1".into(), None)],
        sets: vec![(one.id().into(), None)],
        ..Update::default()
    };
    rig.datapath.apply(gone);
    assert_eq!(rig.datapath.retry().problems, Vec::<String>::new());
    assert_eq!(rig.datapath.problems(), Vec::<String>::new());
    assert!(rig.passes(2, 81).0 && !rig.passes(2, 80).0);
}
