//! The stream from the policy service: connects, applies, acknowledges, and connects again.
//!
//! Owns the writing side of [`Mesh`]. What was applied last stays in force while the service is
//! away, and across a restart of this process: it is kept in a file.

use crate::{
    backoff::Backoff,
    kernel::KernelTables,
    mesh::Mesh,
    persist::{self, PersistError},
    upstream::Upstream,
};
use prost::Message;
use std::{net::IpAddr, path::PathBuf, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};
use weft_drain::Watcher;
use weft_proto::weft::policy::v1::{
    self as pb, distribution_client::DistributionClient, subscribe_request::Message as Said,
};

/// Largest single update that is taken.
const MAX_UPDATE: usize = 128 * 1024 * 1024;
/// Changes are gathered for so long before the file is written.
const SAVE_AFTER: Duration = Duration::from_millis(200);
/// Reasons in one Nack.
const MAX_REASONS: usize = 100;

/// Reads the last good state into `mesh`. Without a file, nothing; a damaged one is reported.
pub fn restore(mesh: &Mesh, path: &std::path::Path) -> Result<(), PersistError> {
    let Some(content) = persist::read(path)? else {
        return Ok(());
    };
    let damaged = |what| PersistError::Damaged {
        path: path.into(),
        what,
    };
    let state = pb::SubscribeResponse::decode(content.as_slice()).map_err(|_| damaged("not decodable"))?;
    let problems = mesh.apply(state);
    for problem in &problems {
        tracing::warn!(problem, "last good state");
    }
    let at = mesh.position();
    tracing::info!(version = at.version, epoch = at.epoch, "last good state read");
    Ok(())
}

/// Writes the view to its file after each change, gathered, and once more at the end.
pub async fn save(mesh: Mesh, path: PathBuf, mut drain: Watcher) {
    let mut changed = mesh.subscribe();
    let mut saved = mesh.position();
    loop {
        let last = tokio::select! {
            r = changed.changed() => r.is_err(),
            () = drain.draining() => true,
        };
        if !last {
            tokio::select! {
                () = tokio::time::sleep(SAVE_AFTER) => {}
                () = drain.draining() => {}
            }
        }
        let now = changed.borrow_and_update().clone();
        if now != saved {
            let (mesh, path) = (mesh.clone(), path.clone());
            let written =
                tokio::task::spawn_blocking(move || persist::write(&path, &mesh.snapshot().encode_to_vec()))
                    .await;
            match written {
                Ok(Ok(())) => saved = now,
                Ok(Err(error)) => tracing::error!(%error, "last good state is not kept"),
                Err(error) => tracing::error!(%error, "last good state is not kept"),
            }
        }
        if last || drain.is_draining() {
            return;
        }
    }
}

/// Keeps `mesh` up to date.
#[derive(Debug)]
pub struct Subscription {
    /// What is written.
    pub mesh: Mesh,
    /// To the policy service.
    pub channel: Channel,
    /// Told how it goes.
    pub upstream: Upstream,
    /// The node's own.
    pub addresses: Vec<IpAddr>,
    /// Where its pods have theirs, as configured.
    pub pod_cidrs: Vec<String>,
    /// The kernel's policy tables, where there are any.
    pub kernel: Option<KernelTables>,
    /// Counts sessions: each asks the workloads to register again, since the service may have
    /// missed what went on meanwhile.
    pub sessions: watch::Sender<u64>,
}

impl Subscription {
    /// Runs until the drain.
    pub async fn run(self, mut drain: Watcher) {
        let mut backoff = Backoff::upstream();
        loop {
            let ended = tokio::select! {
                ended = self.session(&mut backoff) => ended,
                () = drain.draining() => return,
            };
            match ended {
                // The server ends each connection now and then; that is no failure.
                Ok(()) => tracing::debug!("policy stream ended"),
                Err(status) => self.upstream.failed(&explain(&status)),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => {}
                () = drain.draining() => return,
            }
        }
    }

    async fn session(&self, backoff: &mut Backoff) -> Result<(), Status> {
        let (say, requests) = mpsc::channel(16);
        let held = self.mesh.position();
        let hello = pb::Hello {
            held_version: held.version,
            held_epoch: held.epoch,
            software: weft_model::VERSION.into(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            pod_cidrs: self.pod_cidrs.clone(),
        };
        let request = |message| pb::SubscribeRequest {
            message: Some(message),
        };
        let gone = |_| Status::unavailable("the policy stream closed");
        say.send(request(Said::Hello(hello))).await.map_err(gone)?;
        let mut client = DistributionClient::new(self.channel.clone()).max_decoding_message_size(MAX_UPDATE);
        let mut updates = client
            .subscribe(ReceiverStream::new(requests))
            .await?
            .into_inner();
        self.upstream.connected();
        backoff.reset();
        self.sessions.send_modify(|n| *n += 1);
        let mut interest = self.mesh.interest.subscribe();
        interest.mark_changed();
        loop {
            let update = tokio::select! {
                update = updates.message() => match update? {
                    Some(update) => update,
                    None => return Ok(()),
                },
                Ok(()) = interest.changed() => {
                    let namespaces = self.mesh.interest.all();
                    if !namespaces.is_empty() {
                        let interest = Said::Interest(pb::Interest { namespaces });
                        say.send(request(interest)).await.map_err(gone)?;
                    }
                    continue;
                }
            };
            let version = update.version;
            let mut reasons = self.mesh.apply(update);
            if let Some(kernel) = &self.kernel {
                // Acknowledged means enforced: other nodes let workloads start on the strength of it.
                kernel.flush().await;
                reasons.extend(kernel.news());
            }
            let answer = if reasons.is_empty() {
                Said::Ack(pb::Ack { version })
            } else {
                for reason in &reasons {
                    tracing::error!(version, reason, "part of a policy update can not be used");
                }
                reasons.truncate(MAX_REASONS);
                Said::Nack(pb::Nack { version, reasons })
            };
            say.send(request(answer)).await.map_err(gone)?;
        }
    }
}

/// A gRPC failure in one line: tonic's own text hides the cause in its source.
pub fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    if text.is_empty() {
        text = status.code().to_string();
    }
    text
}
