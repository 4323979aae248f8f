//! Both ends of the hand-off over real sockets, with real descriptors.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use weft_handoff::{
    AgentLink, AgentRequest, Answer, Connected, Event, Family, GoneBackend, HandoffError, HelloAnswer,
    ListenerKind, NodeLink, NodeListener, NodeSender, Placed, SharedListener, Transport, socket,
};
use weft_proto::weft::dataplane::v1::WorkloadSpec;

fn listener() -> (SharedListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shared = SharedListener {
        kind: ListenerKind::RuntimeHttp,
        address: address.to_string(),
        socket: Arc::new(listener.into()),
    };
    (shared, address)
}

fn workload(id: &str, listeners: Vec<SharedListener>) -> Placed {
    Placed {
        id: id.into(),
        spec: WorkloadSpec {
            namespace: "default".into(),
            name: id.into(),
            ..Default::default()
        },
        listeners,
        cgroup: Some("/sys/fs/cgroup/x".into()),
        cgroup_id: 77,
        endpoint: 5,
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        derived: Some((4711, "spiffe://cluster.local/ns/default/a".into())),
    }
}

/// A node of just enough behaviour; returns what its loop ended with and counts socket requests.
async fn node(
    mut link: NodeLink,
    sender: NodeSender,
    hello: HelloAnswer,
    opened: Arc<AtomicUsize>,
) -> HandoffError {
    loop {
        let request = match link.recv().await {
            Ok(request) => request,
            Err(error) => return error,
        };
        let answer = match request.message {
            AgentRequest::Hello { .. } => {
                sender.hello(request.id, hello.clone()).unwrap();
                continue;
            }
            AgentRequest::Place(spec) if spec.name == "refuse" => Answer::Failure("no such namespace".into()),
            AgentRequest::Place(spec) => {
                if spec.name == "slow" {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let mut placed = workload(&spec.name, Vec::new());
                placed.spec = *spec;
                Answer::Placed(Box::new(placed))
            }
            AgentRequest::OpenSockets { count, family, .. } => {
                opened.fetch_add(1, Ordering::SeqCst);
                assert_eq!(family, Family::V4);
                Answer::Sockets((0..count).map(|_| new_socket()).collect())
            }
            AgentRequest::Remove { id } => {
                sender.gone(&id, "removed").unwrap();
                Answer::Done
            }
            AgentRequest::CloseSockets(gone) => {
                Answer::Closed(gone.iter().map(|gone| gone.services.len()).sum())
            }
            AgentRequest::GatewayPorts(ports) => {
                let (taken, free): (Vec<u16>, Vec<u16>) = ports.into_iter().partition(|port| *port == 80);
                let open = |_: u16| SharedListener {
                    kind: ListenerKind::Gateway,
                    ..listener().0
                };
                let failures = taken.into_iter().map(|port| (port, "in use".into()));
                Answer::GatewayPorts(free.into_iter().map(open).collect(), failures.collect())
            }
            AgentRequest::Derived { .. } | AgentRequest::Ready => Answer::Done,
        };
        sender.answer(request.id, answer).unwrap();
    }
}

fn new_socket() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType};
    nix::sys::socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )
    .unwrap()
}

struct Rig {
    connected: Connected,
    node: tokio::task::JoinHandle<HandoffError>,
    opened: Arc<AtomicUsize>,
}

async fn rig(hello: HelloAnswer) -> Rig {
    let (ours, theirs) = socket::pair().unwrap();
    let (link, sender) = NodeLink::start(ours).unwrap();
    let opened = Arc::new(AtomicUsize::new(0));
    let node = tokio::spawn(node(link, sender, hello, Arc::clone(&opened)));
    Rig {
        connected: AgentLink::start(theirs).await.unwrap(),
        node,
        opened,
    }
}

