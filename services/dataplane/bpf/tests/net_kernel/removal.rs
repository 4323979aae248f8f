//! What becomes of sockets when their backend goes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use weft_bpf::{Backend, Closer, Frontend, Gone, NamespaceSockets, Services, Transport};

use crate::scene::{Caller, Scene, Written, service};

const SERVICE: u8 = 1;
const OTHER: u8 = 2;

fn gone(transport: Transport, backend: SocketAddr, services: &[u8]) -> Gone {
    let v6 = backend.is_ipv6();
    Gone {
        transport,
        backend,
        services: services.iter().map(|number| service(*number, v6)).collect(),
    }
}

/// Closes in a caller's namespace.
fn close(scene: &Scene, caller: &Caller, gone: &Gone) -> usize {
    close_with(&scene.rig.kernel.closer().unwrap(), scene, caller, gone)
}

/// Gives a service other backends, both families and protocols.
fn put(writer: &mut Services, scene: &Scene, number: u8, backends: &[usize]) {
    for v6 in [false, true] {
        for transport in [Transport::Tcp, Transport::Udp] {
            let frontend = Frontend {
                address: service(number, v6),
                transport,
            };
            let backends: Vec<Backend> = backends
                .iter()
                .map(|at| Backend {
                    address: scene.backend(*at, v6),
                    endpoint: 0,
                })
                .collect();
            assert_eq!(writer.set(frontend, false, &backends).unwrap().left_out, 0);
        }
    }
}

fn close_with(closer: &Closer, scene: &Scene, caller: &Caller, gone: &Gone) -> usize {
    let namespace = match &caller.pod {
        Some(pod) => pod.namespace(),
        None => scene.rig.node.namespace(),
    };
    // Opened inside, used out here: the socket keeps its namespace.
    let mut sockets = namespace.run(NamespaceSockets::open).unwrap().unwrap();
    closer.close(&mut sockets, std::slice::from_ref(gone)).unwrap()
}

#[test]
fn tcp_connections_of_a_removed_backend_are_closed_and_others_stay() {
    let scene = Scene::new(2);
    let mut writer = scene.rig.kernel.services().unwrap();
    for caller in &scene.callers {
        for written in Written::ALL {
            put(&mut writer, &scene, SERVICE, &[0]);
            put(&mut writer, &scene, OTHER, &[0]);
            let v6 = written.is_v6();
            let what = format!("{} {written:?}", caller.name);
            let dial = |to| caller.actor.dial(written.put(to)).unwrap();
            let translated = dial(service(SERVICE, v6));
            // The same backend: by another service, and by its own address.
            let other = dial(service(OTHER, v6));
            let direct = dial(scene.backend(0, v6));
            let second = dial(scene.backend(1, v6));
            let everyone = [translated, other, direct, second];
            for number in everyone {
                caller.actor.say(number, "hello").unwrap();
            }

            let all = gone(Transport::Tcp, scene.backend(0, v6), &[]);
            assert_eq!(close(&scene, caller, &all), 0, "{what}: it is a backend still");
            put(&mut writer, &scene, SERVICE, &[1]);
            // Nothing is meant: another backend, another service, another protocol.
            let backend = scene.backend(0, v6);
            assert_eq!(
                close(&scene, caller, &gone(Transport::Tcp, scene.backend(1, v6), &[])),
                0
            );
            assert_eq!(close(&scene, caller, &gone(Transport::Tcp, backend, &[9])), 0);
            assert_eq!(
                close(&scene, caller, &gone(Transport::Udp, backend, &[SERVICE])),
                0
            );
            for number in everyone {
                assert_eq!(caller.actor.state(number), "open", "{what}");
            }

            assert_eq!(
                close(&scene, caller, &gone(Transport::Tcp, backend, &[SERVICE])),
                1,
                "{what}"
            );
            assert_eq!(caller.actor.state(translated), "ECONNABORTED", "{what}");
            for number in [other, direct, second] {
                assert_eq!(caller.actor.state(number), "open", "{what}");
                caller.actor.say(number, "still").unwrap();
            }
            // Whatever the service, once it is no backend of that one either.
            assert_eq!(close(&scene, caller, &all), 0, "{what}");
            put(&mut writer, &scene, OTHER, &[]);
            assert_eq!(
                close(&scene, caller, &gone(Transport::Tcp, backend, &[])),
                1,
                "{what}"
            );
            assert_eq!(caller.actor.state(other), "ECONNABORTED", "{what}");
            assert_eq!(caller.actor.say(direct, "still").unwrap(), "b1:still", "{what}");
        }
    }
}

