//! Whatever happens in whatever order: a node that applies its updates ends up with what a world that
//! starts from the same facts would send it at once, and what it was sent never referred to something
//! that it did not have.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use tokio::sync::oneshot;
use weft_model::{Labels, NumericIdentity};

const NODES: [&str; 3] = ["n0", "n1", "n2"];
const NAMESPACES: [&str; 2] = ["a", "b"];
/// So wide that the few Services here never meet.
const RANGE: &str = "10.96.0.0/12";

/// One thing that happens; numbers choose among few names.
#[derive(Debug, Clone)]
enum Step {
    Register {
        node: usize,
        slot: u8,
        namespace: usize,
        app: u8,
        role: u8,
    },
    Deregister {
        node: usize,
        slot: u8,
        namespace: usize,
    },
    Object {
        namespace: usize,
        file: u8,
        kind: u8,
        variant: u8,
    },
    RemoveObject {
        namespace: usize,
        file: u8,
        kind: u8,
    },
    Collect,
    Connect {
        node: usize,
        remember: bool,
    },
    Disconnect {
        node: usize,
    },
    Take {
        node: usize,
        nack: bool,
    },
    AskFor {
        node: usize,
        namespace: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (n, s) = (0..NODES.len(), 0..NAMESPACES.len());
    prop_oneof![
        6 => (n.clone(), 0..3u8, s.clone(), 0..3u8, 0..3u8)
            .prop_map(|(node, slot, namespace, app, role)| Step::Register { node, slot, namespace, app, role }),
        2 => (n.clone(), 0..3u8, s.clone()).prop_map(|(node, slot, namespace)| Step::Deregister { node, slot, namespace }),
        5 => (s.clone(), 0..2u8, 0..12u8, 0..9u8)
            .prop_map(|(namespace, file, kind, variant)| Step::Object { namespace, file, kind, variant }),
        2 => (s.clone(), 0..2u8, 0..12u8).prop_map(|(namespace, file, kind)| Step::RemoveObject { namespace, file, kind }),
        1 => Just(Step::Collect),
        2 => (n.clone(), any::<bool>()).prop_map(|(node, remember)| Step::Connect { node, remember }),
        1 => n.clone().prop_map(|node| Step::Disconnect { node }),
        6 => (n.clone(), prop::bool::weighted(0.1)).prop_map(|(node, nack)| Step::Take { node, nack }),
        1 => (n, s).prop_map(|(node, namespace)| Step::AskFor { node, namespace }),
    ]
}

fn object(namespace: &str, file: u8, kind: u8, variant: u8) -> Arc<weft_resources::Resource> {
    let meta = format!("metadata: {{name: o{file}, namespace: {namespace}}}");
    let rules = [
        "ingress: [{fromEndpoints: [{matchLabels: {role: r0}}]}]",
        "ingress: [{fromEndpoints: [{matchLabels: {role: r1, 'io.kubernetes.pod.namespace': b}}]}]",
        "ingress: [{fromEntities: [cluster]}]",
        "ingress: [{fromEndpoints: []}]",
        "ingress: [{fromEntities: [world]}]",
        "ingress: [{fromEndpoints: [{matchLabels: {'io.cilium.k8s.namespace.labels.team': t1}}], toPorts: [{ports: [{port: web}]}]}]",
        "ingress: [{fromCIDRSet: [{cidrGroupRef: o0-a}, {cidrGroupSelector: {matchLabels: {kind: k1}}}]}]",
        "egress: [{toPorts: [{ports: [{port: web}]}]}]",
        "egress: [{toServices: [{k8sService: {serviceName: o0}}]}]",
    ][usize::from(variant)];
    let (spread, variant) = (variant, variant % 5);
    let app = variant % 3;
    let text = match kind {
        0 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n{meta}\nspec: {{endpointSelector: {{matchLabels: {{app: a{app}}}}}, {rules}}}"
        ),
        3 => {
            let from = [
                "[{podSelector: {matchLabels: {role: r0}}}]",
                "[{podSelector: {matchLabels: {role: r1}}, namespaceSelector: {}}]",
                "[{namespaceSelector: {}}]",
                "[{ipBlock: {cidr: 10.0.0.0/8}}]",
                "[]",
            ][usize::from(variant)];
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{meta}\nspec: {{podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: {from}}}]}}"
            )
        }
        4 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: o{file}-{namespace}}}\nspec: {{endpointSelector: {{matchLabels: {{app: a{app}}}}}, {rules}}}"
        ),
        8 => {
            let name = if file == 0 {
                namespace.to_owned()
            } else {
                format!("{namespace}-x")
            };
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: t{}}}}}",
                spread % 3
            )
        }
        9 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {{name: o{file}-{namespace}, labels: {{kind: k{}}}}}\nspec: {{externalCIDRs: [10.{spread}.0.0/16]}}",
            spread % 2
        ),
        5 => {
            let hostname = ["", "hostname: a.test, ", "hostname: '*.test', "][usize::from(app)];
            let from = if variant < 3 { "All" } else { "Same" };
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n{meta}\nspec: {{gatewayClassName: cilium, listeners: [{{name: l, {hostname}port: {}, protocol: HTTP, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}",
                80 + u16::from(variant)
            )
        }
        6 | 10 => {
            let parent = [
                "{name: o0, namespace: a}",
                "{name: o1, namespace: b}",
                "{kind: Service, group: '', name: o0}",
                "{kind: Service, group: '', name: o1}",
                "{name: o0, namespace: a}, {kind: Service, group: '', name: o1}",
            ][usize::from(variant)];
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {}\n{meta}\nspec: {{parentRefs: [{parent}], hostnames: [a.test], rules: [{{backendRefs: [{{name: o0, namespace: b, port: 80}}, {{name: o{app}, port: 81}}]}}]}}",
                if kind == 6 { "HTTPRoute" } else { "GRPCRoute" }
            )
        }
        11 if spread % 3 == 0 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumLocalRedirectPolicy\n{meta}\nspec: {{redirectFrontend: {{addressMatcher: {{ip: 169.254.{}.{file}, toPorts: [{{port: '53', protocol: TCP}}]}}}}, redirectBackend: {{localEndpointSelector: {{matchLabels: {{role: r{app}}}}}, toPorts: [{{port: '5353', protocol: TCP}}]}}}}",
            // Of two policies about one address the first counts, so they never meet.
            u8::from(namespace == "b")
        ),
        11 => format!(
            "apiVersion: cilium.io/v2\nkind: CiliumLocalRedirectPolicy\n{meta}\nspec: {{redirectFrontend: {{serviceMatcher: {{serviceName: o{}, namespace: a}}}}, redirectBackend: {{localEndpointSelector: {{matchLabels: {{role: r{app}}}}}, toPorts: [{{port: '{}', protocol: TCP}}]}}}}",
            variant % 2,
            8000 + u16::from(variant)
        ),
        7 => format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n{meta}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {}}}], to: [{{group: '', kind: Service}}]}}",
            if variant < 3 { "a" } else { "b" }
        ),
        1 => format!(
            "apiVersion: v1\nkind: Service\n{meta}\nspec: {{selector: {{app: a{app}}}, ports: [{{port: {}}}]}}",
            80 + u16::from(variant)
        ),
        _ => format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\n{meta}\nspec: {{type: t{variant}, version: v1}}\nscopes: {}",
            if variant < 3 {
                format!("[a{app}]")
            } else {
                "[]".into()
            }
        ),
    };
    Arc::new(weft_resources::parse("f", text.as_bytes()).unwrap().remove(0))
}

