//! Who joined and what each may host, as the database says: asked for with every certificate, so the
//! answers are kept for a while.

use crate::{
    core::{Core, Decision},
    pattern::HostPattern,
    tokens::Kind,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long an answer is good where other replicas may change it. Nobody ceases to be a member, so
/// all that may be late are new patterns.
const SHARED: Duration = Duration::from_secs(1);
/// More members than these are asked for anew.
const KEPT: usize = 100_000;

type Patterns = Arc<[HostPattern]>;

/// The answers.
#[derive(Debug, Default)]
pub struct Members {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    patterns: HashMap<(Kind, String), (Instant, Patterns)>,
    /// Rises with each join: an answer from before one is not kept.
    joins: u64,
}

impl Members {
    fn get(&self, key: &(Kind, String), shared: bool) -> Result<Patterns, u64> {
        let known = self.known.lock();
        match known.patterns.get(key) {
            Some((since, patterns)) if !shared || since.elapsed() < SHARED => Ok(patterns.clone()),
            _ => Err(known.joins),
        }
    }

    fn put(&self, key: (Kind, String), joins: u64, answer: (Instant, Patterns)) {
        let mut known = self.known.lock();
        if known.patterns.len() >= KEPT {
            known.patterns.clear();
        }
        if known.joins == joins {
            known.patterns.insert(key, answer);
        }
    }

    /// It joined anew; to be said when the database knows.
    pub fn forget(&self, kind: Kind, name: &str) {
        let mut known = self.known.lock();
        known.joins += 1;
        known.patterns.remove(&(kind, name.to_owned()));
    }
}

impl Core {
    /// What a member may host; `None` when nobody of this name joined.
    pub(crate) async fn member(&self, kind: Kind, name: &str) -> Decision<Option<Patterns>> {
        let key = (kind, name.to_owned());
        let joins = match self.members.get(&key, self.db.is_shared()) {
            Ok(patterns) => return Ok(Some(patterns)),
            Err(joins) => joins,
        };
        let asked = Instant::now();
        let found: Option<Patterns> = self.db.member(kind.as_str(), name).await?.map(Into::into);
        if let Some(patterns) = &found {
            self.members.put(key, joins, (asked, patterns.clone()));
        }
        Ok(found)
    }
}