#[test]
fn connected_udp_sockets_of_a_removed_backend_are_closed_and_others_stay() {
    let scene = Scene::new(2);
    let mut writer = scene.rig.kernel.services().unwrap();
    for caller in &scene.callers {
        for written in Written::ALL {
            put(&mut writer, &scene, SERVICE, &[0]);
            let v6 = written.is_v6();
            let what = format!("{} {written:?}", caller.name);
            let connected = |to: SocketAddr| {
                let to = written.put(to);
                let socket = caller.actor.datagrams(to);
                caller.actor.connect_datagrams(socket, to).unwrap();
                socket
            };
            let translated = connected(service(SERVICE, v6));
            let direct = connected(scene.backend(0, v6));
            let second = connected(scene.backend(1, v6));
            let to = written.put(service(SERVICE, v6));
            let free = caller.actor.datagrams(to);
            caller.actor.exchange_with(free, to, "x").unwrap();

            let backend = scene.backend(0, v6);
            let meant = gone(Transport::Udp, backend, &[SERVICE]);
            assert_eq!(close(&scene, caller, &meant), 0, "{what}: it is a backend still");
            put(&mut writer, &scene, SERVICE, &[1]);
            assert_eq!(
                close(&scene, caller, &gone(Transport::Tcp, backend, &[])),
                0,
                "{what}"
            );
            assert_eq!(
                close(&scene, caller, &gone(Transport::Udp, backend, &[SERVICE])),
                1,
                "{what}"
            );
            assert_eq!(caller.actor.state(translated), "ECONNABORTED", "{what}");
            for (socket, name) in [(direct, "b1"), (second, "b2")] {
                let (text, _) = caller.actor.exchange(socket, "still").unwrap();
                assert_eq!(text, format!("{name}:still"), "{what}");
            }
            // One that is not connected asks for the next backend itself.
            assert_eq!(caller.actor.exchange_with(free, to, "x").unwrap().1, to, "{what}");
        }
    }
}

#[test]
fn many_backends_are_closed_at_once() {
    let mut scene = Scene::new(3);
    scene.set(SERVICE, false, &[0]);
    scene.set(OTHER, false, &[1]);
    let caller = &scene.callers[1];
    let mut tcp = Vec::new();
    let mut udp = Vec::new();
    let mut all = Vec::new();
    for (number, at) in [(SERVICE, 0), (OTHER, 1)] {
        for v6 in [false, true] {
            let to = service(number, v6);
            let connection = caller.actor.dial(to).unwrap();
            caller.actor.say(connection, "x").unwrap();
            tcp.push(connection);
            let socket = caller.actor.datagrams(to);
            caller.actor.connect_datagrams(socket, to).unwrap();
            udp.push(socket);
            for transport in [Transport::Tcp, Transport::Udp] {
                all.push(gone(transport, scene.backend(at, v6), &[number]));
            }
        }
    }
    // And ports of backends that nobody has.
    all.push(gone(Transport::Tcp, "10.9.9.9:1".parse().unwrap(), &[]));
    all.push(gone(Transport::Udp, "10.9.9.9:1".parse().unwrap(), &[]));
    let bystander = caller.actor.dial(scene.backend(2, false)).unwrap();
    let pod = caller.pod.as_ref().unwrap();
    let mut sockets = pod.namespace().run(NamespaceSockets::open).unwrap().unwrap();
    let closer = scene.rig.kernel.closer().unwrap();
    assert_eq!(closer.close(&mut sockets, &all).unwrap(), 0);
    let mut writer = scene.rig.kernel.services().unwrap();
    put(&mut writer, &scene, SERVICE, &[1]);
    put(&mut writer, &scene, OTHER, &[0]);
    assert_eq!(closer.close(&mut sockets, &all).unwrap(), 8);
    for number in tcp.into_iter().chain(udp) {
        assert_eq!(caller.actor.state(number), "ECONNABORTED");
    }
    assert_eq!(caller.actor.state(bystander), "open");
    assert_eq!(closer.close(&mut sockets, &all).unwrap(), 0);
    assert_eq!(closer.close(&mut sockets, &[]).unwrap(), 0);
}