/// A node as an agent would be one.
#[derive(Default)]
struct Agent {
    updates: Option<mpsc::Receiver<pb::SubscribeResponse>>,
    session: u64,
    version: u64,
    state: BTreeMap<(String, String), pb::Resource>,
    /// Refused something and was not sent it again yet: what it holds may have holes.
    holes: bool,
}

use tokio::sync::mpsc;

impl Agent {
    fn take(&mut self, world: &mut World, name: &str, nack: bool) -> bool {
        let Some(update) = self.updates.as_mut().and_then(|u| u.try_recv().ok()) else {
            return false;
        };
        if nack {
            self.holes = true;
            world.nack(name, self.session, update.version, vec!["no".into()]);
            return true;
        }
        if update.snapshot {
            self.state.clear();
            self.holes = false;
        }
        for resource in update.upserts {
            let key = resource.key.clone().unwrap();
            self.state.insert((key.kind, key.name), resource);
        }
        for key in update.removes {
            self.state.remove(&(key.kind, key.name));
        }
        self.version = update.version;
        world.ack(name, self.session, update.version);
        if !self.holes {
            self.check();
        }
        true
    }

    /// Nothing refers to what is not there.
    fn check(&self) {
        let has = |kind: &str, name: &str| self.state.contains_key(&(kind.to_owned(), name.to_owned()));
        for resource in self.state.values() {
            match resource.body.as_ref().unwrap() {
                pb::resource::Body::Endpoint(endpoint) => {
                    let identity = endpoint.workload.as_ref().unwrap().identity;
                    assert!(
                        has("identity", &identity.to_string()),
                        "{endpoint:?} without its identity"
                    );
                    let set = &endpoint.policy_set;
                    assert!(
                        set.is_empty() || has("policy-set", set),
                        "{endpoint:?} without its set"
                    );
                }
                pb::resource::Body::Service(service) => {
                    for id in &service.endpoints {
                        assert!(has("endpoint", id), "{service:?} without its endpoint");
                    }
                }
                pb::resource::Body::Gateway(gateway) => {
                    let service = format!("{}/{}", gateway.namespace, gateway.service);
                    assert!(has("service", &service), "{gateway:?} without its Service");
                }
                pb::resource::Body::Route(route) => {
                    for attachment in &route.attachments {
                        let (kind, name) = match attachment.parent.as_ref().unwrap() {
                            pb::attachment::Parent::Service(p) => {
                                ("service", format!("{}/{}", p.namespace, p.name))
                            }
                            pb::attachment::Parent::Listener(p) => {
                                ("gateway", format!("{}/{}", p.gateway_namespace, p.gateway))
                            }
                        };
                        assert!(has(kind, &name), "{route:?} without its parent");
                    }
                    for target in route.rules[0].backends.iter().filter_map(|b| b.target.as_ref()) {
                        let name = format!("{}/{}", target.namespace, target.service);
                        assert!(has("service", &name), "{route:?} without its backend");
                    }
                }
                _ => {}
            }
        }
    }
}

