//! Nodes as the policy service sees them: each a stream over its own connection that takes what comes and
//! confirms it.

use anyhow::{Context, Result, bail};
use prost::Message as _;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use weft_proto::weft::policy::v1::{
    Ack, Hello, SubscribeRequest, SubscribeResponse, distribution_client::DistributionClient,
    subscribe_request::Message,
};

/// Nothing takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// So long nothing may come any more at nodes that a change does not concern.
const QUIET: Duration = Duration::from_millis(60);
/// A stream that broke is begun again after this time.
const AGAIN: Duration = Duration::from_millis(20);

/// One update that a node confirmed.
#[derive(Debug)]
pub struct Seen {
    pub node: usize,
    pub at: Instant,
    pub snapshot: bool,
    pub bytes: usize,
    /// Kinds and names of a delta, what is removed with a `-` before its kind.
    pub keys: Vec<(String, String)>,
}

/// What one change gave.
#[derive(Debug, Default)]
pub struct Change {
    /// Milliseconds, of each node concerned.
    pub times: Vec<f64>,
    /// Updates at nodes that are not concerned.
    pub strays: usize,
    pub bytes: usize,
}

/// All of them.
pub struct Nodes {
    count: usize,
    seen: mpsc::UnboundedReceiver<Seen>,
    told: mpsc::UnboundedSender<Seen>,
}

impl Nodes {
    pub fn new(count: usize) -> Self {
        let (told, seen) = mpsc::unbounded_channel();
        Self { count, seen, told }
    }

    /// Begins a node's stream, and begins it again whenever it breaks.
    pub fn connect(&self, node: usize, range: String, channel: Channel) {
        let told = self.told.clone();
        tokio::spawn(async move {
            let mut held = (0, String::new());
            loop {
                // A service that is away comes back.
                let _ = follow((node, &range), channel.clone(), &mut held, &told).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    async fn next(&mut self, deadline: Instant) -> Result<Seen> {
        let next = tokio::time::timeout_at(deadline.into(), self.seen.recv()).await;
        next.context("a node did not get what it needs")?
            .context("nobody is there")
    }

    pub async fn until_all_have_a_snapshot(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut there = BTreeSet::new();
        while there.len() < self.count {
            let seen = self.next(deadline).await?;
            if seen.snapshot {
                there.insert(seen.node);
            }
        }
        self.settle().await;
        Ok(())
    }

    /// Takes what still comes: how many full snapshots were among it, and when the last of it came.
    pub async fn settle(&mut self) -> (usize, Option<Instant>) {
        let (mut snapshots, mut last) = (0, None);
        while let Ok(Some(seen)) = tokio::time::timeout(QUIET, self.seen.recv()).await {
            snapshots += usize::from(seen.snapshot);
            last = last.max(Some(seen.at));
        }
        (snapshots, last)
    }

    /// The change that began at `begun` reaches these nodes, each as `is` knows it, and no others.
    pub async fn reached(
        &mut self,
        begun: Instant,
        nodes: &BTreeSet<usize>,
        is: impl Fn(&Seen) -> bool,
    ) -> Result<Change> {
        let deadline = begun + LIMIT;
        let (mut change, mut waiting) = (Change::default(), nodes.clone());
        let mut take = |seen: &Seen, waiting: &mut BTreeSet<usize>| {
            change.bytes += seen.bytes;
            change.strays += usize::from(!nodes.contains(&seen.node));
            if is(seen) && waiting.remove(&seen.node) {
                change.times.push((seen.at - begun).as_secs_f64() * 1e3);
            }
        };
        while !waiting.is_empty() {
            let seen = self.next(deadline).await?;
            take(&seen, &mut waiting);
        }
        while let Ok(Some(seen)) = tokio::time::timeout(QUIET, self.seen.recv()).await {
            take(&seen, &mut waiting);
        }
        Ok(change)
    }
}

/// What a delta is about.
fn keys(update: &SubscribeResponse) -> Vec<(String, String)> {
    if update.snapshot {
        return Vec::new();
    }
    let upserts = update.upserts.iter().filter_map(|r| r.key.as_ref());
    let upserts = upserts.map(|key| (key.kind.clone(), key.name.clone()));
    let removes = update.removes.iter();
    upserts
        .chain(removes.map(|key| (format!("-{}", key.kind), key.name.clone())))
        .collect()
}

async fn follow(
    (node, range): (usize, &str),
    channel: Channel,
    held: &mut (u64, String),
    told: &mpsc::UnboundedSender<Seen>,
) -> Result<()> {
    let (requests, receiver) = mpsc::channel(16);
    let say = |message| SubscribeRequest {
        message: Some(message),
    };
    let hello = Hello {
        held_version: held.0,
        held_epoch: held.1.clone(),
        software: "bench".into(),
        pod_cidrs: vec![range.to_owned()],
        ..Hello::default()
    };
    requests.send(say(Message::Hello(hello))).await?;
    let mut client = DistributionClient::new(channel).max_decoding_message_size(256 * 1024 * 1024);
    let mut updates = client
        .subscribe(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    while let Some(update) = updates.message().await? {
        let bytes = update.encoded_len();
        requests
            .send(say(Message::Ack(Ack {
                version: update.version,
            })))
            .await?;
        let seen = Seen {
            node,
            at: Instant::now(),
            snapshot: update.snapshot,
            bytes,
            keys: keys(&update),
        };
        *held = (update.version, update.epoch);
        if told.send(seen).is_err() {
            bail!("nobody looks any more");
        }
    }
    Ok(())
}
