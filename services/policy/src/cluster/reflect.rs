//! Follows one kind: listed page by page, then watched from there.
//!
//! What was read stays in force whatever the API server does, until a list that is complete says that it
//! is gone. A watch that ends goes on where it was; one whose place is forgotten begins with a list again.

use super::{
    api::{Api, Fault, chunk, one_line},
    backoff::Backoff,
    lines::{Line, Lines},
    object::{self, Item, place, problem},
    observed::Observed,
    wire::{Bookmark, Event, Failure, Page, path},
};
use crate::{
    files::{Content, Reading},
    world::ObjectKey,
};
use http::Method;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use weft_resources::Kind;

/// Objects on a page; fewer where they are large.
const PAGE: usize = 500;
/// Bytes of a page and of an event: an object is at most 1.5 MB in a cluster's store.
const PAGE_BYTES: usize = 16 * 1024 * 1024;
const LIST_WITHIN: Duration = Duration::from_secs(60);
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// A server ends a watch by then; bookmarks come about every minute.
const WATCH_SECONDS: u64 = 290;
/// ... and is not waited for much longer.
const WATCH_OVER: Duration = Duration::from_secs(10);
/// A watch that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(5);
/// So often in a row an API server may fail before it is said of the kind.
const PATIENCE: u32 = 3;
/// A kind that was there counts as removed when it has not been there for so many questions.
const MISSING: u32 = 3;

/// The receiver of what was read went away.
#[derive(Debug)]
struct Over;

enum Ended {
    Over,
    Fault(Fault),
}

impl From<Over> for Ended {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reflector {
    api: Api,
    kind: Kind,
    /// Under which the API server has it.
    api_version: &'static str,
    known: BTreeMap<ObjectKey, u64>,
    readings: mpsc::Sender<Vec<Reading>>,
    observed: Observed,
    /// Told once, when all objects of the kind were read, or it is not there.
    complete: Option<mpsc::UnboundedSender<Kind>>,
    retry: Duration,
    backoff: Backoff,
    missing: u32,
    /// Whether something is said of the kind.
    reported: bool,
}

impl Reflector {
    /// `known`: what is in force of the kind since before.
    pub(super) fn new(
        (api, kind): (Api, Kind),
        known: impl Iterator<Item = ObjectKey>,
        readings: mpsc::Sender<Vec<Reading>>,
        observed: Observed,
        complete: mpsc::UnboundedSender<Kind>,
        retry: Duration,
    ) -> Self {
        Self {
            api,
            kind,
            api_version: kind.api_version(),
            known: known.map(|key| (key, 0)).collect(),
            readings,
            observed,
            complete: Some(complete),
            retry,
            backoff: Backoff::new(retry),
            missing: 0,
            reported: false,
        }
    }