struct Scene {
    world: World,
    agents: Vec<Agent>,
    sessions: u64,
    clock: u64,
}

impl Scene {
    fn play(&mut self, step: &Step) {
        self.clock += 1;
        let now = self.clock;
        let id = |node: usize, slot: u8, namespace: usize| {
            format!("{}/{}/w{slot}/1", NODES[node], NAMESPACES[namespace])
        };
        match *step {
            Step::Register {
                node,
                slot,
                namespace,
                app,
                role,
            } => {
                let labels = [
                    ("app".to_owned(), format!("a{app}")),
                    ("role".to_owned(), format!("r{role}")),
                ];
                let message = pb::Workload {
                    id: id(node, slot, namespace),
                    node: NODES[node].into(),
                    namespace: NAMESPACES[namespace].into(),
                    name: format!("w{slot}"),
                    kind: pb::WorkloadKind::Process.into(),
                    app_id: if role == 0 {
                        String::new()
                    } else {
                        format!("a{app}")
                    },
                    labels: labels.into(),
                    named_ports: vec![pb::NamedPort {
                        name: "web".into(),
                        port: 80 + u32::from(slot % 2),
                        protocol: 6,
                    }],
                    ..Default::default()
                };
                let planned = self.world.plan_registration(NODES[node], message, now).unwrap();
                self.world.register(planned, now);
            }
            Step::Deregister {
                node,
                slot,
                namespace,
            } => {
                self.world.deregister(&id(node, slot, namespace), now);
            }
            Step::Object {
                namespace,
                file,
                kind,
                variant,
            } => {
                let object = object(NAMESPACES[namespace], file, kind, variant);
                self.world.set_object(&ObjectKey::of(&object), Some(&object));
            }
            Step::RemoveObject {
                namespace,
                file,
                kind,
            } => {
                let key = ObjectKey::of(&object(NAMESPACES[namespace], file, kind, 0));
                self.world.set_object(&key, None);
            }
            Step::Collect => {
                for identity in self.world.expired_identities(now) {
                    self.world.take_back(identity);
                }
            }
            Step::Connect { node, remember } => {
                self.sessions += 1;
                let (updates, receiver) = mpsc::channel(WINDOW + 1);
                let agent = &mut self.agents[node];
                (agent.updates, agent.session) = (Some(receiver), self.sessions);
                if !remember {
                    (agent.version, agent.holes) = (0, false);
                    agent.state.clear();
                }
                let session = Session {
                    number: self.sessions,
                    updates,
                    software: String::new(),
                    connected_at: std::time::SystemTime::now(),
                    _held: oneshot::channel().0,
                };
                let held_epoch = self.world.epoch.clone();
                let hello = pb::Hello {
                    held_version: agent.version,
                    held_epoch,
                    software: String::new(),
                    addresses: vec![format!("192.0.2.{}", node + 1)],
                    pod_cidrs: Vec::new(),
                };
                self.world.node_told(NODES[node], &hello);
                self.world.connect(NODES[node], session, &hello);
            }
            Step::Disconnect { node } => {
                self.agents[node].updates = None;
                self.world.disconnect(NODES[node], self.agents[node].session);
            }
            Step::Take { node, nack } => {
                self.agents[node].take(&mut self.world, NODES[node], nack);
            }
            Step::AskFor { node, namespace } => {
                self.world
                    .ask_for(NODES[node], vec![NAMESPACES[namespace].into()]);
            }
        }
        self.world.settle();
    }
}