#[test]
fn a_captured_connection_is_the_agents_to_close() {
    let mut scene = Scene::new(1);
    scene.set(SERVICE, true, &[0]);
    for caller in &scene.callers {
        let number = caller.actor.dial(service(SERVICE, false)).unwrap();
        let _accepted = caller.captures[0].accept().unwrap();
        let backend = scene.backend(0, false);
        assert_eq!(close(&scene, caller, &gone(Transport::Tcp, backend, &[])), 0);
        assert_eq!(caller.actor.state(number), "open");
    }
}

/// Ends the load also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn under_load_no_connect_reaches_a_backend_after_it_was_removed() {
    const ROUNDS: usize = 30;
    let mut scene = Scene::new(3);
    let to = service(SERVICE, false);
    let frontend = Frontend {
        address: to,
        transport: Transport::Tcp,
    };
    let all: Vec<Backend> = (0..3)
        .map(|at| Backend {
            address: scene.backend(at, false),
            endpoint: 0,
        })
        .collect();
    let closer = scene.rig.kernel.closer().unwrap();
    // An actor takes one command at a time: those that probe are others than those that load.
    let prober = scene.rig.process(&scene.rig.node.cgroup().join("process"));
    let Scene {
        services,
        callers,
        rig,
        ..
    } = &mut scene;
    assert_eq!(services.set(frontend, false, &all).unwrap().left_out, 0);

    let done = AtomicBool::new(false);
    let (connects, closed) = thread::scope(|scope| {
        let ends = Done(&done);
        // Both callers connect as fast as they can; none is ever refused.
        let load: Vec<_> = callers
            .iter()
            .map(|caller| {
                let done = &done;
                scope.spawn(move || {
                    let mut connects = 0;
                    while !done.load(Ordering::Relaxed) {
                        match caller.actor.dial(to) {
                            Ok(number) => caller.actor.close(number),
                            // It was on its way to the removed one.
                            Err(error) => assert!(error.contains("abort"), "{error}"),
                        }
                        connects += 1;
                    }
                    connects
                })
            })
            .collect();
        let mut closed = 0;
        for round in 0..ROUNDS {
            let out = round % 3;
            let dial = || {
                let number = prober.dial(to).unwrap();
                let answer = prober.say(number, "x").unwrap();
                (number, answer == format!("b{}:x", out + 1))
            };
            let standing: Vec<(usize, bool)> = (0..12).map(|_| dial()).collect();

            let left: Vec<Backend> = (0..3).filter(|at| *at != out).map(|at| all[at]).collect();
            let change = services.set(frontend, false, &left).unwrap();
            assert_eq!(change.removed, [all[out].address]);
            // These began after the update: not one meets the removed one.
            for _ in 0..16 {
                let (number, removed) = dial();
                assert!(!removed, "round {round}");
                prober.close(number);
            }
            let held = gone(Transport::Tcp, all[out].address, &[SERVICE]);
            let mut sockets = rig.node.namespace().run(NamespaceSockets::open).unwrap().unwrap();
            closed += closer.close(&mut sockets, &[held]).unwrap();
            for (number, removed) in standing {
                let expected = if removed { "ECONNABORTED" } else { "open" };
                assert_eq!(prober.state(number), expected, "round {round}");
                prober.close(number);
            }
            assert!(services.set(frontend, false, &all).unwrap().removed.is_empty());
        }
        drop(ends);
        let connects: usize = load.into_iter().map(|caller| caller.join().unwrap()).sum();
        (connects, closed)
    });
    println!("{connects} connects, {closed} closed");
    assert!(connects > 10 * ROUNDS, "{connects}");
    assert!(closed >= ROUNDS, "{closed}");
    assert_eq!(
        (scene.count("no_backends"), scene.count("backend_unusable")),
        (0, 0)
    );
}
