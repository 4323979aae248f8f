//! A bound on what one place in the code may log: others, who are not to be trusted, often decide
//! how often it is reached (a refused call, a connection of nobody), and a log must not fill a disk.
//!
//! Owns a bucket per place. What was left out is counted and told every [`TELL`]. Records below
//! `info` are not bounded: whoever turns those on wants to see all of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::layer::{Context, Filter};

/// Records that one place may write at once.
const BURST: u32 = 500;
/// After that, one in this time.
const REFILL: Duration = Duration::from_millis(200);
/// How often it is told what was left out.
pub(crate) const TELL: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Bucket {
    metadata: &'static Metadata<'static>,
    room: u32,
    refilled: Instant,
    left_out: u64,
}

/// The filter. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limit(Arc<Mutex<HashMap<Identifier, Bucket>>>);

impl Limit {
    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO {
            return true;
        }
        // As many buckets as there are places in the code.
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(metadata.callsite()).or_insert(Bucket {
            metadata,
            room: BURST,
            refilled: now,
            left_out: 0,
        });
        let periods = now.saturating_duration_since(bucket.refilled).as_nanos() / REFILL.as_nanos();
        if let Some(more) = u32::try_from(periods).ok().filter(|more| *more < BURST) {
            bucket.room = bucket.room.saturating_add(more).min(BURST);
            bucket.refilled += REFILL * more;
        } else {
            (bucket.room, bucket.refilled) = (BURST, now);
        }
        let admitted = bucket.room > 0;
        bucket.room = bucket.room.saturating_sub(1);
        bucket.left_out += u64::from(!admitted);
        admitted
    }

    /// What was left out since it was asked last: the place and how many.
    fn left_out(&self) -> Vec<(String, u64)> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = buckets.values_mut().filter(|b| b.left_out > 0);
        left_out
            .map(|b| {
                let (file, line) = (b.metadata.file(), b.metadata.line().unwrap_or_default());
                let place = format!("{}:{line}", file.unwrap_or(b.metadata.target()));
                (place, std::mem::take(&mut b.left_out))
            })
            .collect()
    }

    /// Writes a record for each place that was cut short.
    pub(crate) fn tell(&self) {
        for (place, records) in self.left_out() {
            tracing::warn!(
                place,
                records,
                "log records were left out: too many from one place"
            );
        }
    }
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tracing_subscriber::{EnvFilter, Layer, filter::FilterExt, layer::SubscriberExt};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_from_one_place_is_cut_and_told_and_others_go_on() {
        let (written, limit) = (Written::default(), Limit::default());
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let filter = EnvFilter::builder().parse("debug").unwrap().and(limit.clone());
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        let flood = 10 * BURST;
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..flood {
                tracing::warn!(n, "refused-by-us");
                tracing::debug!(n, "asked-for");
            }
            tracing::warn!("neighbour");
            limit.tell();
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|l| l.contains(what)).count();
        // The flood itself takes some time, in which some more are let through.
        assert!(
            count("refused-by-us") >= BURST as usize,
            "{}",
            count("refused-by-us")
        );
        assert!(
            count("refused-by-us") < 2 * BURST as usize,
            "{}",
            count("refused-by-us")
        );
        assert_eq!(count("asked-for"), flood as usize);
        assert_eq!(count("neighbour"), 1);
        let told = flood as usize - count("refused-by-us");
        assert!(text.contains(&format!("records={told}")), "not told: {told}");
        assert!(limit.left_out().is_empty());
    }

    #[test]
    fn room_comes_back_with_time() {
        let limit = Limit::default();
        // The metadata of a real place.
        let callsite = tracing::callsite!(name: "place", kind: tracing::metadata::Kind::EVENT, level: Level::WARN, fields: );
        let place = tracing::callsite::Callsite::metadata(callsite);
        let start = Instant::now();
        let admitted = |at: Instant| (0..2 * BURST).filter(|_| limit.admits(place, at)).count();
        assert_eq!(admitted(start), BURST as usize);
        assert_eq!(admitted(start + REFILL * 3), 3);
        assert_eq!(admitted(start + REFILL * BURST * 3), BURST as usize);
    }
}
