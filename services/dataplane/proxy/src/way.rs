//! From one source to one endpoint: what policy says of it as a whole, and the connections that lead
//! there. Kept with the served connection until the mesh changes.

use crate::{Answerer, Member, Proxy, answer::Failure, peers::Peer};
use std::{net::SocketAddr, sync::Arc};
use weft_flows::{Direction, DropReason, Party, Proof, Via};
use weft_runtime::{AppContext, Decision, Endpoint, Place, Question, RequestJudge, RequestLine};

/// Who sends the requests of a connection, as the mesh has it now.
#[derive(Debug)]
pub(crate) struct Source {
    pub party: Arc<Party>,
    /// Of workloads of this node, and of gateways: for tunnels.
    pub context: Option<Arc<AppContext>>,
    pub proof: Proof,
    /// Its egress is judged here.
    pub egress: bool,
}

impl Source {
    fn is_proven(&self) -> bool {
        match &self.context {
            Some(context) => is_proven(context),
            // By the tunnel's handshake.
            None => true,
        }
    }
}

fn is_proven(context: &AppContext) -> bool {
    context.proof() != Proof::PortToken && context.svid().is_some_and(|svid| svid.is_set())
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Goal {
    Workload(Member),
    Outside(Arc<Party>, SocketAddr),
}

impl Goal {
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Workload(member) => member.address,
            Self::Outside(_, address) => *address,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Workload(one), Self::Workload(other)) => {
                Arc::ptr_eq(&one.endpoint, &other.endpoint) && one.address == other.address
            }
            (Self::Outside(_, one), Self::Outside(_, other)) => one == other,
            _ => false,
        }
    }
}

/// The way there.
#[derive(Debug)]
pub(crate) struct Way {
    pub source: Arc<Source>,
    pub goal: Goal,
    pub two: bool,
    pub destination: Arc<Party>,
    pub via: Option<Via>,
    pub peer: Option<Peer>,
    /// The callee, where it is of this node.
    callee: Option<Arc<AppContext>>,
    /// What was known when it was judged: a certificate ends without any change of the mesh.
    authenticated: bool,
    /// In the order asked; a refusal is the last.
    sides: Vec<Side>,
}

/// What policy says at one end.
struct Side {
    direction: Direction,
    decision: Decision,
    /// Where it speaks of single requests.
    requests: Option<Arc<dyn RequestJudge>>,
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.direction, &self.decision).fmt(f)
    }
}

impl Side {
    fn allowed(direction: Direction) -> Self {
        Self {
            direction,
            decision: Decision::allow(None),
            requests: None,
        }
    }
}

impl Way {
    pub fn new(proxy: &Proxy, source: &Arc<Source>, goal: Goal, two: bool) -> Self {
        let mesh = &proxy.mesh;
        let (destination, via) = match &goal {
            Goal::Workload(member) => {
                let via = match member.endpoint.place() {
                    Place::Local { .. } if source.context.is_some() => Via::SameNode,
                    _ => Via::Tunnel,
                };
                (member.endpoint.party().clone(), Some(via))
            }
            Goal::Outside(party, _) => (party.clone(), None),
        };
        let callee = match &goal {
            Goal::Workload(member) if is_local(&member.endpoint) => mesh.caller(member.endpoint.workload()),
            _ => None,
        };
        let mut way = Self {
            source: source.clone(),
            two,
            destination,
            via,
            peer: None,
            callee,
            authenticated: false,
            sides: Vec::with_capacity(2),
            goal,
        };
        way.authenticated = way.is_authenticated();
        way.judge(proxy);
        if way.refused().is_none() {
            way.peer = way.connections(proxy);
        }
        way
    }

    /// Whether it leads there, and what it was judged by still holds.
    pub fn leads(&self, goal: &Goal, two: bool) -> bool {
        self.is_to(goal, two) && self.authenticated == self.is_authenticated()
    }

    /// Whether it leads there, whatever it was judged by.
    pub fn is_to(&self, goal: &Goal, two: bool) -> bool {
        self.two == two && self.goal.is(goal)
    }

