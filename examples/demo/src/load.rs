//! Load on one address: a fixed rate over fixed connections, no retries, each reply checked by the
//! unique id that the request carried.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{net::TcpStream, sync::mpsc, time::MissedTickBehavior};

/// A request that takes longer counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many failures are kept with their text; the rest are counted.
const KEPT_FAILURES: usize = 8;

/// What to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Path and query, without the id that is appended.
    pub path: String,
    /// Texts that a good reply contains, beside the id.
    pub expect: Vec<String>,
    /// Connections kept open.
    pub connections: u32,
    /// Requests per second over all connections.
    pub rate: u32,
    /// A fresh connection for each request, to see what happens to connects.
    pub reconnect: bool,
    /// Who may answer: texts, of which a good reply contains one. Empty when that is not asked.
    pub answerers: Vec<String>,
}

/// What happened.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests sent.
    pub sent: u64,
    /// Replies with status 200, the id and everything expected.
    pub good: u64,
    /// Connects that were refused or reset before anything was sent.
    pub connects_lost: u64,
    /// Requests that were sent and got no good reply.
    pub requests_lost: u64,
    /// The first failures.
    pub failures: Vec<String>,
    /// The longest wait for a good reply.
    pub longest: Duration,
    /// How long the load ran.
    pub ran: Duration,
    /// Of each good reply, where it was asked who may answer: when its request was sent, in microseconds
    /// of Unix time, and which of them did.
    pub answers: Vec<(u64, usize)>,
}

impl Outcome {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.ran.as_secs_f64().max(0.001)
    }

    /// How many replies each answerer gave to the first `count` requests that were sent at `since` or
    /// later, and when the last of those was sent. `None` when there are fewer.
    pub fn shares(&self, since: u64, count: usize, answerers: usize) -> Option<(Vec<usize>, u64)> {
        let mut sent: Vec<_> = self.answers.iter().filter(|(at, _)| *at >= since).collect();
        sent.sort_unstable();
        let (last, _) = **sent.get(count.checked_sub(1)?)?;
        let by = |who| sent[..count].iter().filter(|(_, by)| *by == who).count();
        Some(((0..answerers).map(by).collect(), last))
    }

    /// One line for the report.
    pub fn line(&self) -> String {
        format!(
            "{} requests, {:.0}/s, {} good, {} lost, {} connects lost, longest {} ms{}",
            self.sent,
            self.rate(),
            self.good,
            self.requests_lost,
            self.connects_lost,
            self.longest.as_millis(),
            self.failures
                .first()
                .map(|f| format!("; first failure: {f}"))
                .unwrap_or_default()
        )
    }
}

enum Event {
    Good(Duration, Option<(u64, usize)>),
    ConnectLost(String),
    RequestLost(String),
}

/// Runs `plan` until `stop` is set. Call it on a runtime inside the caller's namespace.
pub async fn run(plan: Plan, stop: Arc<AtomicBool>) -> Outcome {
    run_counted(plan, stop, Arc::default()).await
}

/// [`run`] that tells meanwhile how many requests are done, whatever came of them.
pub async fn run_counted(plan: Plan, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Outcome {
    let begun = Instant::now();
    let (events, mut inbox) = mpsc::unbounded_channel();
    let ids = Arc::new(AtomicU64::new(0));
    let workers = u64::from(plan.connections.max(1));
    let gap = Duration::from_secs(1).mul_f64(workers as f64 / f64::from(plan.rate.max(1)));
    for worker in 0..workers {
        let (plan, stop, events, ids) = (plan.clone(), stop.clone(), events.clone(), ids.clone());
        let offset = gap.mul_f64(worker as f64 / workers as f64);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + offset, gap);
            // After a stall, go on at the same rate: what was missed is not sent in a burst.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut connection = None;
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                // Of one length, so that none is a part of another.
                let id = format!(
                    "{}-{:08}",
                    std::process::id(),
                    ids.fetch_add(1, Ordering::Relaxed)
                );
                let event = one(&plan, &mut connection, &id).await;
                if plan.reconnect || !matches!(event, Event::Good(..)) {
                    connection = None;
                }
                if events.send(event).is_err() {
                    return;
                }
            }
        });
    }
    drop(events);
    let mut outcome = Outcome::default();
    while let Some(event) = inbox.recv().await {
        outcome.sent += 1;
        done.store(outcome.sent, Ordering::Relaxed);
        let failure = match event {
            Event::Good(took, answer) => {
                outcome.good += 1;
                outcome.answers.extend(answer);
                outcome.longest = outcome.longest.max(took);
                continue;
            }
            Event::ConnectLost(why) => {
                outcome.connects_lost += 1;
                why
            }
            Event::RequestLost(why) => {
                outcome.requests_lost += 1;
                why
            }
        };
        if outcome.failures.len() < KEPT_FAILURES {
            outcome.failures.push(failure);
        }
    }
    outcome.ran = begun.elapsed();
    outcome
}

