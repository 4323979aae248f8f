//! Whose packets a process's connections send: the table that tells, for an address that all of the
//! node's processes share.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use weft_bpf::{Endpoint, Transport};

use crate::actor::Actor;
use crate::rig::listening;
use crate::scene::{Scene, Written, service};

impl Scene {
    fn process_of(&self, from: SocketAddr, to: SocketAddr) -> Option<u32> {
        self.rig.kernel.process(Transport::Tcp, from, to).unwrap()
    }

    fn until_forgotten(&self, from: SocketAddr, to: SocketAddr) {
        let begun = Instant::now();
        while self.process_of(from, to).is_some() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{from} to {to} stays");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_process_connection_is_known_from_its_first_packet_until_it_is_closed() {
    let mut scene = Scene::new(1);
    scene.set(1, false, &[0]);
    scene.set(2, true, &[0]);
    let [process, pod] = &scene.callers;
    for written in Written::ALL {
        let backend = scene.backend(0, written.is_v6());
        for to in [backend, service(1, written.is_v6())] {
            let (number, from) = process.actor.connect(written.put(to));
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            // As its packets are written: with the backend's address.
            assert_eq!(
                scene.process_of(from, backend),
                Some(process.index),
                "{written:?}"
            );
            process.actor.close(number);
            // The other end has to answer first.
            scene.until_forgotten(from, backend);
        }
    }
    let backend = scene.backend(0, false);
    let (_, from) = pod.actor.connect(backend);
    assert_eq!(
        scene.process_of(from, backend),
        None,
        "a pod has addresses of its own"
    );
    let (other, _) = scene.rig.cgroup("other");
    let stranger = scene.rig.process(&other);
    let (_, from) = stranger.connect(service(1, false));
    assert_eq!(scene.process_of(from, backend), None, "nobody's");
    // What the agent carries on is not the process's any more.
    let (_, from) = process.actor.connect(service(2, false));
    let capture = process.captures[0].local_addr().unwrap();
    assert_eq!(scene.process_of(from, capture), None);
}

#[test]
fn a_connection_that_never_comes_about_leaves_nothing() {
    let scene = Scene::new(1);
    let [process, _] = &scene.callers;
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    // Refused by the other end.
    let closed: SocketAddr = (scene.backends[0].v4(), 9).into();
    let (_, from) = process.actor.begin(any, closed);
    scene.until_forgotten(from, closed);
    // Never answered, and given up.
    let (_full, silent) = listening(scene.rig.keeper.listen((scene.rig.node.v4(), 0).into(), 0));
    scene.rig.outsider().connect(silent);
    let (number, from) = process.actor.begin(any, silent);
    assert_eq!(scene.process_of(from, silent), Some(process.index));
    process.actor.close(number);
    assert_eq!(scene.process_of(from, silent), None);
}

#[test]
fn whoever_connects_a_socket_that_another_made_is_who_speaks() {
    let mut scene = Scene::new(1);
    scene.set(1, false, &[0]);
    let backend = scene.backend(0, false);
    let (other, _) = scene.rig.workload("other", 9);
    let (other, maker) = (scene.rig.process(&other), &scene.callers[0].actor);
    for to in [backend, service(1, false)] {
        let (_, from) = other.connect_with(maker.socket().as_fd(), to);
        assert_eq!(
            scene.process_of(from, backend),
            Some(9),
            "made by one, connected by another"
        );
        let (_, from) = maker.connect_with(other.socket().as_fd(), to);
        assert_eq!(
            scene.process_of(from, backend),
            Some(7),
            "and the other way round"
        );
    }
    // Somebody who is nobody has the service, and no name.
    let (nobody, _) = scene.rig.cgroup("nobody");
    let nobody = scene.rig.process(&nobody);
    let (_, from) = nobody.connect_with(maker.socket().as_fd(), service(1, false));
    assert_eq!(scene.process_of(from, backend), None);
}

/// Every rule allows; what matters is that packets pass the programs that write down their sender.
const SET: u32 = 3;

#[test]
fn a_datagram_is_spoken_by_who_sends_it_or_connected_the_socket() {
    let mut scene = Scene::new(1);
    scene.set(1, false, &[0]);
    scene.shapes(SET, 0, 0);
    scene.listens(&scene.callers[0], true, SET);
    let (other, _) = scene.rig.workload("other", 9);
    let endpoint = Endpoint {
        identity: 1009,
        set: SET,
        process: true,
        ..Endpoint::default()
    };
    scene.rig.kernel.endpoints().unwrap().set(9, endpoint).unwrap();
    let (nobody, _) = scene.rig.cgroup("nobody");
    let (other, nobody) = (scene.rig.process(&other), scene.rig.process(&nobody));
    let maker = &scene.callers[0].actor;
    scene.rig.kernel.attach_processes().unwrap();

    let backend = scene.backend(0, false);
    // The node's end of its pods' links is what its processes send from.
    let [a, b, c, _] = scene.backends[0].v4().octets();
    let socket = maker.ask("udp_socket", &[]).unwrap().1.unwrap();
    let port = UdpSocket::from(socket.try_clone().unwrap())
        .local_addr()
        .unwrap()
        .port();
    let from = SocketAddr::from(([a, b, c, 1], port));
    let speaks = |who: &Actor, how: &str, expected: Option<u32>| {
        who.ask(&format!("use {how}"), &[socket.as_fd()]).unwrap();
        let found = scene.rig.kernel.process(Transport::Udp, from, backend).unwrap();
        assert_eq!(found, expected, "{how}");
    };
    for to in [backend, service(1, false)] {
        speaks(maker, &format!("sendto {to}"), Some(7));
        speaks(&other, &format!("sendto {to}"), Some(9));
        // Who is nobody speaks as the one who made the socket and gave it away.
        speaks(&nobody, &format!("sendto {to}"), Some(7));
    }
    other
        .ask(&format!("use connect {}", service(1, false)), &[socket.as_fd()])
        .unwrap();
    speaks(maker, "send", Some(9));
    speaks(maker, &format!("sendto {backend}"), Some(7));
}
