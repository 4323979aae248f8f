//! Keeping the kernel's policy tables as the node's view of the mesh says.
//!
//! Owns the only writer of these tables ([`weft_datapath::Datapath`]) and when it runs: when it is this
//! agent's turn; after each change, gathered while it writes; again for what failed; on everything when
//! `weft-node` started anew. Writing is done on a thread of its own: a thousand system calls must hold
//! up nothing else.

use crate::{
    facts,
    host::Host,
    journal::Journal,
    turn::{self, Turn},
    view::View,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use weft_bpf::Services;
use weft_datapath::{Counts, Datapath, Kernel, Limits, Outcome, Removed, RuleNames, WriteError};
use weft_drain::Watcher;
use weft_handoff::GoneBackend;

/// What failed is tried again so often, and certificates are looked at, which end by themselves.
const AGAIN: Duration = Duration::from_secs(5);
/// Sockets that were connecting while their backend was removed are found by looking once more.
const CLOSE_AGAIN: Duration = Duration::from_millis(500);
/// Problems that wait to be told.
const MAX_NEWS: usize = 1_000;

enum Command {
    /// Everything that changed until now is to be written.
    Flush(oneshot::Sender<()>),
    /// `weft-node` started anew and handed these over.
    Tables(Box<Handed>),
}

/// The tables as they were handed over, not opened: opening those of Services clears up in them, and
/// somebody else may be writing.
#[derive(Debug)]
pub struct Handed(HashMap<String, OwnedFd>);

impl Handed {
    /// Takes the descriptors of all tables.
    pub fn take(maps: &mut HashMap<String, OwnedFd>) -> Result<Self, weft_bpf::Error> {
        let names = weft_bpf::Datapath::MAPS.into_iter().chain(Services::MAPS);
        let taken = names.map(|map| {
            let fd = maps.remove(map).ok_or(weft_bpf::Error::NoMap { map })?;
            Ok((map.to_owned(), fd))
        });
        taken.collect::<Result<_, _>>().map(Self)
    }

    fn adopt(mut self) -> Result<Datapath<Kernel>, WriteError> {
        let tables = Kernel::from_fds(&mut self.0).map_err(|e| WriteError::Failed(e.to_string()))?;
        Datapath::adopt(tables, Limits::default())
    }
}

/// What is shown of the tables.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// What they hold.
    pub counts: Counts,
    /// What could not be written as desired, until it can.
    pub problems: Vec<String>,
}

/// Asks the writer. Clones share.
#[derive(Debug, Clone)]
pub struct KernelTables {
    commands: mpsc::Sender<Command>,
    news: Arc<Mutex<Vec<String>>>,
    shown: Arc<Mutex<Shown>>,
    rules: Arc<Mutex<RuleNames>>,
    turn: watch::Receiver<Option<Arc<Turn>>>,
}

/// What the writer needs to know of its surroundings.
pub struct Surroundings {
    /// This node's name.
    pub node: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// What is desired.
    pub view: View,
    /// The agents' folder.
    pub folder: PathBuf,
    /// Where addresses of names are kept.
    pub names: PathBuf,
}

impl KernelTables {
    /// Starts the writer on tables that were handed over. What they hold stays in force until it is this
    /// agent's turn and the view says otherwise.
    pub fn start(handed: Handed, surroundings: Surroundings, drain: Watcher) -> Self {
        let (commands, queue) = mpsc::channel(256);
        let (turn, whose) = watch::channel(None);
        let tables = Self {
            commands,
            news: Arc::default(),
            shown: Arc::default(),
            rules: Arc::default(),
            turn: whose,
        };
        let writer = Writer {
            journal: surroundings.view.mesh.journal.clone(),
            surroundings,
            datapath: None,
            tables: tables.clone(),
            proven: BTreeMap::new(),
        };
        tokio::spawn(writer.take_turn(handed, turn, queue, drain));
        tables
    }

    /// Waits for this agent's turn; it lasts at least as long as the answer is held.
    pub async fn turn(&self) -> Option<Arc<Turn>> {
        let mut turn = self.turn.clone();
        let held = turn.wait_for(Option::is_some).await;
        held.ok().and_then(|held| held.clone())
    }

    /// Like [`KernelTables::flush`]; but what an agent that is being replaced writes still is not waited
    /// for. The workloads that were here before are in the kernel, and a new one is closed until then.
    pub async fn flush_in_turn(&self) {
        if self.turn.borrow().is_some() {
            self.flush().await;
        }
    }

    /// Waits until everything that changed until now is in the kernel, or known not to be.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.commands.send(Command::Flush(done)).await.is_ok() {
            // The writer ends with the drain only.
            let _ = written.await;
        }
    }

    /// Tables of a `weft-node` that started anew.
    pub async fn replace(&self, handed: Handed) {
        let _ = self.commands.send(Command::Tables(Box::new(handed))).await;
    }

    /// What could not be written and nobody was told of yet.
    pub fn news(&self) -> Vec<String> {
        std::mem::take(&mut *self.news.lock())
    }

    /// For the status.
    pub fn shown(&self) -> Shown {
        self.shown.lock().clone()
    }

    /// What events call rules.
    pub fn rules(&self) -> RuleNames {
        self.rules.lock().clone()
    }
}

struct Writer {
    journal: Journal,
    surroundings: Surroundings,
    /// Away while it writes, and before it is this agent's turn.
    datapath: Option<Datapath<Kernel>>,
    tables: KernelTables,
    /// Which workloads held a valid certificate when last looked at.
    proven: BTreeMap<Arc<str>, bool>,
}

