//! What the kernel's programs tell of packets, as flows.
//!
//! Owns the reading end of the ring buffer: numbers become parties and rules here. What was lost
//! because this could not keep up is told to whoever follows the flows.

use crate::{
    agent::Shared, endpoints::party, kernel::KernelTables, locals::Locals, mesh::Mesh, places::Meaning,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::unix::AsyncFd;
use weft_bpf::{Counters, Event, Events};
use weft_flows::{Direction, DropReason, Flow, Kind, Packet, Party, Proof, Verdict};
use weft_model::NumericIdentity;
use weft_proto::weft::policy::v1::WorkloadKind;

/// Events read at once before others get their turn.
const BATCH: usize = 256;
/// So often the kernel's count of lost events is read.
const LOOK_FOR_LOST: Duration = Duration::from_secs(1);
/// Hubble's number of a refusal by policy that no rule asks for.
const POLICY_DENIED: u8 = 133;
/// Parties that are remembered by address.
const MAX_PARTIES: usize = 4_096;

/// Reads until the drain.
pub async fn read(shared: Arc<Shared>, mut events: Events, counters: Option<Counters>, tables: KernelTables) {
    let mut drain = shared.drain.clone();
    // There must be one reader at a time, and it goes on where the one before ended.
    let turn = tokio::select! {
        turn = tables.turn() => turn,
        () = drain.draining() => return,
    };
    let Some(_turn) = turn else { return };
    events.resume();
    // SAFETY: `Events` owns its descriptor, answers with the same one always, and closes it when it
    // is dropped, which is after `AsyncFd` has let go of it.
    let mut events = match unsafe { AsyncFd::register(events) } {
        Ok(events) => events,
        Err(error) => return tracing::error!(%error, "packets' verdicts are not read"),
    };
    let mut tick = tokio::time::interval(LOOK_FOR_LOST);
    let lost = || counters.as_ref().and_then(|c| c.events_lost().ok()).unwrap_or(0);
    // What was lost before this agent is not this log's.
    let mut known = lost();
    let mut clock = Clock::now();
    let mut parties = Parties::new(&shared);
    loop {
        tokio::select! {
            ready = events.readable_mut() => {
                let Ok(mut ready) = ready else { return };
                let mut read = 0;
                while let Some(event) = ready.get_inner_mut().read() {
                    shared.flows.record(flow(&event, clock, &mut parties, &tables));
                    read += 1;
                    if read == BATCH {
                        break;
                    }
                }
                if read < BATCH {
                    ready.clear_ready();
                }
                drop(ready);
                tokio::task::yield_now().await;
            }
            _ = tick.tick() => {
                let now = lost();
                if now > known {
                    shared.flows.record_lost(now - known);
                }
                known = now;
                clock = Clock::now();
                parties.forget();
            }
            () = drain.draining() => return,
        }
    }
}

/// The kernel's clock and the calendar's, read together.
#[derive(Clone, Copy)]
struct Clock {
    monotonic: u64,
    time: SystemTime,
}

impl Clock {
    fn now() -> Self {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let monotonic = now.map(Duration::from).unwrap_or_default();
        Self {
            monotonic: u64::try_from(monotonic.as_nanos()).unwrap_or(u64::MAX),
            time: SystemTime::now(),
        }
    }

    fn at(self, monotonic: u64) -> SystemTime {
        let before = Duration::from_nanos(self.monotonic.saturating_sub(monotonic));
        let after = Duration::from_nanos(monotonic.saturating_sub(self.monotonic));
        self.time.checked_sub(before).unwrap_or(self.time) + after
    }
}

/// An endpoint's number, an address, and an identity.
type Asked = (u32, IpAddr, u32);

/// Who is meant by what an event says. Made once per workload and address, for a second.
struct Parties {
    node: Arc<str>,
    mesh: Mesh,
    locals: Locals,
    made: HashMap<Asked, (Arc<Party>, Option<Proof>)>,
}

impl Parties {
    fn new(shared: &Shared) -> Self {
        Self {
            node: shared.node.as_str().into(),
            mesh: shared.view.mesh.clone(),
            locals: shared.view.locals.clone(),
            made: HashMap::new(),
        }
    }

    fn forget(&mut self) {
        self.made.clear();
    }

    /// Of an endpoint of this node by its number, else by the address; with the identity that was
    /// judged, whatever is known by now.
    fn find(&mut self, number: u32, at: SocketAddr, identity: u32) -> (Arc<Party>, Option<Proof>) {
        let key = (number, at.ip(), identity);
        if let Some(found) = self.made.get(&key) {
            return found.clone();
        }
        let local = (number != 0).then(|| self.locals.of_number(number)).flatten();
        let found = local.and_then(|l| {
            let proof = match l.kind {
                WorkloadKind::Pod => Proof::PodListener,
                _ => Proof::Cgroup,
            };
            Some((party(&l.member()?.workload), Some(proof)))
        });
        let (known, proof) = found.unwrap_or_else(|| (self.elsewhere(at), None));
        let judged = NumericIdentity(identity);
        let known = if known.identity == judged || identity == 0 {
            known
        } else if judged.is_allocated() && known.identity.is_allocated() {
            // Its labels have changed since.
            Arc::new(Party {
                identity: judged,
                ..(*known).clone()
            })
        } else {
            Arc::new(Party {
                identity: judged,
                ..reserved(judged, at.ip(), &self.node)
            })
        };
        if self.made.len() >= MAX_PARTIES {
            self.made.clear();
        }
        self.made.insert(key, (known.clone(), proof));
        (known, proof)
    }

    /// The objects that let nothing else pass: what refuses where no rule speaks.
    fn refusing(&self, endpoint: u32, direction: weft_policy_engine::Direction) -> Option<Arc<str>> {
        let local = self.locals.of_number(endpoint)?;
        self.mesh.policy_of(&local.id)?.selected_by(direction)
    }

    fn elsewhere(&self, at: SocketAddr) -> Arc<Party> {
        match self.mesh.meaning(at) {
            (Meaning::Workload(..), Some(endpoint)) => endpoint.party().clone(),
            (Meaning::Reserved(identity), _) => Arc::new(reserved(identity, at.ip(), &self.node)),
            _ => Arc::new(reserved(NumericIdentity::UNKNOWN, at.ip(), &self.node)),
        }
    }
}

fn reserved(identity: NumericIdentity, address: IpAddr, node: &Arc<str>) -> Party {
    let name = identity.reserved_name().map(|n| format!("reserved:{n}"));
    Party {
        namespace: "".into(),
        workload: name.unwrap_or_default().into(),
        app_id: "".into(),
        identity,
        spiffe_id: "".into(),
        address: Some(address),
        node: if identity == NumericIdentity::HOST {
            node.clone()
        } else {
            "".into()
        },
    }
}

fn flow(event: &Event, clock: Clock, parties: &mut Parties, tables: &KernelTables) -> Flow {
    let outgoing = event.direction == weft_bpf::Direction::Out;
    // The endpoint is the one that was judged: the sender of what goes out.
    let (of_source, of_destination) = if outgoing {
        (event.endpoint, event.peer)
    } else {
        (event.peer, event.endpoint)
    };
    let source_at = SocketAddr::new(event.source, event.source_port);
    let destination_at = SocketAddr::new(event.destination, event.destination_port);
    let (source, proof) = parties.find(of_source, source_at, event.source_identity);
    let (destination, _) = parties.find(of_destination, destination_at, event.destination_identity);
    let verdict = match event.verdict {
        weft_bpf::Verdict::Forwarded => Verdict::Forwarded,
        weft_bpf::Verdict::Dropped => Verdict::Dropped,
        weft_bpf::Verdict::Audit => Verdict::Audit,
    };
    let (direction, asked) = if outgoing {
        (Direction::Egress, weft_policy_engine::Direction::Egress)
    } else {
        (Direction::Ingress, weft_policy_engine::Direction::Ingress)
    };
    let by_default = || {
        let denied = event.reason == POLICY_DENIED;
        denied.then(|| parties.refusing(event.endpoint, asked)).flatten()
    };
    Flow {
        time: clock.at(event.time),
        verdict,
        drop_reason: (event.reason != 0).then_some(DropReason::Kernel(event.reason)),
        rule: tables.rules().get(event.rule).or_else(by_default),
        caller_proof: proof,
        packet: Some(Packet {
            protocol: event.protocol,
            source_port: event.source_port,
            tcp_flags: event.tcp_flags,
            reply: event.reply,
            source: event.source,
            destination: event.destination,
        }),
        ..Flow::new(
            Kind::Packet,
            direction,
            source,
            destination,
            event.destination_port,
        )
    }
}
