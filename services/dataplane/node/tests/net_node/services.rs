//! Sockets to services: closed when their backend goes, left alone when the agent has them.

use crate::rig::{Rig, SOON, open, pod_spec, process_spec};
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    thread,
};
use weft_bpf::{Backend, Frontend, Services, Transport};
use weft_handoff::{Connected, Family, GoneBackend};
use weft_testnet::{Namespace, Pod, Process, Spawn};

/// Greets whoever connects, and holds the connection.
fn greet(pod: &Pod, port: u16, name: &'static str) -> SocketAddr {
    let address = SocketAddr::new(pod.v4().into(), port);
    let listener = pod.namespace().listen(address).unwrap();
    thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(format!("{name}\n").as_bytes());
            held.push(stream);
        }
    });
    address
}

/// An app that connects, says who greeted it, and says when the connection ends.
fn app(namespace: &Namespace, cgroup: &Path, to: SocketAddr) -> (Process, BufReader<ChildStdout>) {
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; read -u 3 x; echo \"$x\"; read -u 3 x; echo end",
        to.ip(),
        to.port()
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut process = namespace.spawn(command, &Spawn::nobody().cgroup(cgroup)).unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    (process, output)
}

fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn services(agent: &mut Connected) -> Services {
    let mut map = |name: &str| agent.hello.maps.remove(name).unwrap();
    Services::from_fds(map("services"), map("backends"), map("members")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_to_a_backend_that_is_gone_are_closed_in_every_namespace() {
    let rig = Rig::without_agent();
    let (shop, cart) = (rig.node.pod("shop").unwrap(), rig.node.pod("cart").unwrap());
    let mut agent = rig.connect().await;
    let mut services = services(&mut agent);
    let backend = greet(&cart, 8080, "cart");
    let service: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let frontend = Frontend {
        address: service,
        transport: Transport::Tcp,
    };
    let backends = [Backend {
        address: backend,
        endpoint: 0,
    }];
    assert_eq!(services.set(frontend, false, &backends).unwrap().left_out, 0);

    let pod = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();
    let worker = agent.link.place(process_spec("worker")).await.unwrap();
    open(&mut agent, &[&pod, &worker]);
    let (in_pod, in_worker) = (pod.cgroup.unwrap(), worker.cgroup.unwrap());
    let mut meant = [
        app(shop.namespace(), &in_pod, service),
        app(rig.node.namespace(), &in_worker, service),
    ];
    let mut others = [
        app(shop.namespace(), &in_pod, backend),
        app(rig.node.namespace(), &in_worker, backend),
    ];
    for (_, output) in meant.iter_mut().chain(&mut others) {
        assert_eq!(line(output), "cart");
    }

    assert_eq!(services.set(frontend, false, &[]).unwrap().removed, [backend]);
    let gone = |service: SocketAddr| GoneBackend {
        transport: weft_handoff::Transport::Tcp,
        backend,
        services: vec![service],
    };
    let other = "10.96.0.2:80".parse().unwrap();
    assert_eq!(agent.link.close_sockets(&[gone(other)]).await.unwrap(), 0);
    assert_eq!(agent.link.close_sockets(&[gone(service)]).await.unwrap(), 2);
    for (_, output) in &mut meant {
        assert_eq!(line(output), "end");
    }
    for (process, _) in &mut others {
        assert!(process.try_wait().unwrap().is_none(), "its own connection stays");
    }
    assert_eq!(agent.link.close_sockets(&[gone(service)]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_made_for_the_agent_goes_where_the_agent_says() {
    let rig = Rig::without_agent();
    let shop = rig.node.pod("shop").unwrap();
    let (cart, real) = (rig.node.pod("cart").unwrap(), rig.node.pod("real").unwrap());
    let mut agent = rig.connect().await;
    let mut services = services(&mut agent);
    // A service at an address where somebody else really is.
    let address = greet(&real, 8080, "real");
    let backends = [Backend {
        address: greet(&cart, 8080, "cart"),
        endpoint: 0,
    }];
    let frontend = Frontend {
        address,
        transport: Transport::Tcp,
    };
    assert_eq!(services.set(frontend, false, &backends).unwrap().left_out, 0);
    let pod = agent.link.place(pod_spec(&shop, "shop")).await.unwrap();

    open(&mut agent, &[&pod]);
    let (_app, mut output) = app(shop.namespace(), pod.cgroup.as_deref().unwrap(), address);
    assert_eq!(line(&mut output), "cart");

    let mut sockets = agent.link.open_sockets(&pod.id, Family::V4, 1).await.unwrap();
    let greeting = tokio::task::spawn_blocking(move || {
        use nix::{
            fcntl::{FcntlArg, OFlag, fcntl},
            sys::socket::{SockaddrStorage, connect},
        };
        let socket = sockets.pop().unwrap();
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        connect(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &SockaddrStorage::from(address),
        )
        .unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    });
    assert_eq!(greeting.await.unwrap(), "real\n");
}
