//! The stream, and the one task that keeps it.

use crate::{
    Link, Placed, Registration, Status, Tables,
    held::{Held, HeldError},
    wire,
};
use arc_swap::ArcSwap;
use rand::Rng;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use weft_placement_protocol::{LEASE_MARGIN, TypeKey};
use weft_proto::weft::placement::v1::{
    self as pb, join_request::Message as Up, join_response::Message as Down,
    placement_client::PlacementClient,
};

/// Messages to the service that wait to be sent; when they are more, the stream is made anew.
const OUTBOX: usize = 256;
/// Reports of the node's own parts that wait to be taken.
const COMMANDS: usize = 64;
/// A table of the largest size with many hosts fits.
const MAX_MESSAGE: usize = 32 << 20;
/// A stream over which this many renewals in a row got no answer is dead.
const SILENT_RENEWALS: u32 = 3;
/// The service welcomes within this time, or the attempt is over.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream that lasted this long was a good one: the next attempt starts without long waits.
const GOOD_STREAM: Duration = Duration::from_secs(5);

/// How the client behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name and version of the node's software, for the service's log.
    pub software: String,
    /// The first wait before connecting again; a random part of it is used.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            software: format!("weft-agent/{}", weft_model::VERSION),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
        }
    }
}

enum Command {
    Up(Registration),
    Down(String),
}

/// A node's membership in placement. Clones share; when the last is dropped, the stream ends
/// (the node's hosts then keep their slots until the lease is over).
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    tables: Arc<ArcSwap<Tables>>,
    changed: watch::Receiver<u64>,
    status: watch::Receiver<Status>,
}

impl Client {
    /// Reports that an app instance is up (again, or with other types). The service hears of it
    /// now, or at the next connect.
    pub async fn host_up(&self, host: Registration) {
        // The task ends only when no client is left.
        let _ = self.commands.send(Command::Up(host)).await;
    }

    /// Reports that an app instance is gone: its slots are free as soon as the service hears it.
    pub async fn host_down(&self, id: &str) {
        let _ = self.commands.send(Command::Down(id.to_owned())).await;
    }

    /// All tables as they are now.
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Who owns an actor, by what the node knows now.
    pub fn lookup(&self, namespace: &str, actor_type: &str, actor_id: &str) -> Option<Placed> {
        self.tables.load().lookup(namespace, actor_type, actor_id)
    }

