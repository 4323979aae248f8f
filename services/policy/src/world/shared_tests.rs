//! Who there is to be, where, and at which addresses.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};
use weft_model::TrustDomain;

fn service(app: &str, strategy: &str) -> weft_resources::Resource {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {app}-dapr\n  annotations:\n    \
         weft.dev/shared-app: {app}\n    weft.dev/strategy: {strategy}\n    weft.dev/remote: http://web.shop:8080\n\
         spec:\n  ports: [{{name: http, port: 3500}}]\n"
    );
    weft_resources::parse("f", text.as_bytes()).unwrap().remove(0)
}

/// A world with these ranges, in which nodes come and go.
struct Stand {
    world: World,
    away: BTreeSet<String>,
    forbidden: BTreeSet<String>,
    streams: BTreeMap<String, mpsc::Receiver<pb::SubscribeResponse>>,
}

impl Stand {
    fn new(ranges: &[&str]) -> Self {
        let mut world = World::new(TrustDomain::default(), "e".into());
        world.give_shared_addresses_of(ranges.iter().map(|r| r.parse().unwrap()).collect());
        Self {
            world,
            away: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            streams: BTreeMap::new(),
        }
    }

    fn ask(&mut self, app: &str, strategy: Option<&str>) {
        let resource = strategy.map(|strategy| std::sync::Arc::new(service(app, strategy)));
        let key = crate::world::ObjectKey {
            kind: weft_resources::Kind::Service,
            namespace: "default".into(),
            name: format!("{app}-dapr"),
        };
        self.world.set_object(&key, resource.as_ref());
    }

    fn connect(&mut self, node: &str, addresses: &[&str]) {
        let hello = pb::Hello {
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            ..Default::default()
        };
        self.world.node_told(node, &hello);
        let (updates, receiver) = mpsc::channel(64);
        let session = crate::world::Session {
            number: 1,
            updates,
            software: String::new(),
            connected_at: std::time::SystemTime::now(),
            _held: oneshot::channel().0,
        };
        self.world.connect(node, session, &hello);
        self.streams.insert(node.to_owned(), receiver);
        self.away.remove(node);
    }

    fn changes(&self) -> Vec<SharedChange> {
        self.world.shared_changes(&Nodes {
            may_host: &|node, _, _| Some(!self.forbidden.contains(node)),
            away: &self.away,
        })
    }

    /// Makes what is to be made; answers how much that was.
    fn make(&mut self) -> usize {
        let changes = self.changes();
        for change in &changes {
            match change {
                SharedChange::Remove(id) => self.world.deregister(id, 1),
                SharedChange::Put(message) => {
                    let planned = self.world.plan_shared((**message).clone(), 1).unwrap();
                    self.world.register(planned, 1);
                }
            }
        }
        self.world.settle();
        changes.len()
    }

    fn there(&self) -> Vec<&pb::Workload> {
        let all = self.world.workloads.iter().map(|w| &w.message);
        all.filter(|m| m.shared.is_some()).collect()
    }

    fn nodes(&self) -> Vec<&str> {
        self.there().iter().map(|m| m.node.as_str()).collect()
    }
}

const RANGES: [&str; 2] = ["198.18.0.0/16", "fd00:10:97::/112"];

#[test]
fn each_node_has_one_with_an_address_of_each_family_that_the_node_has() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("ingress", Some("daemonset"));
    assert_eq!(stand.make(), 0, "there is no node");
    stand.connect("n1", &["192.0.2.1", "2001:db8::1"]);
    stand.connect("n2", &["192.0.2.2"]);
    assert_eq!(stand.make(), 2);
    let [one, two] = stand.there()[..] else {
        panic!("two nodes")
    };
    assert_eq!(one.id, "n1/default/ingress-shared-n1/shared");
    assert_eq!((one.addresses.len(), two.addresses.len()), (2, 1));
    assert!(one.addresses[0].starts_with("198.18.") && one.addresses[1].starts_with("fd00:10:97::"));
    assert_ne!(one.addresses[0], two.addresses[0]);
    assert_eq!(one.spiffe_id, "spiffe://cluster.local/ns/default/ingress");
    assert_eq!(one.identity, two.identity, "the same labels");
    assert_eq!(one.labels["app.kubernetes.io/name"], "dapr-shared");
    assert_eq!(one.labels["app.kubernetes.io/instance"], "ingress");
    let shared = one.shared.as_ref().unwrap();
    assert_eq!(
        (&*shared.remote, &*shared.service),
        ("http://web.shop:8080", "ingress-dapr")
    );
    assert_eq!(shared.node_addresses, ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(stand.make(), 0, "nothing has changed");
    stand.ask("ingress", None);
    assert_eq!(stand.make(), 2);
    assert!(stand.there().is_empty());
}

