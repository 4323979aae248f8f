//! The privileged half of a node, as far as pods that come and go need it: the kernel's real programs
//! and tables, and an answer to the agent that takes no time. A pod's namespace is named by the address
//! that it is to have; there is none.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::IpAddr,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    sync::Arc,
};
use weft_bpf::{Datapath, Direction, Hooked, Interfaces, Kernel, Options, pin_dir};
use weft_handoff::{
    AgentRequest, Answer, HelloAnswer, ListenerKind, NodeLink, NodeSender, Placed, Request, SharedListener,
};
use weft_proto::weft::dataplane::v1::{WorkloadSpec, workload_spec::Place};
use weft_testnet::{Node, Testnet};

/// The first pod of a node is at the one interface that exists everywhere, loopback; the programs are
/// run as of there. Of the others only their number matters.
const FIRST_IFINDEX: u32 = 1;
const IFINDEX: u32 = 5_000;
/// Where packets of other nodes come in: one that came in nowhere is the node's own.
const UPLINK: u32 = 4_000;

/// The kernel's side of a node.
pub struct Programs {
    kernel: Kernel,
    tables: Datapath,
    _node: Node,
}

impl Programs {
    /// Whether a packet to the node's first pod passes. `from`: the number of the pod of this node that
    /// sends it; `None` for one of another node.
    pub fn pass(&self, frame: &[u8], from: Option<u32>) -> bool {
        let ingress = from.map_or(UPLINK, |number| IFINDEX + number);
        let hook = Hooked::Interface(Direction::In);
        let run = self.kernel.test_run(hook, (FIRST_IFINDEX, ingress), frame, 1);
        run.unwrap().action == -1
    }

    /// Whom the node takes an address for, and whether it knows him.
    pub fn identity_of(&self, address: IpAddr) -> Option<u32> {
        let found = self.tables.addresses.find(address).unwrap();
        found.filter(|a| !a.aggregate).map(|a| a.identity)
    }
}

/// What stays when the agent is replaced.
struct State {
    last: u32,
    seats: HashMap<String, Placed>,
}

/// A node, for any number of agents. Clones share.
#[derive(Clone)]
pub struct Stub {
    name: String,
    address: IpAddr,
    socket: Arc<OwnedFd>,
    path: String,
    pub programs: Arc<Programs>,
    interfaces: Arc<Interfaces>,
    state: Arc<Mutex<State>>,
}

impl Stub {
    /// Loads the programs.
    pub fn new(net: &Testnet, name: &str, address: IpAddr, folder: &Path) -> Self {
        let node = net.node(name).unwrap();
        std::fs::create_dir_all(node.cgroup()).unwrap();
        let options = Options::new(node.cgroup(), pin_dir(&net.bpffs().unwrap(), name));
        let kernel = Kernel::load(&options).unwrap();
        let path = folder.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let state = State {
            last: 0,
            seats: HashMap::new(),
        };
        Self {
            name: name.to_owned(),
            address,
            socket: Arc::new(listener.into()),
            path: path.to_str().unwrap().to_owned(),
            interfaces: Arc::new(kernel.interfaces().unwrap()),
            programs: Arc::new(Programs {
                tables: kernel.datapath().unwrap(),
                kernel,
                _node: node,
            }),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// One more agent's end of the link.
    pub fn attach(&self) -> OwnedFd {
        let (ours, theirs) = weft_handoff::socket::pair().unwrap();
        let (link, sender) = NodeLink::start(ours).unwrap();
        tokio::spawn(self.clone().run(link, sender));
        theirs
    }

    async fn run(self, mut link: NodeLink, sender: NodeSender) {
        while let Ok(Request { id, message }) = link.recv().await {
            let answer = match message {
                AgentRequest::Hello { .. } => {
                    sender.hello(id, self.hello()).unwrap();
                    continue;
                }
                AgentRequest::Place(spec) => Answer::Placed(Box::new(self.place(*spec))),
                AgentRequest::Remove { id } => {
                    let gone = self.state.lock().seats.remove(&id).unwrap();
                    self.interfaces.remove(IFINDEX + gone.endpoint).unwrap();
                    Answer::Done
                }
                AgentRequest::Derived {
                    id,
                    identity,
                    spiffe_id,
                } => {
                    if let Some(placed) = self.state.lock().seats.get_mut(&id) {
                        placed.derived = Some((identity, spiffe_id));
                    }
                    Answer::Done
                }
                AgentRequest::Ready => Answer::Done,
                AgentRequest::GatewayPorts(_) => Answer::GatewayPorts(Vec::new(), Vec::new()),
                AgentRequest::CloseSockets(_) => Answer::Closed(0),
                AgentRequest::OpenSockets { .. } => Answer::Failure("there are no namespaces".into()),
            };
            if sender.answer(id, answer).is_err() {
                return;
            }
        }
    }

    fn hello(&self) -> HelloAnswer {
        // All but the events: each probe would be a flow more, and they are another test's.
        let maps = self.programs.kernel.shared_maps().unwrap().into_iter();
        let maps = maps.filter(|(name, _)| *name != "events");
        HelloAnswer {
            node: self.name.clone(),
            listeners: vec![SharedListener {
                kind: ListenerKind::LocalApi,
                address: self.path.clone(),
                socket: self.socket.clone(),
            }],
            maps: maps.map(|(name, map)| (name.to_owned(), Arc::new(map))).collect(),
            addresses: vec![self.address],
            workloads: self.state.lock().seats.values().cloned().collect(),
            ..HelloAnswer::default()
        }
    }

    fn place(&self, spec: WorkloadSpec) -> Placed {
        let Some(Place::NetnsPath(address)) = &spec.place else {
            panic!("{spec:?}")
        };
        let address = address.parse().unwrap();
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        let ifindex = if number == 1 {
            FIRST_IFINDEX
        } else {
            IFINDEX + number
        };
        self.interfaces.set(ifindex, number).unwrap();
        let placed = Placed {
            id: format!("{}/{}/{}/{number}", self.name, spec.namespace, spec.name),
            spec,
            listeners: Vec::new(),
            cgroup: None,
            cgroup_id: 0,
            endpoint: number,
            addresses: vec![address],
            derived: None,
        };
        state.seats.insert(placed.id.clone(), placed.clone());
        placed
    }
}

/// The number by which a node's programs know a pod.
pub fn number(id: &str) -> u32 {
    id.rsplit('/').next().unwrap().parse().unwrap()
}
