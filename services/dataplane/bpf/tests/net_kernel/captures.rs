//! What goes to the agent's capture listener, with its destination, and what may not go at all.

use std::net::SocketAddr;

use ipnet::IpNet;
use weft_bpf::{Address, Backend, Direction, Entry, Frontend, Options, Origin, PolicyKey, Set, Transport};

use crate::rig::Rig;
use crate::scene::{Caller, Scene, Written, service};

/// The callers' policy set, and that of a backend.
const SET: u32 = 5;
const BACKEND_SET: u32 = 6;
const BACKEND: u32 = 70;
const REMOTE: u32 = 4711;
const TCP: u8 = 6;
/// `WEFT_SHAPE_PEER_PORT` and `WEFT_SHAPE_PEER`.
const PEER_PORT: u32 = 1;
const PEER: u32 = 4;

fn scene(strict: bool) -> Scene {
    let mut scene = Scene::on(Rig::with(|options: &mut Options| options.strict = strict), 2);
    scene.set(1, false, &[0]);
    for caller in &scene.callers {
        scene.policy(caller, SET);
    }
    scene.shapes(SET, 0, 0);
    scene
}

impl Scene {
    pub fn shapes(&self, set: u32, shapes_in: u32, shapes_out: u32) {
        let set_of = Set {
            shapes_in,
            shapes_out,
            generation: 1,
            ..Set::default()
        };
        self.rig.kernel.datapath().unwrap().sets.set(set, set_of).unwrap();
    }

    /// Who has a backend's addresses.
    fn address(&self, at: usize, address: Address) {
        let addresses = self.rig.kernel.datapath().unwrap().addresses;
        for ip in self.backends[at].addresses() {
            addresses.set(IpNet::from(ip), address).unwrap();
        }
    }

    fn rule(&self, set: u32, identity: u32, direction: Direction, port: u16, redirect: bool) {
        let key = PolicyKey {
            set,
            identity,
            direction,
            protocol: if port == 0 { 0 } else { TCP },
            port,
        };
        let entry = Entry {
            redirect,
            rule: 1,
            ..Entry::default()
        };
        self.rig
            .kernel
            .datapath()
            .unwrap()
            .policy
            .set(key, entry)
            .unwrap();
    }

    /// Connects; the connection must be the agent's now. What the agent reads.
    fn captured(&self, caller: &Caller, written: Written, to: SocketAddr) -> Origin {
        let to = written.put(to);
        let number = caller.actor.dial(to).unwrap();
        assert_eq!(caller.actor.peer(number).unwrap(), to);
        let (stream, _) = caller.captures[usize::from(written.is_v6())].accept().unwrap();
        let origin = self.rig.origins.read(&stream).unwrap().unwrap();
        assert!(origin.captured);
        assert_eq!(origin.workload_index, caller.index);
        caller.actor.close(number);
        origin
    }

    /// Connects; it must be direct.
    fn direct(&self, caller: &Caller, to: SocketAddr, name: &str) {
        let number = caller.actor.dial(to).unwrap();
        let answer = caller.actor.say(number, "x").unwrap();
        assert_eq!(answer, format!("{name}:x"), "{}", caller.name);
        caller.actor.close(number);
    }

    fn cases(&self) -> impl Iterator<Item = (&Caller, Written)> {
        self.callers
            .iter()
            .flat_map(|caller| Written::ALL.map(|written| (caller, written)))
    }
}

fn remote() -> Address {
    Address {
        identity: REMOTE,
        tunnel: true,
        node: 2,
        ..Address::default()
    }
}

#[test]
fn what_is_reached_by_tunnel_goes_to_the_agent_with_its_target() {
    let scene = scene(true);
    scene.address(0, remote());
    for (caller, written) in scene.cases() {
        let v6 = written.is_v6();
        // By a service: the kernel has chosen the backend already.
        let origin = scene.captured(caller, written, service(1, v6));
        assert_eq!(origin.destination, service(1, v6));
        assert_eq!(
            (origin.target, origin.service),
            (Some(scene.backend(0, v6)), true)
        );
        // By its own address.
        let origin = scene.captured(caller, written, scene.backend(0, v6));
        assert_eq!(origin.destination, scene.backend(0, v6));
        assert_eq!(
            (origin.target, origin.service),
            (Some(scene.backend(0, v6)), false)
        );
        // Its twin on this node.
        scene.direct(caller, written.put(scene.backend(1, v6)), "b2");
    }
    assert_eq!(scene.count("captured"), 12);
}