    /// Follows the kind until nobody wants to know any more.
    pub(super) async fn run(mut self) {
        loop {
            let ended = match self.list().await {
                Ok(version) => self.watch(version).await,
                Err(ended) => ended,
            };
            match ended {
                Ended::Over => return,
                Ended::Fault(Fault::NotFound) => {
                    if self.not_there().await.is_err() {
                        return;
                    }
                }
                Ended::Fault(fault) => {
                    if self.failed(&fault).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits after a failure, and says so of the kind if it goes on.
    async fn failed(&mut self, fault: &Fault) -> Result<(), Over> {
        let wait = self.backoff.after(fault);
        let lasting = matches!(fault, Fault::Refused { code: 403, .. } | Fault::Garbage(_))
            || self.backoff.failures() >= PATIENCE;
        // A forgotten place is nobody's fault.
        if lasting && *fault != Fault::Gone {
            self.report(fault).await?;
        }
        tracing::debug!(kind = %self.kind, %fault, ?wait, "tried again after a while");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn report(&mut self, fault: &Fault) -> Result<(), Over> {
        let remedy = match fault {
            Fault::Refused { code: 403 | 401, .. } => format!(
                "; the policy service's account needs list and watch on {}",
                self.resource()
            ),
            _ => String::new(),
        };
        let text = format!("the API server {fault}; what was read before stays in force{remedy}");
        self.reported = true;
        let place = self.kind.name().to_owned();
        let content = Content {
            bytes: Vec::new(),
            parsed: Err(vec![problem(&place, text)]),
        };
        let reading = Reading {
            path: place,
            content: Some(content),
        };
        self.send(vec![reading]).await
    }

    fn resource(&self) -> String {
        let plural = self.kind.plural_and_short().0;
        match self.kind.group() {
            "" => plural.to_owned(),
            group => format!("{plural}.{group}"),
        }
    }

    fn path(&self, query: &[(&str, &str)]) -> String {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(query)
            .finish();
        format!("{}?{query}", path(self.kind, self.api_version, None))
    }

    async fn send(&self, readings: Vec<Reading>) -> Result<(), Over> {
        if readings.is_empty() {
            return Ok(());
        }
        self.readings.send(readings).await.map_err(|_| Over)
    }

    /// All is well again.
    async fn well(&mut self) -> Result<(), Over> {
        self.backoff.reset();
        self.missing = 0;
        if std::mem::take(&mut self.reported) {
            let path = self.kind.name().to_owned();
            self.send(vec![Reading { path, content: None }]).await?;
        }
        Ok(())
    }

    fn is_complete(&mut self) {
        if let Some(complete) = self.complete.take() {
            // Somebody who does not wait any more need not know.
            let _ = complete.send(self.kind);
        }
    }

    /// The kind, or this version of it, is not there.
    async fn not_there(&mut self) -> Result<(), Over> {
        let versions = self.kind.api_versions();
        let at = versions.iter().position(|v| *v == self.api_version).unwrap_or(0);
        self.api_version = versions[(at + 1) % versions.len()];
        if at + 1 < versions.len() {
            return Ok(());
        }
        self.missing = self.missing.saturating_add(1);
        // Its objects were removed with it, unless the server is only just starting.
        if self.known.is_empty() || self.missing >= MISSING {
            let gone: Vec<ObjectKey> = self.known.keys().cloned().collect();
            self.remove(gone).await?;
            self.is_complete();
        }
        self.backoff.reset();
        tracing::debug!(kind = %self.kind, "not installed; looked for again later");
        tokio::time::sleep(self.retry.mul_f64(rand::random_range(0.5..=1.0))).await;
        Ok(())
    }

    async fn remove(&mut self, gone: Vec<ObjectKey>) -> Result<(), Over> {
        let mut readings = Vec::with_capacity(gone.len());
        for key in gone {
            self.known.remove(&key);
            self.observed.remove(&key);
            readings.push(Reading {
                path: place(&key),
                content: None,
            });
        }
        self.send(readings).await
    }

    /// What is new of an object.
    fn take(&mut self, item: Item) -> Option<Reading> {
        match item.facts {
            Some(facts) => self.observed.set(&item.key, facts),
            None => self.observed.remove(&item.key),
        }
        (self.known.insert(item.key, item.digest) != Some(item.digest)).then_some(item.reading)
    }

    /// Reads all objects; from the answer's version on they can be watched.
    async fn list(&mut self) -> Result<String, Ended> {
        let (mut limit, mut next, mut seen) = (PAGE, String::new(), BTreeSet::new());
        let mut unreadable = None;
        loop {
            let size = limit.to_string();
            let of_page: &[(&str, &str)] = match next.as_str() {
                "" => &[("limit", &size)],
                next => &[("limit", &size), ("continue", next)],
            };
            let path = self.path(of_page);
            let bytes = match self.api.get(&path, PAGE_BYTES, LIST_WITHIN).await {
                Err(Fault::TooLarge(_)) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                answer => answer?,
            };
            let page: Page<'_> = serde_json::from_slice(&bytes).map_err(Fault::garbage)?;
            let mut readings = Vec::new();
            for raw in page.items.unwrap_or_default() {
                match object::read(self.kind, self.api_version, raw.get()) {
                    Ok(item) => {
                        seen.insert(item.key.clone());
                        readings.extend(self.take(item));
                    }
                    Err(why) => unreadable = Some(why),
                }
            }
            self.send(readings).await?;
            next = page.metadata.next.unwrap_or_default();
            if next.is_empty() {
                // Which objects those are is not known: it could be any that is missing.
                if let Some(why) = unreadable {
                    return Err(Fault::Garbage(why).into());
                }
                let gone: Vec<ObjectKey> = self
                    .known
                    .keys()
                    .filter(|k| !seen.contains(*k))
                    .cloned()
                    .collect();
                self.remove(gone).await?;
                self.is_complete();
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// Watches from `version` on, over as many connections as it takes; returns when another list is
    /// needed.
    async fn watch(&mut self, mut version: String) -> Ended {
        let mut early = 0;
        loop {
            let began = Instant::now();
            let before = version.clone();
            let ended = self.watch_once(&mut version).await;
            let fault = match ended {
                Ok(()) if version != before || began.elapsed() >= GOOD => {
                    early = 0;
                    continue;
                }
                // A server may end a watch when it likes. One that always does so at once is listed
                // instead.
                Ok(()) if early < PATIENCE => {
                    early += 1;
                    tokio::time::sleep(self.backoff.after(&Fault::Gone)).await;
                    continue;
                }
                Ok(()) => Fault::Gone,
                Err(Ended::Fault(fault)) => fault,
                Err(Ended::Over) => return Ended::Over,
            };
            match fault {
                // After a list what was not understood or was too large may be understood.
                Fault::Gone | Fault::NotFound | Fault::Garbage(_) | Fault::TooLarge(_) => {
                    return Ended::Fault(fault);
                }
                fault => {
                    if self.failed(&fault).await.is_err() {
                        return Ended::Over;
                    }
                }
            }
        }
    }

    async fn watch_once(&mut self, version: &mut String) -> Result<(), Ended> {
        let path = self.path(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", &WATCH_SECONDS.to_string()),
        ]);
        let opening = tokio::time::timeout(OPEN_WITHIN, self.api.open(Method::GET, &path, None));
        let mut body = opening.await.map_err(|_| Fault::Silent(OPEN_WITHIN))??;
        let began = Instant::now();
        let over = began + Duration::from_secs(WATCH_SECONDS) + WATCH_OVER;
        let (mut lines, mut good) = (Lines::new(PAGE_BYTES), false);
        loop {
            let until = if good { over } else { began + GOOD };
            let bytes = match tokio::time::timeout_at(until, chunk(&mut body)).await {
                Ok(read) => read?,
                Err(_) if good => return Err(Fault::Silent(over - began).into()),
                Err(_) => {
                    good = true;
                    self.well().await?;
                    continue;
                }
            };
            let Some(bytes) = bytes else {
                // Not cut off, which is another error, but ended so.
                return match lines.has_rest() {
                    true => Err(Fault::garbage("an event without an end").into()),
                    false => Ok(()),
                };
            };
            let mut readings = Vec::new();
            let mut outcome = Ok(());
            for line in lines.push(&bytes) {
                outcome = self.event(line, version, &mut readings);
                if outcome.is_err() {
                    break;
                }
                if !std::mem::replace(&mut good, true) {
                    self.well().await?;
                }
            }
            self.send(readings).await?;
            outcome?;
        }
    }

    fn event(&mut self, line: Line, version: &mut String, readings: &mut Vec<Reading>) -> Result<(), Fault> {
        let Line::Whole(line) = line else {
            return Err(Fault::TooLarge(PAGE_BYTES));
        };
        let event: Event<'_> = serde_json::from_slice(&line).map_err(Fault::garbage)?;
        let raw = event.object.get();
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let item = object::read(self.kind, self.api_version, raw).map_err(Fault::Garbage)?;
                version.clone_from(&item.version);
                readings.extend(self.take(item));
            }
            "DELETED" => {
                let (key, of) = object::key(self.kind, raw).map_err(Fault::Garbage)?;
                *version = of;
                self.known.remove(&key);
                self.observed.remove(&key);
                readings.push(Reading {
                    path: place(&key),
                    content: None,
                });
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(raw).map_err(Fault::garbage)?;
                *version = bookmark.metadata.resource_version;
            }
            "ERROR" => {
                let Failure { code, message } = serde_json::from_str(raw).map_err(Fault::garbage)?;
                return Err(match code {
                    410 => Fault::Gone,
                    429 => Fault::Busy(None),
                    code => Fault::Refused {
                        code,
                        message: one_line(&message),
                    },
                });
            }
            other => return Err(Fault::garbage(format_args!("an event of type {other:?}"))),
        }
        Ok(())
    }
}
