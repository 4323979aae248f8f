//! Where calls go, and what their callers see of it.

use std::net::SocketAddr;

use weft_bpf::{Frontend, Kernel, Transport};

use crate::scene::{Caller, PORT, Scene, Written, service};
use crate::talk;

/// Services by number.
const PLAIN: u8 = 1;
const CAPTURED: u8 = 2;
const EMPTY: u8 = 3;

fn scene() -> Scene {
    let mut scene = Scene::new(2);
    scene.set(PLAIN, false, &[0]);
    scene.set(CAPTURED, true, &[0]);
    scene.set(EMPTY, false, &[]);
    scene
}

fn cases(scene: &Scene) -> impl Iterator<Item = (&Caller, Written)> {
    scene
        .callers
        .iter()
        .flat_map(|caller| Written::ALL.map(|written| (caller, written)))
}

#[test]
fn tcp_goes_to_a_backend_to_the_agent_or_nowhere() {
    let scene = scene();
    for (caller, written) in cases(&scene) {
        let what = format!("{} {written:?}", caller.name);
        let to = |number| written.put(service(number, written.is_v6()));
        let actor = &caller.actor;

        let number = actor.dial(to(PLAIN)).unwrap();
        assert_eq!(actor.say(number, "hello").unwrap(), "b1:hello", "{what}");
        assert_eq!(actor.peer(number).unwrap(), to(PLAIN), "{what}");

        let direct = written.put(scene.backend(1, written.is_v6()));
        let number = actor.dial(direct).unwrap();
        assert_eq!(actor.say(number, "hello").unwrap(), "b2:hello", "{what}");
        assert_eq!(actor.peer(number).unwrap(), direct, "{what}");

        let refused = actor.dial(to(EMPTY)).unwrap_err();
        assert!(refused.contains("refused"), "{what}: {refused}");

        let number = actor.dial(to(CAPTURED)).unwrap();
        assert_eq!(actor.peer(number).unwrap(), to(CAPTURED), "{what}");
        let (stream, _) = caller.captures[usize::from(written.is_v6())].accept().unwrap();
        let origin = scene.rig.origins.read(&stream).unwrap().expect(&what);
        assert_eq!(
            (origin.destination, origin.target, origin.captured, origin.service),
            (service(CAPTURED, written.is_v6()), None, true, true),
            "{what}"
        );
        assert_eq!(
            (origin.workload_index, origin.cgroup_id, origin.pod),
            (caller.index, caller.cgroup, caller.pod.is_some()),
            "{what}"
        );
        actor.close(number);
        assert!(talk::drain(stream).is_empty());
    }
    assert_eq!((scene.count("balanced"), scene.count("captured")), (6, 6));
    assert_eq!((scene.count("no_backends"), scene.count("no_storage")), (6, 0));
    assert_eq!(scene.count("delivered"), 6);
}

#[test]
fn udp_goes_to_a_backend_and_answers_come_from_the_service() {
    let scene = scene();
    for (caller, written) in cases(&scene) {
        let what = format!("{} {written:?}", caller.name);
        let to = |number| written.put(service(number, written.is_v6()));
        let direct = written.put(scene.backend(1, written.is_v6()));
        let actor = &caller.actor;

        // One socket, not connected, that talks to both and to a service that has nobody.
        let socket = actor.datagrams(to(PLAIN));
        let answered = |to, name: &str| {
            let (text, from) = actor.exchange_with(socket, to, "hello").unwrap();
            assert_eq!((text, from), (format!("{name}:hello"), to), "{what}");
        };
        answered(to(PLAIN), "b1");
        answered(direct, "b2");
        // There is nothing for the agent in a datagram.
        answered(to(CAPTURED), "b1");
        answered(to(PLAIN), "b1");
        let refused = actor.exchange_with(socket, to(EMPTY), "hello").unwrap_err();
        assert!(refused.contains("refused"), "{what}: {refused}");
        answered(to(PLAIN), "b1");

        for (to, name) in [(to(PLAIN), "b1"), (direct, "b2")] {
            let socket = actor.datagrams(to);
            actor.connect_datagrams(socket, to).unwrap();
            assert_eq!(actor.peer(socket).unwrap(), to, "{what}");
            let heard = actor.exchange(socket, "hello").unwrap();
            assert_eq!(heard, (format!("{name}:hello"), to), "{what}");
        }
        let socket = actor.datagrams(to(EMPTY));
        let refused = actor.connect_datagrams(socket, to(EMPTY)).unwrap_err();
        assert!(refused.contains("refused"), "{what}: {refused}");
        // The same socket, once it asks for something that is there.
        actor.connect_datagrams(socket, to(PLAIN)).unwrap();
        assert_eq!(actor.peer(socket).unwrap(), to(PLAIN), "{what}");
    }
    assert_eq!(
        (scene.count("no_backends"), scene.count("udp_forgotten")),
        (12, 0)
    );
}