    fn is_authenticated(&self) -> bool {
        match &self.goal {
            Goal::Workload(member) if is_local(&member.endpoint) => {
                self.source.is_proven() && self.callee.as_ref().is_none_or(|callee| is_proven(callee))
            }
            Goal::Workload(_) => true,
            Goal::Outside(..) => false,
        }
    }

    /// The workload whose policy a side is, and the question to it.
    fn question(&self, direction: Direction) -> Question<'_> {
        let workload = match (direction, &self.goal) {
            (Direction::Egress, _) => self.source.context.as_ref().map_or("", |c| c.workload()),
            (Direction::Ingress, Goal::Workload(member)) => member.endpoint.workload(),
            (Direction::Ingress, Goal::Outside(..)) => "",
        };
        Question {
            direction,
            workload,
            source: &self.source.party,
            destination: &self.destination,
            port: self.goal.address().port(),
            authenticated: self.authenticated,
        }
    }

    fn judge(&mut self, proxy: &Proxy) {
        let ingress = matches!(&self.goal, Goal::Workload(member) if is_local(&member.endpoint));
        if self.source.egress {
            self.sides.push(self.side(proxy, Direction::Egress));
        } else if self.source.context.is_some() {
            // A gateway has no policy of its own.
            self.sides.push(Side::allowed(Direction::Egress));
        }
        if ingress && self.refused().is_none() {
            self.sides.push(self.side(proxy, Direction::Ingress));
        }
    }

    fn side(&self, proxy: &Proxy, direction: Direction) -> Side {
        let question = self.question(direction);
        let decision = proxy.mesh.judge(&question);
        Side {
            requests: decision
                .by_request
                .then(|| proxy.mesh.requests(&question))
                .flatten(),
            direction,
            decision,
        }
    }

    /// Refused as a whole, whatever the request.
    fn refused(&self) -> Option<DropReason> {
        let whole = self.sides.iter().filter(|side| !side.decision.by_request);
        whole.filter_map(|side| side.decision.refused).next()
    }

    /// Rules speak of single requests.
    pub fn is_by_request(&self) -> bool {
        self.sides.iter().any(|side| side.decision.by_request)
    }

    fn connections(&self, proxy: &Proxy) -> Option<Peer> {
        let (mesh, peers) = (&proxy.mesh, &proxy.peers);
        match (&self.goal, &self.source.context) {
            (Goal::Workload(member), _) if is_local(&member.endpoint) => {
                match mesh.answerer(member.endpoint.workload(), member.address.port()) {
                    Answerer::Itself => Some(peers.local(mesh, &member.endpoint, member.address, self.two)),
                    Answerer::Agent(answers) => Some(Peer::Agent(answers, self.source.party.clone())),
                    Answerer::Nobody => None,
                }
            }
            (Goal::Workload(member), Some(caller)) => {
                Some(peers.remote(&proxy.tunnels, caller, &member.endpoint, member.address, self.two))
            }
            (Goal::Outside(_, address), Some(caller)) => {
                Some(peers.outside(mesh, caller, *address, self.two))
            }
            // What came by tunnel goes no further.
            (_, None) => None,
        }
    }

    /// What policy says of one request: the decision of each side, in the order asked, and whether
    /// it may pass.
    pub fn ask(&self, proxy: &Proxy, line: &RequestLine<'_>) -> (Sides, Result<(), Failure>) {
        let mut sides = Sides::default();
        for (number, side) in self.sides.iter().enumerate() {
            let direction = side.direction;
            let decision = match &side.requests {
                Some(requests) => requests.judge(line),
                None if side.decision.by_request => proxy.mesh.judge_request(&self.question(direction), line),
                None => side.decision.clone(),
            };
            let refused = decision.refused;
            if let Some(said) = sides.said.get_mut(number) {
                *said = Some((direction, decision));
            }
            if let Some(reason) = refused {
                return (sides, Err(Failure::Denied(reason)));
            }
        }
        (sides, Ok(()))
    }
}

/// What each side said; a refusal is the last.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    pub said: [Option<(Direction, Decision)>; 2],
    /// The rule by which the callee's node refuses the connection.
    pub refused_there: Option<Arc<str>>,
}

pub(crate) fn is_local(endpoint: &Endpoint) -> bool {
    matches!(endpoint.place(), Place::Local { .. })
}