type Sender = http1::SendRequest<Empty<Bytes>>;

async fn connect(address: SocketAddr) -> io::Result<Sender> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Now, in microseconds of Unix time: what two processes of a machine agree on.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

async fn one(plan: &Plan, connection: &mut Option<Sender>, id: &str) -> Event {
    let (begun, sent) = (Instant::now(), now());
    let sender = match connection {
        Some(sender) if sender.is_ready() => sender,
        _ => match tokio::time::timeout(PATIENCE, connect(plan.address)).await {
            Ok(Ok(fresh)) => connection.insert(fresh),
            Ok(Err(e)) => return Event::ConnectLost(format!("connect: {e}")),
            Err(_) => return Event::ConnectLost(format!("connect took over {} s", PATIENCE.as_secs())),
        },
    };
    match tokio::time::timeout(
        PATIENCE,
        get(sender, &plan.address.to_string(), &format!("{}{id}", plan.path)),
    )
    .await
    {
        Ok(Ok((200, body))) => {
            // The apps' JSON libraries differ in the spaces they write.
            let body = body.replace(' ', "");
            let mut wanted = plan.expect.iter().map(String::as_str).chain([id]);
            if let Some(missing) = wanted.find(|w| !body.contains(*w)) {
                return Event::RequestLost(format!("reply lacks {missing:?}: {body}"));
            }
            let by = plan
                .answerers
                .iter()
                .position(|a| body.contains(&a.replace(' ', "")));
            if by.is_none() && !plan.answerers.is_empty() {
                return Event::RequestLost(format!("none of {:?} replied: {body}", plan.answerers));
            }
            Event::Good(begun.elapsed(), by.map(|by| (sent, by)))
        }
        Ok(Ok((status, body))) => Event::RequestLost(format!("status {status}: {body}")),
        Ok(Err(e)) => Event::RequestLost(format!("{e:#}")),
        Err(_) => Event::RequestLost(format!("no reply within {} s", PATIENCE.as_secs())),
    }
}

async fn get(sender: &mut Sender, host: &str, path: &str) -> Result<(u16, String)> {
    let request = Request::get(path).header(HOST, host).body(Empty::new())?;
    let response = sender.send_request(request).await.context("sending")?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading the reply")?
        .to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// One request with headers on a connection of its own.
pub async fn fetch(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<(u16, String)> {
    let fetch = async {
        let mut sender = connect(address)
            .await
            .with_context(|| format!("connect to {address}"))?;
        let mut request = Request::get(path).header(HOST, address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Empty::new())?)
            .await
            .context("sending")?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .context("reading the reply")?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(PATIENCE, fetch)
        .await
        .context("no reply in time")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_first_requests_after_a_moment() {
        let outcome = Outcome {
            // In the order of their replies.
            answers: vec![(10, 0), (5, 1), (30, 1), (20, 0), (40, 0)],
            ..Outcome::default()
        };
        assert_eq!(outcome.shares(10, 3, 2), Some((vec![2, 1], 30)));
        assert_eq!(outcome.shares(11, 3, 2), Some((vec![2, 1], 40)));
        assert_eq!(outcome.shares(11, 4, 2), None);
    }
}
