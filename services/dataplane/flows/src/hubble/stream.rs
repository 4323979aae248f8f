//! The order in which a request is answered: where in the log it begins, what it takes, where it ends.

use super::{FilterError, Filters, Mask, MaskError, Observer};
use crate::{FlowLog, Item, Reader, Recorded, Seen};
use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};
use weft_proto::hubble::{
    flow::{Flow, LostEvent, LostEventSource},
    observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes},
};

/// Records that are looked at before others get their turn.
const BATCH: usize = 128;
/// The time over which a rate is told.
const MINUTE: Duration = Duration::from_secs(60);

/// Why a request can not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// Two that exclude each other.
    #[error("first cannot be specified with follow")]
    FirstAndFollow,
    /// Not a time.
    #[error("{0} is no time")]
    Time(&'static str),
    /// Its filters.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Its field mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
}

/// What is asked for.
#[derive(Debug)]
pub struct Query {
    filters: Filters,
    mask: Option<Mask>,
    number: u64,
    first: bool,
    follow: bool,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl Query {
    /// As a client sent it.
    pub fn new(request: &GetFlowsRequest) -> Result<Self, QueryError> {
        if request.first && request.follow {
            return Err(QueryError::FirstAndFollow);
        }
        let paths = |mask: &Option<prost_types::FieldMask>| {
            mask.as_ref().map(|m| m.paths.clone()).unwrap_or_default()
        };
        let mut mask = paths(&request.field_mask);
        if mask.is_empty() {
            mask = request
                .experimental
                .as_ref()
                .map(|e| paths(&e.field_mask))
                .unwrap_or_default();
        }
        Ok(Self {
            filters: Filters::new(&request.whitelist, &request.blacklist)?,
            mask: Mask::new(&mask)?,
            number: request.number,
            first: request.first,
            follow: request.follow,
            since: time("since", request.since)?,
            until: time("until", request.until)?,
        })
    }

    fn wants(&self, flow: &Flow) -> bool {
        let time = flow.time.and_then(|t| SystemTime::try_from(t).ok());
        let within = |time: SystemTime| {
            self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
        };
        time.is_none_or(within) && self.filters.pass(flow)
    }

    fn is_over(&self, flow: &Flow) -> bool {
        let time = flow.time.and_then(|t| SystemTime::try_from(t).ok());
        matches!((time, self.until), (Some(time), Some(until)) if time > until)
    }
}

/// A time of a request: protobuf's go from year 1 to year 9999.
fn time(name: &'static str, stamp: Option<prost_types::Timestamp>) -> Result<Option<SystemTime>, QueryError> {
    const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    let Some(stamp) = stamp else { return Ok(None) };
    let fits = SECONDS.contains(&stamp.seconds) && (0..1_000_000_000).contains(&stamp.nanos);
    match SystemTime::try_from(stamp) {
        Ok(time) if fits => Ok(Some(time)),
        _ => Err(QueryError::Time(name)),
    }
}

/// One answer. It holds what of one record was not sent yet, and nothing more: it reads the log as
/// fast as it is asked, and when the log has overtaken it, it says so.
#[derive(Debug)]
pub struct Stream {
    query: Query,
    observer: Observer,
    reader: Reader,
    /// Where it ends; `None` while it follows.
    end: Option<u64>,
    /// So many are still to be sent.
    left: Option<u64>,
    /// Events of the first record that come before what was asked for.
    skip: usize,
    ready: VecDeque<Flow>,
    is_over: bool,
}

impl Stream {
    /// Finds where it begins. Looks at each record at most once for that.
    pub async fn new(log: &FlowLog, observer: Observer, query: Query) -> Self {
        let end = log.recorded();
        let oldest = end.saturating_sub(log.capacity());
        let (start, skip) = if query.since.is_some() || query.first {
            (oldest, 0)
        } else if query.number > 0 {
            last(log, &observer, &query, oldest, end).await
        } else if query.follow {
            (end, 0)
        } else {
            (oldest, 0)
        };
        Self {
            left: (!query.follow && query.number > 0).then_some(query.number),
            end: (!query.follow).then_some(end),
            reader: log.reader(start),
            query,
            observer,
            skip,
            ready: VecDeque::new(),
            is_over: false,
        }
    }