#[test]
fn they_back_their_service_and_nodes_know_what_they_need() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("ingress", Some("daemonset"));
    stand.connect("n1", &["192.0.2.1"]);
    stand.make();
    let service = stand.world.objects.resource(&crate::world::Key::new(
        crate::world::Kind::Service,
        "default/ingress-dapr",
    ));
    let Some(pb::resource::Body::Service(service)) = &service.unwrap().body else {
        panic!("no Service")
    };
    assert_eq!(service.endpoints, ["n1/default/ingress-shared-n1/shared"]);
    // The node knows the namespace of the app behind it too, where it hosts nothing.
    let scope = stand.world.scope("n1", BTreeSet::new());
    assert!(format!("{scope:?}").contains("\"shop\""), "{scope:?}");
    let node = stand.world.node_facts.resource("n1").unwrap();
    let Some(pb::resource::Body::Node(node)) = &node.body else {
        panic!("{node:?}")
    };
    assert_eq!(node.shared_cidrs, RANGES);
    assert!(node.pod_cidrs.is_empty(), "they lie around no pod");
}

#[test]
fn one_for_the_cluster_stays_where_it_is_and_moves_when_its_node_goes() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("whoami", Some("deployment"));
    for node in ["n1", "n2", "n3"] {
        stand.connect(node, &["192.0.2.1"]);
        stand.make();
        assert_eq!(stand.nodes(), ["n1"], "one that is there is not moved");
    }
    stand.world.disconnect("n1", 1);
    assert_eq!(stand.make(), 0, "not for a moment's absence");
    stand.away.insert("n1".into());
    assert_eq!(stand.make(), 2);
    let [moved] = stand.nodes()[..] else { panic!("one") };
    assert_ne!(moved, "n1");
    let moved = moved.to_owned();
    // It does not come back with its first node.
    stand.connect("n1", &["192.0.2.1"]);
    assert_eq!(stand.make(), 0);
    // Nobody else is there: better one that is away than none.
    for node in ["n1", "n2", "n3"] {
        stand.world.disconnect(node, 1);
        stand.away.insert(node.into());
    }
    assert_eq!(stand.make(), 0);
    assert_eq!(stand.nodes(), [&*moved]);
    // Its node is gone for good: there is none until another comes.
    stand.world.node_gone(&moved);
    stand.make();
    assert!(stand.nodes().is_empty());
    stand.connect("n4", &["192.0.2.4"]);
    stand.make();
    assert_eq!(stand.nodes(), ["n4"]);
}

#[test]
fn a_node_that_may_not_host_the_app_gets_none() {
    let mut stand = Stand::new(&RANGES);
    stand.forbidden.insert("n1".into());
    stand.ask("ingress", Some("daemonset"));
    stand.ask("whoami", Some("deployment"));
    stand.connect("n1", &["192.0.2.1"]);
    stand.connect("n2", &["192.0.2.2"]);
    stand.make();
    assert_eq!(stand.nodes(), ["n2", "n2"]);
    // The twin; and what it may not host any more is taken away.
    stand.forbidden = ["n2".to_owned()].into();
    stand.make();
    assert_eq!(stand.nodes(), ["n1", "n1"]);
    // As long as nothing is known, nothing is changed.
    let changes = stand.world.shared_changes(&Nodes {
        may_host: &|_, _, _| None,
        away: &stand.away,
    });
    assert_eq!(changes, []);
}

#[test]
fn what_was_stored_keeps_its_address_and_its_node() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("whoami", Some("deployment"));
    stand.connect("n2", &["192.0.2.2"]);
    stand.make();
    let stored: Vec<pb::Workload> = stand.there().into_iter().cloned().collect();
    let identities: Vec<_> = stand
        .world
        .workloads
        .own_labels()
        .map(|(n, l)| (n, l.clone(), None))
        .collect();

    let mut again = Stand::new(&RANGES);
    again.world.restore_node(pb::Node {
        name: "n2".into(),
        addresses: vec!["192.0.2.2".into()],
        ..Default::default()
    });
    again.world.restore(identities, stored.clone(), 2);
    again.ask("whoami", Some("deployment"));
    again.connect("n1", &["192.0.2.1"]);
    assert_eq!(again.make(), 0);
    assert_eq!(again.there(), stored.iter().collect::<Vec<_>>());
    // Of another range it gets another one.
    again
        .world
        .give_shared_addresses_of(vec!["203.0.113.0/24".parse().unwrap()]);
    assert_eq!(again.make(), 1);
    assert!(again.there()[0].addresses[0].starts_with("203.0.113."));
}

