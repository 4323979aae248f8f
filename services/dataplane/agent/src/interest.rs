//! Namespaces that this node hosts nothing in and yet needs to know: one of its workloads called an
//! app of theirs, or was called by one.
//!
//! Owns the set and its bounds. The first call to such a namespace finds nobody; the policy service
//! is asked, and a later one finds who is there. An app that makes up names takes its own share: a
//! name where nobody was found gives way after a while, and each asker has only so many of them.

use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use weft_model::check_dns_label;

/// All there may be.
const MAX_NAMESPACES: usize = 64;
/// Of these, asked for by one workload or node and without anybody in them.
const MAX_EMPTY_PER_ASKER: usize = 4;
/// The policy service has this long to say who is in a namespace, before another may take its place.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Wanted {
    by: Box<str>,
    since: Instant,
}

/// The set. Clones share.
#[derive(Debug, Clone)]
pub struct Interest {
    wanted: Arc<Mutex<BTreeMap<String, Wanted>>>,
    changed: watch::Sender<()>,
}

impl Default for Interest {
    fn default() -> Self {
        Self {
            wanted: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Interest {
    /// Adds a namespace that `by` asked for, unless it is none or a bound is reached. `is_known`
    /// says of others whether anybody is there; it must not come back here.
    pub fn add(&self, namespace: &str, by: &str, is_known: impl Fn(&str) -> bool) {
        self.add_at(namespace, by, is_known, Instant::now());
    }

    fn add_at(&self, namespace: &str, by: &str, is_known: impl Fn(&str) -> bool, now: Instant) {
        let mut wanted = self.wanted.lock();
        if wanted.contains_key(namespace) || check_dns_label(namespace).is_err() {
            return;
        }
        let empty_of_asker = wanted
            .iter()
            .filter(|(name, w)| *w.by == *by && !is_known(name))
            .count();
        let over_share = empty_of_asker >= MAX_EMPTY_PER_ASKER;
        if over_share || wanted.len() >= MAX_NAMESPACES {
            let may_go = |name: &str, w: &Wanted| {
                (!over_share || *w.by == *by)
                    && now.saturating_duration_since(w.since) >= ANSWER_WITHIN
                    && !is_known(name)
            };
            let gone = wanted
                .iter()
                .filter(|(name, w)| may_go(name, w))
                .min_by_key(|(_, w)| w.since)
                .map(|(name, _)| name.clone());
            match gone {
                Some(name) => wanted.remove(&name),
                None => return,
            };
        }
        let (by, since) = (by.into(), now);
        wanted.insert(namespace.to_owned(), Wanted { by, since });
        self.changed.send_replace(());
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.wanted.lock().keys().cloned().collect()
    }

    /// Notified after each that is added.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_up_names_keeps_nobody_else_from_asking() {
        let (interest, now) = (Interest::default(), Instant::now());
        let known = |name: &str| name == "billing";
        interest.add_at("Not A Namespace", "liar", known, now);
        assert!(interest.all().is_empty());
        interest.add_at("billing", "liar", known, now);
        for n in 0..1000 {
            interest.add_at(&format!("made-up-{n}"), "liar", known, now);
        }
        // What was found counts for nobody's share.
        assert_eq!(interest.all().len(), 1 + MAX_EMPTY_PER_ASKER);
        interest.add_at("real", "shop", known, now);
        assert!(interest.all().contains(&"real".to_owned()));
        // A name gives way to another of the same asker only once it had its time.
        interest.add_at("late", "liar", known, now);
        assert!(!interest.all().contains(&"late".to_owned()));
        let later = now + ANSWER_WITHIN;
        interest.add_at("late", "liar", known, later);
        let all = interest.all();
        assert!(all.contains(&"late".to_owned()) && !all.contains(&"made-up-0".to_owned()));
        assert!(all.contains(&"billing".to_owned()) && all.contains(&"real".to_owned()));
    }

    #[test]
    fn many_askers_reach_a_bound_and_found_names_stay() {
        let (interest, now) = (Interest::default(), Instant::now());
        for n in 0..2 * MAX_NAMESPACES {
            interest.add_at(&format!("ns-{n}"), &format!("app-{n}"), |_| true, now);
        }
        assert_eq!(interest.all().len(), MAX_NAMESPACES);
        let later = now + ANSWER_WITHIN;
        // All are in use: none gives way, and none is lost.
        interest.add_at("one-more", "shop", |_| true, later);
        assert!(!interest.all().contains(&"one-more".to_owned()));
        // One where nobody was found does.
        interest.add_at("one-more", "shop", |name| name != "ns-7", later);
        assert!(interest.all().contains(&"one-more".to_owned()));
        assert!(!interest.all().contains(&"ns-7".to_owned()));
    }
}