#[test]
fn without_a_capture_listener_a_service_is_balanced_in_the_kernel() {
    let scene = scene();
    for caller in &scene.callers {
        scene.endpoint(caller, false);
        let number = caller.actor.dial(service(CAPTURED, false)).unwrap();
        assert_eq!(caller.actor.say(number, "hello").unwrap(), "b1:hello");
        scene.endpoint(caller, true);
        caller.actor.dial(service(CAPTURED, false)).unwrap();
        let (stream, _) = caller.captures[0].accept().unwrap();
        assert!(scene.rig.origins.read(&stream).unwrap().unwrap().captured);
    }
}

#[test]
fn strangers_have_services_translated_and_nothing_else() {
    let scene = scene();
    let (other, _) = scene.rig.cgroup("other");
    let stranger = scene.rig.process(&other);
    for number in [PLAIN, CAPTURED] {
        let to = service(number, false);
        let connection = stranger.dial(to).unwrap();
        assert_eq!(stranger.say(connection, "hello").unwrap(), "b1:hello");
        assert_eq!(stranger.peer(connection).unwrap(), to);
    }
    assert!(
        stranger
            .dial(service(EMPTY, false))
            .unwrap_err()
            .contains("refused")
    );
    assert_eq!((scene.count("captured"), scene.count("published")), (0, 0));
    assert_eq!(scene.count("connect_unregistered"), 3);
    // Who is outside the subtree is none of the node's business.
    let outsider = scene.rig.outsider();
    let refused = outsider.dial(service(EMPTY, false)).unwrap_err();
    assert!(!refused.contains("refused"), "{refused}");
}

#[test]
fn a_socket_that_the_node_made_goes_where_it_is_told() {
    use std::os::fd::AsFd;
    let scene = scene();
    // As the agent connects for an app: a socket of the pod's namespace, made by the node.
    let pod = scene.callers[1].pod.as_ref().unwrap();
    let own = weft_testnet::Spawn::root().cgroup(scene.rig.node.cgroup().join("_node"));
    let node = crate::actor::Actor::new(pod.namespace(), &own);
    let agent = &scene.callers[1].actor;
    let to = service(CAPTURED, false);

    let socket = node.socket();
    scene
        .rig
        .kernel
        .own_sockets()
        .unwrap()
        .mark(socket.as_fd())
        .unwrap();
    let error = agent.ask(&format!("begin_with {to}"), &[socket.as_fd()]);
    assert!(error.is_ok(), "{error:?}");
    assert_eq!(scene.count("captured"), 0);
    // Its twin, not marked.
    let socket = node.socket();
    agent.connect_with(socket.as_fd(), to);
    scene.callers[1].captures[0].accept().unwrap();
    assert_eq!(scene.count("captured"), 1);
}

#[test]
fn connections_spread_evenly_over_backends() {
    const TIMES: usize = 1000;
    let mut scene = Scene::new(4);
    scene.set(PLAIN, false, &[0, 1, 2, 3]);
    // Of a binomial distribution: 1000 times 1/4.
    let deviation = (TIMES as f64 * 0.25 * 0.75).sqrt();
    for caller in &scene.callers {
        let counts = caller.actor.spread(TIMES, service(PLAIN, false));
        assert_eq!(counts.len(), 4, "{counts:?}");
        for count in counts.values() {
            let off = (*count as f64 - TIMES as f64 / 4.0).abs();
            assert!(off <= 5.0 * deviation, "{}: {counts:?}", caller.name);
        }
        println!("{}: {counts:?}", caller.name);
    }
    assert_eq!(scene.count("balanced"), 2 * TIMES as u64);
    assert_eq!(scene.count("backend_unusable"), 0);
}

#[test]
fn a_udp_socket_keeps_its_backend_while_others_come_and_go() {
    let mut scene = Scene::new(4);
    scene.set(PLAIN, false, &[0, 1]);
    let to = service(PLAIN, false);
    let who = |scene: &Scene, socket| {
        let (text, from) = scene.callers[1].actor.exchange_with(socket, to, "hello").unwrap();
        assert_eq!(from, to);
        text.split(':').next().unwrap().to_string()
    };
    let sockets: Vec<usize> = (0..20).map(|_| scene.callers[1].actor.datagrams(to)).collect();
    let first: Vec<String> = sockets.iter().map(|socket| who(&scene, *socket)).collect();
    assert!(
        first.contains(&"b1".into()) && first.contains(&"b2".into()),
        "{first:?}"
    );

    scene.set(PLAIN, false, &[2, 1, 0, 3]);
    let second: Vec<String> = sockets.iter().map(|socket| who(&scene, *socket)).collect();
    assert_eq!(first, second, "more backends change nothing for who has one");

    let removed = scene.set(PLAIN, false, &[1, 2, 3]);
    assert!(removed.contains(&scene.backend(0, false)));
    for (socket, had) in sockets.iter().zip(&first) {
        let has = who(&scene, *socket);
        assert_ne!(has, "b1");
        assert!(had == "b1" || *had == has, "{had} became {has}");
    }

    // A service made anew at the same address is another one.
    let frontend = Frontend {
        address: to,
        transport: Transport::Udp,
    };
    assert_eq!(scene.services.remove(frontend).unwrap().len(), 3);
    scene.set(PLAIN, false, &[3]);
    assert!(sockets.iter().all(|socket| who(&scene, *socket) == "b4"));
    scene.set(PLAIN, false, &[]);
    let actor = &scene.callers[1].actor;
    assert!(
        actor
            .exchange_with(sockets[0], to, "x")
            .unwrap_err()
            .contains("refused")
    );
    scene.set(PLAIN, false, &[0]);
    assert_eq!(who(&scene, sockets[0]), "b1");
}