#[tokio::test]
async fn the_hello_hands_over_working_listeners_and_workloads() {
    let (node_listener, address) = listener();
    let (pod_listener, pod_address) = listener();
    let map = Arc::new(OwnedFd::from(std::fs::File::open("/etc/hostname").unwrap()));
    let rig = rig(HelloAnswer {
        node: "n1".into(),
        listeners: vec![node_listener],
        maps: vec![("origins".into(), map)],
        addresses: vec!["192.0.2.1".parse().unwrap()],
        workloads: vec![workload("a", vec![pod_listener]), workload("b", Vec::new())],
        ..Default::default()
    })
    .await;
    let mut connected = rig.connected;
    assert_eq!(connected.hello.node, "n1");
    assert_eq!(
        connected.hello.addresses,
        ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
    );
    let mut text = String::new();
    let map = connected.hello.maps.remove("origins").unwrap();
    std::fs::File::from(map).read_to_string(&mut text).unwrap();
    assert_eq!(text, std::fs::read_to_string("/etc/hostname").unwrap());

    let a = connected.workloads.remove(0);
    assert_eq!((a.id.as_str(), a.cgroup_id, a.addresses.len()), ("a", 77, 2));
    assert_eq!(
        a.derived,
        Some((4711, "spiffe://cluster.local/ns/default/a".into()))
    );
    assert_eq!(connected.workloads[0].id, "b");
    for (listener, address) in [
        (connected.hello.listeners.remove(0), address),
        (a.listeners.into_iter().next().unwrap(), pod_address),
    ] {
        assert_eq!(listener.tcp_address(), Some(address));
        let listener = listener.into_tcp().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        accepted.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}

#[tokio::test]
async fn more_descriptors_than_a_packet_takes_arrive_in_order() {
    let distinct: Vec<_> = (0..3).map(|_| listener()).collect();
    let listeners: Vec<_> = (0..450).map(|i| distinct[i % 3].0.clone()).collect();
    let rig = rig(HelloAnswer {
        workloads: vec![workload("many", listeners)],
        ..Default::default()
    })
    .await;
    let many = rig.connected.workloads.into_iter().next().unwrap();
    assert_eq!(many.listeners.len(), 450);
    for (i, listener) in many.listeners.into_iter().enumerate() {
        let told = listener.tcp_address();
        assert_eq!(told, Some(distinct[i % 3].1));
        assert_eq!(Some(listener.into_tcp().unwrap().local_addr().unwrap()), told);
    }
}

#[tokio::test]
async fn a_full_node_says_hello() {
    let workloads = (0..4096)
        .map(|i| workload(&format!("w{i}"), vec![listener().0]))
        .collect();
    let rig = rig(HelloAnswer {
        workloads,
        ..Default::default()
    })
    .await;
    let ids: Vec<_> = rig.connected.workloads.iter().map(|w| w.id.clone()).collect();
    assert_eq!(ids, (0..4096).map(|i| format!("w{i}")).collect::<Vec<_>>());
    rig.connected.link.ready().await.unwrap();
}

#[tokio::test]
async fn requests_are_answered_and_refusals_carry_the_reason() {
    let rig = rig(HelloAnswer::default()).await;
    let link = &rig.connected.link;
    // Near the limit of one packet.
    let mut spec = WorkloadSpec {
        namespace: "default".into(),
        name: "big".into(),
        ..Default::default()
    };
    spec.annotations.insert("note".into(), "x".repeat(250 * 1024));
    let placed = link.place(spec.clone()).await.unwrap();
    assert_eq!(placed.spec, spec);
    spec.annotations.insert("more".into(), "x".repeat(10 * 1024));
    assert!(matches!(
        link.place(spec).await,
        Err(HandoffError::TooLarge { .. })
    ));

    link.derived("big", 7, "spiffe://x/y").await.unwrap();
    link.ready().await.unwrap();
    let sockets = link.open_sockets("big", Family::V4, 64).await.unwrap();
    assert_eq!(sockets.len(), 64);

    let refused = link
        .place(WorkloadSpec {
            name: "refuse".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(refused.to_string(), "no such namespace");
}

#[tokio::test]
async fn the_pool_asks_in_batches_and_ends_with_the_workload() {
    let mut rig = rig(HelloAnswer {
        workloads: vec![workload("a", Vec::new())],
        ..Default::default()
    })
    .await;
    let link = rig.connected.link.clone();
    let mut taken = Vec::new();
    for _ in 0..32 {
        taken.push(link.socket("a", Family::V4).await.unwrap());
    }
    let asked = rig.opened.load(Ordering::SeqCst);
    assert!((4..=8).contains(&asked), "{asked} requests for 32 sockets");
    let mut numbers: Vec<_> = taken.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 32, "a socket was handed out twice");

    link.remove("a").await.unwrap();
    assert!(matches!(rig.connected.events.next().await, Some(Event::Gone { id, .. }) if id == "a"));
    assert!(matches!(
        link.socket("a", Family::V4).await,
        Err(HandoffError::Refused(_))
    ));
}

#[tokio::test]
async fn an_answer_nobody_waits_for_comes_as_an_event() {
    let mut rig = rig(HelloAnswer::default()).await;
    let spec = WorkloadSpec {
        name: "slow".into(),
        ..Default::default()
    };
    let gave_up = tokio::time::timeout(Duration::from_millis(5), rig.connected.link.place(spec)).await;
    assert!(gave_up.is_err());
    assert!(matches!(rig.connected.events.next().await, Some(Event::Placed(w)) if w.id == "slow"));
}

#[tokio::test]
async fn either_end_notices_the_other_one_leave() {
    let gone = rig(HelloAnswer::default()).await;
    drop(gone.connected);
    assert!(matches!(gone.node.await.unwrap(), HandoffError::Closed));

    let mut left = rig(HelloAnswer::default()).await;
    left.node.abort();
    assert!(left.connected.events.next().await.is_none());
    left.connected.link.closed().await;
    assert!(matches!(
        left.connected.link.ready().await,
        Err(HandoffError::Closed)
    ));
}

#[tokio::test]
async fn packets_that_are_not_understood_end_the_link() {
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
    use std::io::IoSlice;
    // (bytes, with a descriptor): noise, a header with noise, a hello with a descriptor.
    let hello: &[u8] = &[0x57, 1, 0, 0, 1, 0, 0, 0, 0x12, 0x00];
    for (bytes, with_fd) in [
        (&b"garbage"[..], false),
        (&[0x57, 1, 0, 0, 0, 0, 0, 0, 0xff][..], false),
        (hello, true),
    ] {
        let (ours, theirs) = socket::pair().unwrap();
        let (mut link, _sender) = NodeLink::start(ours).unwrap();
        let raw = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if with_fd { &rights[..] } else { &[] };
        sendmsg::<UnixAddr>(
            theirs.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        assert!(
            matches!(link.recv().await, Err(HandoffError::Protocol(_))),
            "{bytes:?} was taken"
        );
    }
    // The twin: the same hello without a descriptor is taken.
    let (ours, theirs) = socket::pair().unwrap();
    let (mut link, _sender) = NodeLink::start(ours).unwrap();
    let bytes = [0x57, 1, 0, 0, 0, 0, 0, 0, 0x12, 0x00];
    sendmsg::<UnixAddr>(
        theirs.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        &[],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    assert!(matches!(
        link.recv().await.unwrap().message,
        AgentRequest::Hello { .. }
    ));
}

#[tokio::test]
async fn only_the_agents_user_may_connect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.sock");
    let me = nix::unistd::getuid().as_raw();

    let listener = NodeListener::bind(&path, me).unwrap();
    let serve = async {
        let (link, sender) = NodeLink::start(listener.accept().await.unwrap()).unwrap();
        node(link, sender, HelloAnswer::default(), Arc::default()).await
    };
    tokio::select! {
        connected = AgentLink::connect(&path) => assert!(connected.is_ok()),
        error = serve => panic!("{error}"),
    }
    drop(listener);
    let error = AgentLink::connect(&path).await.unwrap_err();
    assert!(error.to_string().contains("start weft-node"), "{error}");

    if me != 0 {
        return; // Only root can bind for another user.
    }
    let listener = NodeListener::bind(&path, 12345).unwrap();
    let (accepted, connected) = tokio::join!(listener.accept(), AgentLink::connect(&path));
    assert!(matches!(
        accepted,
        Err(HandoffError::Peer {
            uid: 0,
            allowed: 12345,
            ..
        })
    ));
    assert!(matches!(connected, Err(HandoffError::Closed)), "{connected:?}");
}

#[tokio::test]
async fn a_stream_socket_is_not_taken_for_the_hand_off() {
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = AgentLink::start(a.into()).await.unwrap_err();
    assert!(error.to_string().contains("SOCK_SEQPACKET"), "{error}");
}

#[tokio::test]
async fn backends_that_are_gone_cross_whole_and_in_any_number() {
    let rig = rig(HelloAnswer::default()).await;
    let gone = |port| GoneBackend {
        transport: if port % 2 == 0 {
            Transport::Tcp
        } else {
            Transport::Udp
        },
        backend: ([10, 0, 0, 1], port).into(),
        services: vec!["10.96.0.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()],
    };
    let link = &rig.connected.link;
    assert_eq!(link.close_sockets(&[]).await.unwrap(), 0);
    assert_eq!(link.close_sockets(&[gone(1)]).await.unwrap(), 2);
    // More than one message may hold.
    let many: Vec<GoneBackend> = (0..600).map(gone).collect();
    assert_eq!(link.close_sockets(&many).await.unwrap(), 1200);
}

#[tokio::test]
async fn ports_of_gateways_come_open_or_with_the_reason() {
    let rig = rig(HelloAnswer::default()).await;
    let link = &rig.connected.link;
    let opened = link.gateway_ports(&[80, 8080, 8081].into()).await.unwrap();
    assert_eq!(opened.failures, [(80, "in use".to_owned())]);
    assert_eq!(opened.listeners.len(), 2);
    for listener in opened.listeners {
        assert_eq!(listener.kind, ListenerKind::Gateway);
        let address = listener.tcp_address().unwrap();
        let listener = listener.into_tcp().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap();
    }
    // More than a node takes end the link; just as many do not.
    let most: u16 = weft_handoff::MAX_GATEWAY_PORTS.try_into().unwrap();
    let ports = |n| (9000..9000 + n).collect();
    assert_eq!(
        link.gateway_ports(&ports(most)).await.unwrap().listeners.len(),
        usize::from(most)
    );
    assert!(link.gateway_ports(&ports(most + 1)).await.is_err());
}
