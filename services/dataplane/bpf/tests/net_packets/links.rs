//! The programs at real interfaces: beside others', replaced under load, adopted and taken away.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use weft_bpf::{Address, Direction, Endpoint, Kernel, Options, PolicyKey, Set, pin_dir, uninstall};
use weft_testnet::{Node, Pod, Testnet};

use crate::rig::{ALLOW, DENY_IN, DENY_OUT};

/// How long a test waits for what must not come.
pub const QUIET: Duration = Duration::from_millis(400);
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Pods {
    pub options: Options,
    pub kernel: Kernel,
    pub client: (Pod, u32),
    pub server: (Pod, u32),
    pub node: Node,
    net: Testnet,
}

pub const CLIENT: u32 = 1;
pub const SERVER: u32 = 2;

fn options(net: &Testnet, node: &Node, pins: &str) -> Options {
    std::fs::create_dir_all(node.cgroup()).unwrap();
    let mut options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), pins));
    options.max_connections = 4096;
    options
}

fn ifindex(pod: &Pod) -> u32 {
    let link = pod.node_link();
    link.namespace()
        .run(|| nix::net::if_::if_nametoindex(link.name()).unwrap())
        .unwrap()
}

/// A pod's own link-local address, from which it discovers its neighbours.
fn link_local(pod: &Pod) -> IpAddr {
    let table = pod
        .namespace()
        .run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap())
        .unwrap();
    let line = table.lines().find(|line| line.starts_with("fe80")).unwrap();
    let bits = u128::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap();
    IpAddr::V6(bits.into())
}

impl Pods {
    pub fn new() -> Self {
        let net = Testnet::new().unwrap();
        let node = net.node("n").unwrap();
        let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
        let options = options(&net, &node, "one");
        let kernel = Kernel::load(&options).unwrap();
        let pods = Self {
            client: (client.clone(), ifindex(&client)),
            server: (server.clone(), ifindex(&server)),
            options,
            kernel,
            node,
            net,
        };
        pods.tell(&pods.kernel);
        pods
    }

    /// Tells a node's tables of both pods, under no policy.
    pub fn tell(&self, kernel: &Kernel) {
        let datapath = kernel.datapath().unwrap();
        for (number, (pod, ifindex)) in [(CLIENT, &self.client), (SERVER, &self.server)] {
            let set = Set {
                generation: number,
                ..Set::default()
            };
            datapath.sets.set(number, set).unwrap();
            let endpoint = Endpoint {
                identity: 1000 + number,
                set: number,
                ..Endpoint::default()
            };
            datapath.endpoints.set(number, endpoint).unwrap();
            kernel.sources().unwrap().add(number, link_local(pod)).unwrap();
            for address in pod.addresses() {
                kernel.sources().unwrap().add(number, address).unwrap();
                let entry = Address {
                    identity: 1000 + number,
                    local: true,
                    endpoint: number,
                    ..Address::default()
                };
                datapath.addresses.set(address.into(), entry).unwrap();
            }
            kernel.interfaces().unwrap().set(*ifindex, number).unwrap();
        }
    }

    fn attach(&self, kernel: &Kernel, ifindex: u32) -> weft_bpf::Attached {
        let there = self.node.namespace();
        there.run(|| kernel.attach_interface(ifindex)).unwrap().unwrap()
    }

    pub fn attach_both(&self) {
        for ifindex in [self.client.1, self.server.1] {
            assert!(!self.attach(&self.kernel, ifindex).adopted);
        }
    }