#[test]
fn no_node_speaks_of_one() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("whoami", Some("daemonset"));
    stand.connect("n1", &["192.0.2.1"]);
    stand.make();
    let there = stand.there()[0].clone();
    let plan = |message: pb::Workload| stand.world.plan_registration("n1", message, 1).map(|p| p.message);
    let refused = plan(there.clone()).unwrap_err().to_string();
    assert!(refused.contains("shared endpoint"), "{refused}");
    // Its address is nobody else's.
    let other = pb::Workload {
        id: "n1/default/other/1".into(),
        name: "other".into(),
        ..there.clone()
    };
    let refused = plan(other.clone()).unwrap_err().to_string();
    assert!(refused.contains("--shared-cidr"), "{refused}");
    // The twin: with an address of its own it is a workload like others.
    let own = pb::Workload {
        addresses: vec!["10.0.0.1".into()],
        ..other
    };
    assert_eq!(plan(own).unwrap().shared, None);
}

#[test]
fn the_app_behind_it_may_speak_as_itself_whatever_policies_say() {
    let mut stand = Stand::new(&RANGES);
    stand.ask("ingress", Some("daemonset"));
    stand.connect("n1", &["192.0.2.1"]);
    stand.make();
    let object = |kind, namespace: &str, name: &str| crate::world::ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    };
    let read =
        |text: &str| std::sync::Arc::new(weft_resources::parse("f", text.as_bytes()).unwrap().remove(0));
    let policy = read(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: none}\n\
         spec: {endpointSelector: {matchLabels: {dapr.io/app-id: ingress}}, ingress: [{fromEntities: [ingress]}]}",
    );
    let kind = weft_resources::Kind::CiliumNetworkPolicy;
    stand
        .world
        .set_object(&object(kind, "default", "none"), Some(&policy));
    let web = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
         spec: {selector: {app: web}, ports: [{port: 8080}]}",
    );
    let kind = weft_resources::Kind::Service;
    stand.world.set_object(&object(kind, "shop", "web"), Some(&web));
    for (name, label) in [("web-1", "web"), ("other", "other")] {
        let pod = pb::Workload {
            id: format!("n1/shop/{name}/1"),
            node: "n1".into(),
            namespace: "shop".into(),
            name: name.into(),
            kind: pb::WorkloadKind::Pod.into(),
            labels: [("app".to_owned(), label.to_owned())].into(),
            ..Default::default()
        };
        let planned = stand.world.plan_registration("n1", pod, 1).unwrap();
        stand.world.register(planned, 1);
    }
    stand.world.settle();
    let explain = |from: &str, port| {
        let asked = pb::ExplainRequest {
            from: from.into(),
            to: "default/ingress".into(),
            port,
            ..Default::default()
        };
        stand.world.explain(&asked).unwrap()
    };
    let itself = explain("shop/web-1", 3500);
    assert!(itself.allowed, "{itself:?}");
    let rule = itself.ingress.unwrap().rules.remove(0).rule.unwrap();
    assert_eq!(
        (&*rule.name, &*rule.path),
        ("ingress-dapr", "metadata.annotations.weft.dev/remote")
    );
    assert!(explain("shop/web-1", 50001).allowed);
    // One thing differs each time: the port, who.
    assert!(!explain("shop/web-1", 50002).allowed);
    assert!(!explain("shop/other", 3500).allowed);
    assert!(explain("reserved:ingress", 3500).allowed, "by the policy");
}

proptest! {
    /// However nodes come and go, no address is given twice, all are of the ranges, and what stays keeps its own.
    #[test]
    fn no_address_is_given_twice(steps in proptest::collection::vec((0..6usize, 0..3usize), 1..40)) {
        // Just enough for six nodes with two apps each.
        let mut stand = Stand::new(&["198.18.0.0/28"]);
        stand.ask("a", Some("daemonset"));
        let mut before: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (node, what) in steps {
            let name = format!("n{node}");
            match what {
                0 => stand.connect(&name, &["192.0.2.1"]),
                1 => { stand.world.disconnect(&name, 1); stand.world.node_gone(&name); }
                _ => stand.ask("b", (node % 2 == 0).then_some("daemonset")),
            }
            stand.make();
            prop_assert_eq!(stand.make(), 0, "it is settled at once");
            let all: Vec<&String> = stand.there().iter().flat_map(|m| &m.addresses).collect();
            let distinct: BTreeSet<&String> = all.iter().copied().collect();
            prop_assert_eq!(distinct.len(), all.len());
            prop_assert_eq!(all.len(), stand.there().len());
            let range: IpNet = "198.18.0.0/28".parse().unwrap();
            prop_assert!(all.iter().all(|a| range.contains(&a.parse::<IpAddr>().unwrap())));
            let now: BTreeMap<String, Vec<String>> =
                stand.there().iter().map(|m| (m.id.clone(), m.addresses.clone())).collect();
            for (id, addresses) in &now {
                prop_assert!(before.get(id).is_none_or(|old| old == addresses));
            }
            before = now;
        }
    }
}
