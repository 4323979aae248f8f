//! Pods: listeners and sockets that are inside their namespace.

use crate::rig::{Rig, answer, ask, eventually, listener, open, pod_spec};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use weft_handoff::{Event, Family, ListenerKind};
use weft_proto::weft::dataplane::v1::workload_spec::Place;
use weft_testnet::Namespace;

fn local(port: u16, v6: bool) -> SocketAddr {
    if v6 {
        format!("[::1]:{port}")
    } else {
        format!("127.0.0.1:{port}")
    }
    .parse()
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_inside_the_pod_and_nowhere_else() {
    let rig = Rig::without_agent();
    let (shop, plain) = (rig.node.pod("shop").unwrap(), rig.node.pod("plain").unwrap());
    let mut agent = rig.connect().await;
    let placed = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    assert!(placed.id.starts_with("n1/default/shop/"), "{}", placed.id);
    assert!(placed.endpoint > 0);
    let cgroup = placed.cgroup.clone().unwrap();
    assert!(cgroup.starts_with(rig.node.cgroup()) && cgroup.is_dir());
    assert_eq!(placed.cgroup_id, weft_bpf::cgroup_id(&cgroup).unwrap());
    let mut addresses = placed.addresses.clone();
    addresses.sort();
    assert_eq!(addresses, shop.addresses());

    for (kind, port) in [
        (ListenerKind::RuntimeHttp, 3500),
        (ListenerKind::RuntimeGrpc, 50001),
    ] {
        for v6 in [false, true] {
            let listener = listener(&placed, kind, v6);
            let serving = std::thread::spawn(move || answer(&listener, "agent"));
            assert_eq!(
                ask(shop.namespace(), local(port, v6), "hello").unwrap(),
                "agent hello\n"
            );
            serving.join().unwrap();
        }
    }
    // Nothing passes before an agent has said what may.
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    let beside = SocketAddr::new(shop.v4().into(), 3500);
    let connect = || {
        plain
            .namespace()
            .run(|| TcpStream::connect_timeout(&beside, Duration::from_millis(150)))
    };
    let placed_plain = agent.link.place(pod_spec(&plain, "")).await.unwrap();
    assert_eq!(
        connect().unwrap().unwrap_err().kind(),
        std::io::ErrorKind::TimedOut
    );
    open(&mut agent, &[&placed, &placed_plain]);
    // The tunnel is on the pod's addresses, so other nodes reach it; their workloads may not.
    let reach = |from: &Namespace, address| ask(from, SocketAddr::new(address, 15008), "from outside");
    for (address, v6) in shop.addresses().into_iter().zip([false, true]) {
        let listener = listener(&placed, ListenerKind::Tunnel, v6);
        let serving = std::thread::spawn(move || answer(&listener, "tunnel"));
        let reached = reach(rig.node.namespace(), address);
        assert_eq!(reached.unwrap(), "tunnel from outside\n");
        serving.join().unwrap();
    }
    // Outside nobody listens at the ports that apps see: not at the pod's address, not in another pod.
    for address in [beside, local(3500, false)] {
        assert!(
            refused(ask(plain.namespace(), address, "hello").unwrap_err()),
            "{address}"
        );
    }
    // Without an app-id there are no APIs, but whatever it says can be captured, and is, by tunnels.
    let kinds: Vec<_> = placed_plain.listeners.iter().map(|l| l.kind).collect();
    let (tunnel, capture, dns) = (ListenerKind::Tunnel, ListenerKind::Capture, ListenerKind::Dns);
    assert_eq!(kinds, [tunnel, tunnel, capture, capture, dns, dns]);
    assert!(ask(plain.namespace(), local(3500, false), "hello").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_reach_an_app_that_listens_on_the_pods_loopback_only() {
    let rig = Rig::without_agent();
    let shop = rig.node.pod("shop").unwrap();
    let app = shop.namespace().listen(("127.0.0.1", 0)).unwrap();
    let address = app.local_addr().unwrap();
    std::thread::spawn(move || {
        for _ in 0..20 {
            answer(&app, "app");
        }
    });
    let agent = rig.connect().await;
    let placed = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    for i in 0..20 {
        let socket = agent.link.socket(&placed.id, Family::V4).await.unwrap();
        let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let stream = socket.connect(address).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        (&stream).write_all(format!("{i}\n").as_bytes()).unwrap();
        let mut text = String::new();
        (&stream).read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("app {i}\n"));
    }
    // The twin: the same address from here is somewhere else.
    assert!(std::net::TcpStream::connect(address).is_err());
    let v6 = agent.link.open_sockets(&placed.id, Family::V6, 64).await.unwrap();
    assert_eq!(v6.len(), 64);
    agent.link.remove(&placed.id).await.unwrap();
    let error = agent
        .link
        .open_sockets(&placed.id, Family::V4, 1)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is not on this node"), "{error}");
}

/// A namespace of the test's own, mounted as `ip netns add` does it.
fn mounted_namespace(path: &std::path::Path) {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    std::fs::write(path, "").unwrap();
    let path = path.to_owned();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        mount(
            Some("/proc/thread-self/ns/net"),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
    })
    .join()
    .unwrap();
}

fn delete(path: &std::path::Path) {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_is_gone_and_another_one_is_not() {
    let rig = Rig::without_agent();
    let mut agent = rig.connect().await;
    let mut ids = Vec::new();
    let paths = ["a", "b"].map(|name| rig.net.dir().join(name));
    for path in &paths {
        mounted_namespace(path);
        let mut spec = crate::rig::process_spec(path.file_name().unwrap().to_str().unwrap());
        spec.place = Some(Place::NetnsPath(path.to_str().unwrap().into()));
        ids.push(agent.link.place(spec).await.unwrap().id);
    }
    delete(&paths[0]);
    let Some(Event::Gone { id, reason }) = agent.events.next().await else {
        panic!("no event")
    };
    assert_eq!(id, ids[0]);
    assert!(reason.contains("was deleted"), "{reason}");
    assert!(agent.link.open_sockets(&ids[1], Family::V4, 1).await.is_ok());
    assert!(agent.link.open_sockets(&ids[0], Family::V4, 1).await.is_err());
    delete(&paths[1]);
    assert!(matches!(agent.events.next().await, Some(Event::Gone { id, .. }) if id == ids[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_known_by_a_process_goes_with_it() {
    let rig = Rig::without_agent();
    let shop = rig.node.pod("shop").unwrap();
    let mut sleep = std::process::Command::new("sleep");
    sleep.arg("1000");
    let mut pause = shop
        .namespace()
        .spawn(sleep, &weft_testnet::Spawn::nobody())
        .unwrap();
    let mut agent = rig.connect().await;
    for place in [
        Place::NetnsPid(pause.id()),
        Place::NetnsPath(format!("/proc/{}/ns/net", pause.id())),
    ] {
        let mut spec = pod_spec(&shop, "shop");
        spec.place = Some(place);
        let placed = agent.link.place(spec).await.unwrap();
        assert_eq!(placed.listeners.len(), 10);
        agent.link.remove(&placed.id).await.unwrap();
    }
    let mut spec = pod_spec(&shop, "shop");
    spec.place = Some(Place::NetnsPid(pause.id()));
    let placed = agent.link.place(spec).await.unwrap();
    pause.kill().unwrap();
    pause.wait().unwrap();
    let Some(Event::Gone { id, reason }) = agent.events.next().await else {
        panic!("no event")
    };
    assert_eq!(id, placed.id);
    assert!(reason.contains("exited"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_hear_of_each_others_workloads_and_get_the_same_sockets() {
    let rig = Rig::without_agent();
    let (shop, cart) = (rig.node.pod("shop").unwrap(), rig.node.pod("cart").unwrap());
    let first = rig.connect().await;
    let early = first.link.place(pod_spec(&shop, "shop")).await.unwrap();
    first
        .link
        .derived(&early.id, 4711, "spiffe://cluster.local/ns/default/shop")
        .await
        .unwrap();
    let mut second = rig.connect().await;
    assert_eq!(second.workloads.len(), 1);
    assert_eq!(
        second.workloads[0].derived,
        Some((4711, "spiffe://cluster.local/ns/default/shop".into()))
    );
    let late = first.link.place(pod_spec(&cart, "cart")).await.unwrap();
    let Some(Event::Placed(heard)) = second.events.next().await else {
        panic!("no event")
    };
    assert_eq!(heard.id, late.id);

    // What the first does not accept any more, the second does.
    drop(early);
    drop(first);
    let listener = listener(&second.workloads[0], ListenerKind::RuntimeHttp, false);
    let serving = std::thread::spawn(move || answer(&listener, "second"));
    assert_eq!(
        ask(shop.namespace(), local(3500, false), "hi").unwrap(),
        "second hi\n"
    );
    serving.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_the_node_leaves_nothing_behind() {
    let mut rig = Rig::without_agent();
    let shop = rig.node.pod("shop").unwrap();
    let agent = rig.connect().await;
    agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    let process = agent
        .link
        .place(crate::rig::process_spec("worker"))
        .await
        .unwrap();
    assert!(process.cgroup.unwrap().is_dir());
    assert!(rig.left_behind().len() >= 4, "{:?}", rig.left_behind());
    drop(agent);
    assert!(rig.stop().success());
    assert_eq!(rig.left_behind(), Vec::<std::path::PathBuf>::new());
    // Nor a listener, in the pod or on the node.
    for (namespace, address) in [
        (shop.namespace(), local(3500, false)),
        (rig.node.namespace(), local(15008, true)),
    ] {
        eventually("nobody listens", || ask(namespace, address, "x").is_err()).await;
    }
}

/// Addresses that nobody stated are those that were found, and stay true.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_network_changes_is_followed() {
    let rig = Rig::without_agent();
    let shop = rig.node.pod("shop").unwrap();
    let mut agent = rig.connect().await;
    let placed = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    let changed = async |agent: &mut weft_handoff::Connected| {
        let event = tokio::time::timeout(crate::rig::SOON, agent.events.next()).await;
        let Ok(Some(Event::Placed(now))) = event else {
            panic!("{event:?}")
        };
        assert_eq!((&now.id, now.endpoint), (&placed.id, placed.endpoint));
        now.addresses
    };
    let more: std::net::IpAddr = "10.244.1.99".parse().unwrap();
    shop.namespace()
        .ip("address add 10.244.1.99/32 dev eth0\n")
        .unwrap();
    assert!(changed(&mut agent).await.contains(&more));
    shop.namespace()
        .ip("address del 10.244.1.99/32 dev eth0\n")
        .unwrap();
    assert!(!changed(&mut agent).await.contains(&more));
    // What is the node's, or another pod's, it may claim and does not get.
    let other = rig.node.pod("other").unwrap();
    agent.link.place(pod_spec(&other, "other")).await.unwrap();
    let claims = format!(
        "address add {}/32 dev eth0\naddress add {}/32 dev eth0\naddress add 10.244.1.98/32 dev eth0\n",
        rig.node.v4(),
        other.v4()
    );
    shop.namespace().ip(&claims).unwrap();
    let now = changed(&mut agent).await;
    assert!(now.contains(&"10.244.1.98".parse().unwrap()), "{now:?}");
    assert!(
        !now.contains(&rig.node.v4().into()) && !now.contains(&other.v4().into()),
        "{now:?}"
    );

    // An interface that does not lead to this node ends it.
    let way_round = "link add away type veth peer name out\nlink set out up\n";
    let elsewhere = rig.net.node("n2").unwrap();
    shop.namespace().ip(way_round).unwrap();
    shop.namespace()
        .ip(&format!(
            "link set out netns {}\nlink set away up\n",
            elsewhere.namespace().path().display()
        ))
        .unwrap();
    loop {
        let event = tokio::time::timeout(crate::rig::SOON, agent.events.next()).await;
        match event {
            Ok(Some(Event::Placed(_))) => {}
            Ok(Some(Event::Gone { id, reason })) => {
                assert_eq!(id, placed.id);
                assert!(
                    reason.contains("away") && reason.contains("another namespace"),
                    "{reason}"
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}