    /// A server in its pod that echoes what it gets, datagrams and connections.
    pub fn serve(&self, address: IpAddr) -> (TcpListener, UdpSocket, SocketAddr) {
        let there = self.server.0.namespace();
        let listener = there.listen((address, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let socket = there.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        (listener, socket, to)
    }

    /// Does a datagram of the client come to the server?
    pub fn arrives(&self, server: &UdpSocket, wait: Duration) -> bool {
        let to = server.local_addr().unwrap();
        server.set_read_timeout(Some(wait)).unwrap();
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let client = self.client.0.namespace();
        let socket = client.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        socket.send_to(b"here", to).unwrap();
        let port = socket.local_addr().unwrap().port();
        // What waited for its neighbour's address may come later.
        std::iter::from_fn(|| server.recv_from(&mut [0; 8]).ok()).any(|(_, from)| from.port() == port)
    }
}

#[test]
fn pods_talk_while_they_are_allowed_to() {
    let pods = Pods::new();
    pods.attach_both();
    let datapath = pods.kernel.datapath().unwrap();
    for (address, generation) in pods.server.0.addresses().into_iter().zip([10, 20]) {
        let (_, server, to) = pods.serve(address);
        assert!(pods.arrives(&server, PATIENCE), "{to}");
        let closed = |flags, generation| Set {
            shapes_in: 63,
            shapes_out: 63,
            flags,
            generation,
        };
        datapath.sets.set(SERVER, closed(DENY_IN, generation)).unwrap();
        assert!(!pods.arrives(&server, QUIET), "{to}");
        let rule = PolicyKey {
            set: SERVER,
            identity: 1000 + CLIENT,
            direction: Direction::In,
            protocol: 17,
            port: to.port(),
        };
        datapath.policy.set(rule, ALLOW).unwrap();
        assert!(pods.arrives(&server, PATIENCE), "{to}");
        datapath
            .sets
            .set(CLIENT, closed(DENY_OUT, generation + 1))
            .unwrap();
        assert!(!pods.arrives(&server, QUIET), "{to}");
        datapath.sets.set(CLIENT, closed(0, generation + 2)).unwrap();
        datapath.sets.set(SERVER, closed(0, generation + 3)).unwrap();
    }
}

#[test]
fn programs_of_others_stay_and_run() {
    let pods = Pods::new();
    let mut foreign = options(&pods.net, &pods.node, "two");
    foreign.cgroup_root = pods.net.cgroup().to_path_buf();
    let foreign = Kernel::load(&foreign).unwrap();
    let ifindex = pods.client.1;
    assert_eq!(pods.attach(&foreign, ifindex).neighbours, []);

    let attached = pods.attach(&pods.kernel, ifindex);
    let mut seen: Vec<_> = attached
        .neighbours
        .iter()
        .map(|n| (n.direction, n.name.as_str(), n.before))
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            (Direction::In, "to_endpoint", false),
            (Direction::Out, "from_endpoint", false)
        ]
    );
    // The others' know nothing of this pod and refuse; ours come first and let pass.
    let (_, server, _) = pods.serve(pods.server.0.addresses()[0]);
    assert!(
        !pods.arrives(&server, QUIET),
        "what passes ours is still up to the others"
    );
    pods.tell(&foreign);
    assert!(pods.arrives(&server, PATIENCE));
    pods.kernel.interfaces().unwrap().remove(ifindex).unwrap();
    assert!(!pods.arrives(&server, QUIET), "and theirs does not overrule ours");
    pods.kernel.interfaces().unwrap().set(ifindex, CLIENT).unwrap();
    assert!(pods.arrives(&server, PATIENCE));

    // Whoever comes before is told as such; ours going away leaves theirs.
    let before = pods.attach(&pods.kernel, ifindex);
    assert!(before.adopted);
    assert!(pods.kernel.detach_interface(ifindex).unwrap());
    assert!(!pods.kernel.detach_interface(ifindex).unwrap());
    assert_eq!(
        foreign
            .attached_interfaces()
            .unwrap()
            .into_iter()
            .collect::<Vec<_>>(),
        [ifindex]
    );
    let again = pods.attach(&foreign, ifindex);
    assert!(again.adopted && again.neighbours.is_empty());
    pods.attach(&pods.kernel, ifindex);
    let theirs = pods.attach(&foreign, ifindex).neighbours;
    assert!(theirs.len() == 2 && theirs.iter().all(|n| n.before), "{theirs:?}");
}

#[test]
fn links_outlive_their_process_and_end_with_their_interface() {
    let pods = Pods::new();
    pods.attach_both();
    let datapath = pods.kernel.datapath().unwrap();
    let (_, server, _) = pods.serve(pods.server.0.v4().into());
    assert!(pods.arrives(&server, PATIENCE));
    datapath.endpoints.remove(SERVER).unwrap();
    let Pods {
        options,
        kernel,
        client,
        server: (server_pod, server_index),
        node,
        net,
    } = pods;
    drop(kernel);
    let kernel = Kernel::load(&options).unwrap();
    let pods = Pods {
        options,
        kernel,
        client,
        server: (server_pod, server_index),
        node,
        net,
    };
    assert!(!pods.arrives(&server, QUIET), "it is judged all the same");
    assert_eq!(
        pods.kernel.attached_interfaces().unwrap(),
        [pods.client.1, server_index].into()
    );
    pods.tell(&pods.kernel);
    assert!(pods.arrives(&server, PATIENCE));

    let name = pods.server.0.node_link().name().to_string();
    pods.node.namespace().ip(&format!("link del {name}\n")).unwrap();
    assert_eq!(pods.kernel.attached_interfaces().unwrap(), [pods.client.1].into());
    // Its pin goes when somebody looks.
    let pin = pods
        .options
        .bpffs_dir
        .join(format!("links/to_endpoint-{server_index}"));
    assert!(pin.exists());
    drop(Kernel::load(&pods.options).unwrap());
    assert!(!pin.exists());
    assert!(!pods.kernel.detach_interface(server_index).unwrap());

    uninstall(&pods.options.bpffs_dir).unwrap();
    assert!(!pods.options.bpffs_dir.exists());
    let attached = pods.node.namespace().run(|| others(pods.client.1)).unwrap();
    assert_eq!(attached, 0, "nothing is left at the interface");
}

/// How many programs are at an interface: as a newcomer sees it.
fn others(ifindex: u32) -> usize {
    let net = Testnet::new().unwrap();
    let node = net.node("m").unwrap();
    let kernel = Kernel::load(&options(&net, &node, "three")).unwrap();
    kernel.attach_interface(ifindex).unwrap().neighbours.len()
}