    /// The next message; `None` at the end. Cancellation-safe.
    pub async fn next(&mut self) -> Option<GetFlowsResponse> {
        let mut looked = 0;
        loop {
            if let Some(flow) = self.ready.pop_front() {
                return Some(self.response(flow));
            }
            if self.is_over || self.left == Some(0) {
                return None;
            }
            looked += 1;
            if looked % BATCH == 0 {
                tokio::task::yield_now().await;
            }
            let item = match self.end {
                None => self.reader.next().await,
                Some(end) if self.reader.position() >= end => return None,
                // A writer that has the number and has not finished yet will in a moment.
                Some(_) => match self.reader.try_next() {
                    Some(item) => item,
                    None => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                },
            };
            match item {
                Item::Flow(recorded) => self.take(&recorded),
                Item::Overwritten(count) => {
                    return Some(self.lost(LostEventSource::HubbleRingBuffer, count));
                }
                Item::Unrecorded(count) => {
                    return Some(self.lost(LostEventSource::PerfEventRingBuffer, count));
                }
            }
        }
    }

    fn take(&mut self, recorded: &Recorded) {
        let skip = std::mem::take(&mut self.skip);
        for event in self.observer.events(recorded).into_iter().skip(skip) {
            if self.query.follow && self.query.is_over(&event) {
                self.is_over = true;
                return;
            }
            if self.left == Some(0) || !self.query.wants(&event) {
                continue;
            }
            self.left = self.left.map(|left| left - 1);
            self.ready.push_back(event);
        }
    }

    fn response(&self, flow: Flow) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: flow.node_name.clone(),
            time: flow.time,
            response_types: Some(ResponseTypes::Flow(match &self.query.mask {
                Some(mask) => mask.apply(&flow),
                None => flow,
            })),
        }
    }

    fn lost(&self, source: LostEventSource, count: u64) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: self.observer.node().to_owned(),
            time: Some(SystemTime::now().into()),
            response_types: Some(ResponseTypes::LostEvents(LostEvent {
                source: source.into(),
                num_events_lost: count,
                ..Default::default()
            })),
        }
    }
}

/// Where the last so many begin: the record, and how many of its events come before.
async fn last(log: &FlowLog, observer: &Observer, query: &Query, oldest: u64, end: u64) -> (u64, usize) {
    let mut found = 0;
    for (looked, sequence) in (oldest..end).rev().enumerate() {
        if looked % BATCH == BATCH - 1 {
            tokio::task::yield_now().await;
        }
        let recorded = match log.read(sequence) {
            Seen::Flow(recorded) => recorded,
            // What is further back is gone, too.
            Seen::Overwritten => return (sequence + 1, 0),
            Seen::NotYet => continue,
        };
        let events = observer.events(&recorded);
        for (part, event) in events.iter().enumerate().rev() {
            if query.wants(event) {
                found += 1;
                if found == query.number {
                    return (sequence, part);
                }
            }
        }
    }
    (oldest, 0)
}

/// Flows per second in the minute before `now`, as far as the log goes back.
pub fn flow_rate(log: &FlowLog, now: SystemTime) -> f64 {
    let end = log.recorded();
    let (mut count, mut begin) = (0u32, None);
    for sequence in (end.saturating_sub(log.capacity())..end).rev() {
        let Seen::Flow(recorded) = log.read(sequence) else {
            break;
        };
        let age = now.duration_since(recorded.flow.time).unwrap_or_default();
        if age > MINUTE {
            begin = Some(MINUTE);
            break;
        }
        count += 1;
        // The log is full: it tells of the time since its oldest.
        begin = (end > log.capacity()).then_some(age);
    }
    let over = begin.unwrap_or(MINUTE).as_secs_f64();
    if over > 0.0 { f64::from(count) / over } else { 0.0 }
}

/// For those who need one of their own.
impl Stream {
    /// Follows from now on what `filters` lets through, with `mask`.
    pub fn following(log: &FlowLog, observer: Observer, filters: Filters, mask: Option<Mask>) -> Self {
        let query = Query {
            filters,
            mask,
            number: 0,
            first: false,
            follow: true,
            since: None,
            until: None,
        };
        Self {
            left: None,
            end: None,
            reader: log.reader(log.recorded()),
            query,
            observer,
            skip: 0,
            ready: VecDeque::new(),
            is_over: false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "stream_tests.rs"]
mod tests;