#[test]
fn what_is_meant_for_agents_is_not_carried_by_one() {
    let mut scene = scene(true);
    scene.address(0, remote());
    let tunnel = SocketAddr::new(scene.backend(0, false).ip(), 15008);
    let frontend = Frontend {
        address: service(9, false),
        transport: Transport::Tcp,
    };
    let backends = [Backend {
        address: tunnel,
        endpoint: 0,
    }];
    let change = scene.services.set(frontend, false, &backends).unwrap();
    assert_eq!(change.left_out, 0);
    for caller in &scene.callers {
        for to in [tunnel, frontend.address] {
            // Here no program refuses packets, and nobody listens.
            let refused = caller.actor.dial(to).unwrap_err();
            assert!(refused.contains("refused"), "{refused}");
        }
        scene.captured(caller, Written::V4, scene.backend(0, false));
    }
    assert_eq!(scene.count("captured"), 2);
}

#[test]
fn without_a_listener_strict_closes_what_must_be_tunnelled() {
    for strict in [true, false] {
        let scene = scene(strict);
        scene.address(0, remote());
        for caller in &scene.callers {
            scene.listens(caller, false, SET);
            for to in [service(1, false), scene.backend(0, false)] {
                if strict {
                    let refused = caller.actor.dial(to).unwrap_err();
                    assert!(refused.contains("not permitted"), "{refused}");
                } else {
                    scene.direct(caller, to, "b1");
                }
            }
            scene.direct(caller, scene.backend(1, false), "b2");
            scene.listens(caller, true, SET);
            scene.captured(caller, Written::V4, service(1, false));
        }
        assert_eq!(scene.count("tunnel_closed"), if strict { 4 } else { 0 });
    }
}

#[test]
fn egress_policy_that_asks_for_the_proxy_goes_to_the_agent() {
    let scene = scene(false);
    let [identity, other] = [900, 901];
    for (at, identity) in [identity, other].into_iter().enumerate() {
        scene.address(
            at,
            Address {
                identity,
                ..Address::default()
            },
        );
    }
    scene.rule(SET, identity, Direction::Out, 8080, true);
    scene.rule(SET, other, Direction::Out, 8081, true);
    // An entry counts only when the set says that such keys are in use.
    for caller in &scene.callers {
        scene.direct(caller, service(1, false), "b1");
    }
    scene.shapes(SET, 0, PEER_PORT | PEER);
    for (caller, written) in scene.cases() {
        let v6 = written.is_v6();
        for to in [service(1, v6), scene.backend(0, v6)] {
            let origin = scene.captured(caller, written, to);
            assert_eq!(origin.target, Some(scene.backend(0, v6)));
        }
        // Another identity, whose rule is for another port.
        scene.direct(caller, written.put(scene.backend(1, v6)), "b2");
    }
    for caller in &scene.callers {
        // Policy says that it must be looked into: without a listener it cannot be.
        scene.listens(caller, false, SET);
        let refused = caller.actor.dial(service(1, false)).unwrap_err();
        assert!(refused.contains("not permitted"), "{refused}");
        scene.direct(caller, scene.backend(1, false), "b2");
        scene.listens(caller, true, SET);
    }
    assert_eq!(scene.count("redirect_closed"), 2);
    // A rule that allows all of that peer leaves nothing to look into.
    scene.rule(SET, identity, Direction::Out, 0, false);
    for caller in &scene.callers {
        scene.direct(caller, service(1, false), "b1");
    }
}

#[test]
fn ingress_policy_of_an_endpoint_here_that_asks_for_the_proxy_goes_to_the_agent() {
    let scene = scene(false);
    for (at, endpoint) in [BACKEND, BACKEND + 1].into_iter().enumerate() {
        scene.address(
            at,
            Address {
                identity: endpoint,
                local: true,
                endpoint,
                ..Address::default()
            },
        );
        scene.known(endpoint, BACKEND_SET + at as u32);
        scene.shapes(BACKEND_SET + at as u32, PEER_PORT, 0);
    }
    let [process, pod] = &scene.callers;
    // Only what this one caller says is looked into.
    scene.rule(BACKEND_SET, 1000 + pod.index, Direction::In, 8080, true);
    for to in [service(1, false), scene.backend(0, false)] {
        let origin = scene.captured(pod, Written::V4, to);
        assert_eq!(origin.target, Some(scene.backend(0, false)));
        scene.direct(process, to, "b1");
    }
    scene.direct(pod, scene.backend(1, false), "b2");
}

#[test]
fn who_is_outside_the_cluster_is_the_world() {
    let scene = scene(false);
    scene.rule(SET, 2, Direction::Out, 8080, true);
    scene.shapes(SET, 0, PEER_PORT);
    for caller in &scene.callers {
        let origin = scene.captured(caller, Written::V4, scene.backend(1, false));
        assert_eq!(origin.target, Some(scene.backend(1, false)));
    }
    scene.address(
        1,
        Address {
            identity: 900,
            ..Address::default()
        },
    );
    for caller in &scene.callers {
        scene.direct(caller, scene.backend(1, false), "b2");
    }
}