#[test]
fn a_udp_socket_forgets_the_service_it_has_not_asked_for_longest() {
    let mut scene = Scene::new(1);
    for number in 1..=9 {
        scene.set(number, false, &[0]);
    }
    let actor = &scene.callers[1].actor;
    let socket = actor.datagrams(service(1, false));
    // All have one backend: an answer belongs to who was asked last.
    for number in 1..=9 {
        let to = service(number, false);
        assert_eq!(actor.exchange_with(socket, to, "x").unwrap().1, to);
    }
    assert_eq!(scene.count("udp_forgotten"), 1);
    for number in 2..=9 {
        actor.exchange_with(socket, service(number, false), "x").unwrap();
    }
    assert_eq!(scene.count("udp_forgotten"), 1, "the other eight are remembered");
    actor.exchange_with(socket, service(1, false), "x").unwrap();
    assert_eq!(scene.count("udp_forgotten"), 2);
}

#[test]
fn two_threads_share_a_socket() {
    let mut scene = Scene::new(4);
    // No backend in both: an answer could be either's.
    scene.set(1, false, &[0, 1]);
    scene.set(2, false, &[2, 3]);
    let [one, two] = [service(1, false), service(2, false)];
    for caller in &scene.callers {
        // Over TCP both connect to a service: one gets through, and its peer is the service's.
        for _ in 0..50 {
            let (answer, _) = caller.actor.ask(&format!("race {one}"), &[]).unwrap();
            let (peer, said) = answer.split_once(' ').unwrap();
            assert_eq!(peer.parse::<SocketAddr>().unwrap(), one);
            assert!(said == "b1:x" || said == "b2:x", "{said}");
        }
        // Over UDP each sends to a service of its own.
        let socket = caller.actor.datagrams(one);
        let (answer, _) = caller
            .actor
            .ask(&format!("together {socket} {one} {two}"), &[])
            .unwrap();
        assert_eq!(answer, "2 400", "two services, a backend each, nothing lost");
    }
}

#[test]
fn what_is_no_service_is_left_alone() {
    let scene = scene();
    for caller in &scene.callers {
        let namespace = match &caller.pod {
            Some(pod) => pod.namespace(),
            None => scene.rig.node.namespace(),
        };
        for address in ["127.0.0.1:9", "[::1]:9"] {
            let address: SocketAddr = address.parse().unwrap();
            talk::answer(namespace, address, "loopback");
            let number = caller.actor.dial(address).unwrap();
            assert_eq!(caller.actor.say(number, "x").unwrap(), "loopback:x");
            assert_eq!(caller.actor.peer(number).unwrap(), address);
            let socket = caller.actor.datagrams(address);
            assert_eq!(
                caller.actor.exchange_with(socket, address, "x").unwrap(),
                ("loopback:x".into(), address)
            );
        }
        // A service's address on another port, and another protocol's.
        let other = SocketAddr::new(service(PLAIN, false).ip(), PORT + 1);
        assert!(!caller.actor.dial(other).unwrap_err().is_empty());
        let answer = caller.actor.ask("unix", &[]).unwrap();
        assert_eq!(answer.0, "unix");
    }
    assert_eq!((scene.count("balanced"), scene.count("no_backends")), (0, 0));
}

#[test]
fn a_reload_keeps_services_and_who_has_which_backend() {
    let mut scene = Scene::new(3);
    scene.set(PLAIN, false, &[0, 1, 2]);
    let to = service(PLAIN, false);
    let actor = &scene.callers[1].actor;
    let sockets: Vec<usize> = (0..10).map(|_| actor.datagrams(to)).collect();
    let who = |socket: &usize| actor.exchange_with(*socket, to, "x").unwrap();
    let before: Vec<_> = sockets.iter().map(who).collect();
    let connection = actor.dial(to).unwrap();
    let said = actor.say(connection, "x").unwrap();

    let next = Kernel::load(&scene.rig.options).unwrap();
    assert!(next.adopted());
    assert_eq!(sockets.iter().map(who).collect::<Vec<_>>(), before);
    assert_eq!(actor.say(connection, "x").unwrap(), said);
    assert_eq!(actor.peer(connection).unwrap(), to);
    let connection = actor.dial(to).unwrap();
    assert_eq!(actor.peer(connection).unwrap(), to);
    let mut services = next.services().unwrap();
    let frontend = Frontend {
        address: to,
        transport: Transport::Tcp,
    };
    assert_eq!(services.remove(frontend).unwrap().len(), 3);
}