    /// Notified after each change of the tables.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// How the node stands with the service, now and from now on.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// Starts the node's membership over `channel` (to the placement service, with the node's own
/// certificate), with `hosts` as what runs on the node now.
pub fn start(channel: Channel, config: Config, hosts: Vec<Registration>) -> Client {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let tables = Arc::new(ArcSwap::from_pointee(Tables::default()));
    let changed = watch::Sender::new(0);
    let status = watch::Sender::new(Status::new(Instant::now()));
    let client = Client {
        commands,
        tables: tables.clone(),
        changed: changed.subscribe(),
        status: status.subscribe(),
    };
    let keeper = Keeper {
        rpc: PlacementClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        config,
        inbox,
        hosts: hosts.into_iter().map(|h| (h.id.clone(), h)).collect(),
        held: Held::new(tables),
        changed,
        status,
    };
    tokio::spawn(keeper.run());
    client
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{}", .0.message())]
    Refused(#[from] tonic::Status),
    #[error("the service ended the stream")]
    Closed,
    #[error("no answer from the service for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("no welcome from the service within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("more than {OUTBOX} reports wait: the service does not read")]
    Stuck,
    #[error(transparent)]
    Unusable(#[from] HeldError),
}

/// Whether to go on.
enum Next {
    Again(Ended),
    /// Nobody holds a [`Client`] any more.
    Stop,
}

impl<E: Into<Ended>> From<E> for Next {
    fn from(e: E) -> Self {
        Self::Again(e.into())
    }
}

struct Keeper {
    rpc: PlacementClient<Channel>,
    config: Config,
    inbox: mpsc::Receiver<Command>,
    /// What runs on the node: told whole at each hello.
    hosts: BTreeMap<String, Registration>,
    held: Held,
    changed: watch::Sender<u64>,
    status: watch::Sender<Status>,
}

impl Keeper {
    async fn run(mut self) {
        let mut wait = self.config.backoff_min;
        loop {
            let begun = Instant::now();
            let Err(next) = self.stream().await;
            let reason = match next {
                Next::Stop => return,
                Next::Again(reason) => reason.to_string(),
            };
            let was_up = self.status.borrow().is_connected();
            if was_up {
                tracing::warn!(reason, "placement stream ended");
            } else {
                tracing::debug!(reason, "placement not reached");
            }
            self.status.send_modify(|s| {
                s.link = Link::Down {
                    since: Instant::now(),
                    reason,
                }
            });
            if was_up && begun.elapsed() >= GOOD_STREAM {
                wait = self.config.backoff_min;
            }
            // Nodes that lost the same service at the same moment come back spread out.
            let until = Instant::now() + wait.mul_f64(rand::rng().random_range(0.0..1.0));
            wait = (wait * 2).min(self.config.backoff_max);
            loop {
                tokio::select! {
                    () = sleep_until(until) => break,
                    command = self.inbox.recv() => match command {
                        Some(command) => drop(self.note(command)),
                        None => return,
                    },
                }
            }
        }
    }

    /// Keeps what runs on the node up to date; gives what to tell the service.
    fn note(&mut self, command: Command) -> Option<Up> {
        match command {
            Command::Up(host) => {
                let message = wire::registration_message(&host);
                self.status
                    .send_if_modified(|s| s.refused.remove(&host.id).is_some());
                let before = self.hosts.insert(host.id.clone(), host);
                (before.as_ref() != self.hosts.get(&message.id)).then_some(Up::HostUp(message))
            }
            Command::Down(id) => {
                self.status.send_if_modified(|s| s.refused.remove(&id).is_some());
                self.hosts.remove(&id)?;
                Some(Up::HostDown(pb::HostDown { id }))
            }
        }
    }

    /// One stream, until it ends.
    async fn stream(&mut self) -> Result<std::convert::Infallible, Next> {
        // What was reported meanwhile goes into the hello.
        loop {
            match self.inbox.try_recv() {
                Ok(command) => drop(self.note(command)),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => return Err(Next::Stop),
            }
        }
        let (out, requests) = mpsc::channel(OUTBOX);
        let (held_epoch, held) = self.held.hello();
        let hello = pb::Hello {
            held_epoch,
            held,
            software: self.config.software.clone(),
            hosts: self.hosts.values().map(wire::registration_message).collect(),
        };
        // The lease counts from before the hello is sent, and from when it is answered after all that
        // changed meanwhile: the welcome alone is none, for what is held may be old.
        let hello_sent = Instant::now();
        put(&out, Up::Hello(hello))?;
        let welcome = async {
            let mut inbound = self.rpc.join(ReceiverStream::new(requests)).await?.into_inner();
            match inbound.message().await? {
                Some(pb::JoinResponse {
                    message: Some(Down::Welcome(welcome)),
                }) => Ok((welcome, inbound)),
                _ => Err(Ended::Closed),
            }
        };
        let (welcome, mut inbound) = timeout(WELCOME_TIMEOUT, welcome)
            .await
            .map_err(|_| Ended::NoWelcome)??;
        let lease = Duration::from_millis(welcome.lease_milliseconds.into()).saturating_sub(LEASE_MARGIN);
        // A service that names no time must not make this loop spin.
        let renew = Duration::from_millis(welcome.renew_milliseconds.max(100).into());
        self.held.welcome(welcome.epoch);
        self.changed.send_modify(|n| *n += 1);
        self.status.send_modify(|s| {
            s.link = Link::Up {
                since: Instant::now(),
            };
            s.refused.clear();
            s.streams += 1;
        });

        let mut ticks = interval_at(Instant::now() + renew, renew);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = VecDeque::from([(0, hello_sent)]);
        let mut sequence = 0;
        let mut answered = Instant::now();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    // Many tables may come before the answer to a renewal.
                    answered = Instant::now();
                    match message?.ok_or(Ended::Closed)?.message {
                        Some(Down::Renewed(renewed)) => {
                            while let Some((number, at)) = sent.front().copied() {
                                if number > renewed.sequence {
                                    break;
                                }
                                sent.pop_front();
                                if number == renewed.sequence {
                                    self.status.send_modify(|s| s.lease_until = s.lease_until.max(Some(at + lease)));
                                }
                            }
                        }
                        message => self.receive(message)?,
                    }
                }
                command = self.inbox.recv() => {
                    if let Some(report) = self.note(command.ok_or(Next::Stop)?) {
                        put(&out, report)?;
                    }
                }
                _ = ticks.tick() => {
                    if answered.elapsed() > renew * SILENT_RENEWALS {
                        return Err(Ended::Silent(answered.elapsed()).into());
                    }
                    sequence += 1;
                    sent.push_back((sequence, Instant::now()));
                    put(&out, Up::Renew(pb::Renew { sequence }))?;
                }
            }
        }
    }

    fn receive(&mut self, message: Option<Down>) -> Result<(), Ended> {
        match message {
            Some(Down::Table(table)) => self.held.table(table)?,
            Some(Down::Delta(delta)) => self.held.delta(delta)?,
            Some(Down::Gone(gone)) => self.held.gone(&TypeKey::new(&gone.namespace, &gone.actor_type)),
            Some(Down::Refused(refused)) => {
                tracing::warn!(
                    host = refused.id,
                    reason = refused.reason,
                    "placement refused a host"
                );
                if self.hosts.contains_key(&refused.id) {
                    self.status
                        .send_modify(|s| drop(s.refused.insert(refused.id, refused.reason)));
                }
                return Ok(());
            }
            // A message of a later version, or one that was dealt with.
            Some(Down::Welcome(_) | Down::Renewed(_)) | None => return Ok(()),
        }
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }
}

fn put(out: &mpsc::Sender<pb::JoinRequest>, message: Up) -> Result<(), Ended> {
    use mpsc::error::TrySendError as E;
    out.try_send(pb::JoinRequest {
        message: Some(message),
    })
    .map_err(|e| match e {
        E::Full(_) => Ended::Stuck,
        E::Closed(_) => Ended::Closed,
    })
}
