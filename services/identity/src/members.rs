//! Who joined and what each may host, as the database says: asked for with every certificate, so the
//! answers are kept for a while.

use crate::{
    attest::BY_KUBERNETES,
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

/// A member as it joined last.
#[derive(Debug, Clone)]
pub struct Member {
    /// What a node may host.
    pub may_host: Arc<[HostPattern]>,
    /// Whether Kubernetes speaks for it, and is asked what runs on it.
    pub by_kubernetes: bool,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Members {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    members: HashMap<(Kind, String), (Instant, Member)>,
    /// Rises with each join: an answer from before one is not kept.
    joins: u64,
}

impl Members {
    fn get(&self, key: &(Kind, String), shared: bool) -> Result<Member, u64> {
        let known = self.known.lock();
        match known.members.get(key) {
            Some((since, member)) if !shared || since.elapsed() < SHARED => Ok(member.clone()),
            _ => Err(known.joins),
        }
    }

    fn put(&self, key: (Kind, String), joins: u64, answer: (Instant, Member)) {
        let mut known = self.known.lock();
        if known.members.len() >= KEPT {
            known.members.clear();
        }
        if known.joins == joins {
            known.members.insert(key, answer);
        }
    }

    /// It joined anew; to be said when the database knows.
    pub fn forget(&self, kind: Kind, name: &str) {
        let mut known = self.known.lock();
        known.joins += 1;
        known.members.remove(&(kind, name.to_owned()));
    }
}

impl Core {
    /// A member; `None` when nobody of this name joined.
    pub(crate) async fn member(&self, kind: Kind, name: &str) -> Decision<Option<Member>> {
        let key = (kind, name.to_owned());
        let joins = match self.members.get(&key, self.db.is_shared()) {
            Ok(member) => return Ok(Some(member)),
            Err(joins) => joins,
        };
        let asked = Instant::now();
        // Rare, and large: every call would carry room for it.
        let found = Box::pin(self.db.member(kind.as_str(), name)).await?;
        let found = found.map(|(may_host, attested)| Member {
            may_host: may_host.into(),
            by_kubernetes: attested == BY_KUBERNETES,
        });
        if let Some(member) = &found {
            self.members.put(key, joins, (asked, member.clone()));
        }
        Ok(found)
    }
}