impl Writer {
    async fn take_turn(
        mut self,
        handed: Handed,
        whose: watch::Sender<Option<Arc<Turn>>>,
        queue: mpsc::Receiver<Command>,
        mut drain: Watcher,
    ) {
        let path = self.surroundings.folder.join(turn::FILE);
        let turn = tokio::select! {
            turn = turn::wait(&path) => Arc::new(turn),
            () = drain.draining() => return,
        };
        // What the agent before learned of names until its end.
        self.surroundings.view.mesh.keep_names(&self.surroundings.names);
        match tokio::task::spawn_blocking(move || handed.adopt()).await {
            Ok(Ok(datapath)) => self.adopted(datapath),
            Ok(Err(error)) => tracing::error!(%error, "the kernel's tables are not written"),
            Err(error) => tracing::error!(%error, "the kernel's tables are not written"),
        }
        whose.send_replace(Some(turn.clone()));
        self.run(queue, drain).await;
        whose.send_replace(None);
        drop(turn);
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Command>, mut drain: Watcher) {
        let mut again = tokio::time::interval(AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut waiting = Vec::new();
            let mut retry = false;
            tokio::select! {
                () = self.journal.written() => {}
                command = queue.recv() => match command {
                    Some(command) => self.take(command, &mut waiting),
                    None => return,
                },
                _ = again.tick() => {
                    self.look_at_certificates();
                    retry = !self.tables.shown.lock().problems.is_empty();
                }
                () = drain.draining() => return,
            }
            while let Ok(command) = queue.try_recv() {
                self.take(command, &mut waiting);
            }
            if !self.write(retry).await {
                return;
            }
            for done in waiting {
                // Who asked may have given up.
                let _ = done.send(());
            }
        }
    }

    fn take(&mut self, command: Command, waiting: &mut Vec<oneshot::Sender<()>>) {
        match command {
            Command::Flush(done) => waiting.push(done),
            Command::Tables(handed) => match handed.adopt() {
                Ok(datapath) => self.adopted(datapath),
                Err(error) => {
                    tracing::error!(%error, "the kernel's tables of the new weft-node are not written")
                }
            },
        }
    }

    fn adopted(&mut self, datapath: Datapath<Kernel>) {
        *self.tables.rules.lock() = datapath.rule_names();
        self.datapath = Some(datapath);
        self.journal.write().all();
    }

    /// A certificate ends without anybody doing anything.
    fn look_at_certificates(&mut self) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_secs());
        let locals = self.surroundings.view.locals.all();
        let proven: BTreeMap<Arc<str>, bool> =
            locals.iter().map(|l| (l.id.clone(), l.is_proven(now))).collect();
        for (id, is) in &proven {
            if self.proven.get(id).is_some_and(|was| was != is) {
                self.journal.here(id);
            }
        }
        self.proven = proven;
    }

    /// `false`: it can not go on.
    async fn write(&mut self, retry: bool) -> bool {
        // Until the policy service, or the file of the last good state, has said anything, what the
        // kernel holds is all that is known.
        if self.surroundings.view.mesh.position() == crate::mesh::Position::default() {
            return true;
        }
        let pages = self.journal.take();
        if !retry && !pages.all && pages.here.is_empty() && pages.resources.is_empty() {
            return true;
        }
        let Some(mut datapath) = self.datapath.take() else {
            return false;
        };
        let Surroundings {
            node,
            addresses,
            view,
            ..
        } = &self.surroundings;
        let (node, addresses, view) = (node.clone(), addresses.clone(), view.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut outcome = datapath.apply(facts::update(&view, &node, &addresses, pages));
            if retry {
                let more = datapath.retry();
                outcome.problems.extend(more.problems);
                outcome.removed.extend(more.removed);
            }
            let shown = Shown {
                counts: datapath.counts(),
                problems: datapath.problems(),
            };
            (datapath, outcome, shown)
        });
        let Ok((datapath, outcome, shown)) = written.await else {
            tracing::error!("the kernel's tables are not written any more: a defect; restart weft-agent");
            return false;
        };
        self.datapath = Some(datapath);
        *self.tables.shown.lock() = shown;
        self.tell(outcome);
        true
    }

    fn tell(&self, outcome: Outcome) {
        let mut news = self.tables.news.lock();
        for problem in outcome.problems {
            tracing::error!(problem, "not in the kernel as desired");
            if news.len() < MAX_NEWS {
                news.push(problem);
            }
        }
        drop(news);
        if outcome.removed.is_empty() {
            return;
        }
        if let Host::Node { link, .. } = &self.surroundings.view.host {
            let (link, gone) = (link.clone(), gone_backends(outcome.removed));
            tokio::spawn(async move {
                for pause in [Duration::ZERO, CLOSE_AGAIN] {
                    tokio::time::sleep(pause).await;
                    match link.load_full().close_sockets(&gone).await {
                        Ok(0) => {}
                        Ok(count) => tracing::info!(count, "sockets of removed backends closed"),
                        Err(error) => tracing::warn!(%error, "sockets of removed backends stay open"),
                    }
                }
            });
        }
    }
}

/// By backend, with all services that had it.
fn gone_backends(removed: Vec<Removed>) -> Vec<GoneBackend> {
    let mut gone: BTreeMap<_, GoneBackend> = BTreeMap::new();
    for Removed { frontend, backend } in removed {
        let transport = match frontend.transport {
            weft_bpf::Transport::Tcp => weft_handoff::Transport::Tcp,
            weft_bpf::Transport::Udp => weft_handoff::Transport::Udp,
        };
        let one = gone
            .entry((frontend.transport, backend))
            .or_insert_with(|| GoneBackend {
                transport,
                backend,
                services: Vec::new(),
            });
        one.services.push(frontend.address);
    }
    gone.into_values().collect()
}