/// A world that is told the same facts and has no past.
fn from_scratch(world: &World) -> World {
    let mut fresh = World::new(TrustDomain::default(), "fresh".into());
    let identities: Vec<(NumericIdentity, Labels, Option<u64>)> = world
        .workloads
        .own_labels()
        .map(|(id, labels)| (id, labels.clone(), None))
        .collect();
    let workloads = world.workloads.iter().map(|w| w.message.clone()).collect();
    fresh.restore(identities, workloads, 0);
    fresh.give_addresses_of(vec![RANGE.parse().unwrap()]);
    for name in NODES {
        if let Some(resource) = world.node_facts.resource(name) {
            let Some(pb::resource::Body::Node(node)) = &resource.body else {
                panic!("{resource:?}")
            };
            fresh.restore_node(node.clone());
        }
    }
    fresh
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn deltas_lead_to_where_a_snapshot_does(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(TrustDomain::default(), "e".into());
        world.give_addresses_of(vec![RANGE.parse().unwrap()]);
        let agents = NODES.iter().map(|_| Agent::default()).collect();
        let mut scene = Scene { world, agents, sessions: 0, clock: 0 };
        let mut objects = BTreeMap::new();
        for step in &steps {
            match *step {
                Step::Object { namespace, file, kind, variant } => {
                    objects.insert((namespace, file, kind), variant);
                }
                Step::RemoveObject { namespace, file, kind } => {
                    objects.remove(&(namespace, file, kind));
                }
                _ => {}
            }
            scene.play(step);
        }
        // Everybody is there, takes all that is left, and hears once more of what was refused.
        for (node, name) in NODES.iter().enumerate() {
            if scene.agents[node].updates.is_none() {
                scene.play(&Step::Connect { node, remember: true });
            }
            while scene.agents[node].take(&mut scene.world, name, false) {}
            scene.play(&Step::Connect { node, remember: true });
            while scene.agents[node].take(&mut scene.world, name, false) {}
            scene.agents[node].check();
        }
        // A node that came is news for those before it.
        for (node, name) in NODES.iter().enumerate() {
            while scene.agents[node].take(&mut scene.world, name, false) {}
        }
        let mut fresh = from_scratch(&scene.world);
        for ((namespace, file, kind), variant) in objects {
            let object = object(NAMESPACES[namespace], file, kind, variant);
            fresh.set_object(&ObjectKey::of(&object), Some(&object));
        }
        fresh.settle();
        for (at, name) in NODES.iter().enumerate() {
            let asked_for = scene.world.nodes[*name].1.asked_for.clone();
            let wanted: BTreeMap<_, _> = fresh
                .share(name, &fresh.scope(name, asked_for))
                .into_iter()
                .map(|(key, resource)| {
                    let key = key.to_wire();
                    ((key.kind, key.name), (*resource).clone())
                })
                .collect();
            prop_assert_eq!(&scene.agents[at].state, &wanted, "{}", name);
        }
    }
}
