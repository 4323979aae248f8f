//! One broker: topics, the groups that read them, and what waits for each.
//!
//! A group's messages are delivered one after the other, in their order. One that is to be delivered
//! again waits for its time beside the others and does not hold them up. A publish is taken by all
//! groups or by none: what was acknowledged is lost only with the agent, or after the last attempt.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};
use weft_components_api::{Message, MessageHandler, Outcome, PubSubError};

/// What waits for one group.
const MAX_MESSAGES: usize = 10_000;
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Groups of one broker, over all topics.
const MAX_GROUPS: usize = 10_000;
/// The pause before a message is delivered again doubles from the first to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Attempts at delivering a message; then it is dropped, and the log says so.
const MAX_ATTEMPTS: u32 = 20;

/// See the module.
#[derive(Default)]
pub struct Broker {
    topics: Mutex<HashMap<String, BTreeMap<String, Arc<Group>>>>,
}

struct Group {
    waiting: Mutex<Waiting>,
    more: Notify,
    /// Only changed under the topics' lock.
    readers: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Queued>,
    later: BTreeMap<(Instant, u64), Queued>,
    next: u64,
    bytes: usize,
}

#[derive(Clone)]
struct Queued {
    message: Message,
    attempts: u32,
}

fn size(message: &Message) -> usize {
    let metadata: usize = message.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    message.data.len() + message.topic.len() + metadata
}

impl Waiting {
    fn has_room(&self, bytes: usize) -> bool {
        self.queue.len() + self.later.len() < MAX_MESSAGES && self.bytes + bytes <= MAX_BYTES
    }

    fn push(&mut self, message: Message) {
        self.bytes += size(&message);
        self.queue.push_back(Queued { message, attempts: 0 });
    }

    /// The next that is due; else until when to wait for one that was put off.
    fn take(&mut self, now: Instant) -> Result<Queued, Option<Instant>> {
        if let Some(first) = self.later.first_entry()
            && first.key().0 <= now
        {
            return Ok(first.remove());
        }
        let due = self.later.keys().next().map(|(at, _)| *at);
        self.queue.pop_front().ok_or(due)
    }

    fn again(&mut self, queued: Queued, at: Instant) {
        self.next += 1;
        self.later.insert((at, self.next), queued);
    }
}

impl Broker {
    /// To all groups of its topic, or to none.
    pub fn publish(&self, message: Message) -> Result<(), PubSubError> {
        let topics = self.topics.lock();
        let Some(groups) = topics.get(&message.topic) else {
            return Ok(());
        };
        let bytes = size(&message);
        for (name, group) in groups {
            // Only publishers add, and they hold the topics' lock: what has room now keeps it.
            if !group.waiting.lock().has_room(bytes) {
                return Err(PubSubError::Full(format!(
                    "subscriber {name} of topic {} is behind by {MAX_MESSAGES} messages or {MAX_BYTES} bytes",
                    message.topic
                )));
            }
        }
        for group in groups.values() {
            group.waiting.lock().push(message.clone());
            group.more.notify_one();
        }
        Ok(())
    }

    /// Another reader of a group; the group ends with its last one.
    pub fn subscribe(
        self: &Arc<Self>,
        topic: String,
        group: String,
        handler: Arc<dyn MessageHandler>,
    ) -> Result<Reader, PubSubError> {
        let shared = {
            let mut topics = self.topics.lock();
            let known = topics.values().map(BTreeMap::len).sum::<usize>();
            let groups = topics.entry(topic.clone()).or_default();
            if known >= MAX_GROUPS && !groups.contains_key(&group) {
                return Err(PubSubError::Full(format!(
                    "the broker has {MAX_GROUPS} subscriptions already"
                )));
            }
            let new = || {
                Arc::new(Group {
                    waiting: Mutex::default(),
                    more: Notify::new(),
                    readers: AtomicUsize::new(0),
                })
            };
            let group = groups.entry(group.clone()).or_insert_with(new).clone();
            group.readers.fetch_add(1, Ordering::Relaxed);
            group
        };
        let reading = tokio::spawn(read(shared.clone(), handler)).abort_handle();
        Ok(Reader {
            broker: Arc::downgrade(self),
            topic,
            name: group,
            group: shared,
            reading,
        })
    }
}

/// One reader of a group; ends when it is dropped.
pub struct Reader {
    broker: Weak<Broker>,
    topic: String,
    name: String,
    group: Arc<Group>,
    reading: AbortHandle,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reading.abort();
        let Some(broker) = self.broker.upgrade() else {
            return;
        };
        let mut topics = broker.topics.lock();
        if self.group.readers.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if let Some(groups) = topics.get_mut(&self.topic) {
            groups.remove(&self.name);
            if groups.is_empty() {
                topics.remove(&self.topic);
            }
        }
    }
}

/// A message in the hands of a reader. Dropped without an answer, it is the next again.
struct Taken {
    group: Arc<Group>,
    queued: Option<Queued>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(queued) = self.queued.take() {
            self.group.waiting.lock().queue.push_front(queued);
            self.group.more.notify_one();
        }
    }
}

impl Taken {
    /// The answer is here.
    fn settle(mut self, outcome: Outcome) {
        let Some(mut queued) = self.queued.take() else {
            return;
        };
        let mut waiting = self.group.waiting.lock();
        let topic = &queued.message.topic;
        match outcome {
            Outcome::Retry(why) if queued.attempts + 1 < MAX_ATTEMPTS => {
                tracing::debug!(topic, why, "a message is delivered again later");
                let pause = FIRST_PAUSE.saturating_mul(1 << queued.attempts.min(16));
                queued.attempts += 1;
                waiting.again(queued, Instant::now() + pause.min(LONGEST_PAUSE));
                return;
            }
            Outcome::Retry(why) => {
                tracing::warn!(topic, attempts = MAX_ATTEMPTS, why, "a message is given up");
            }
            Outcome::Done => {}
        }
        waiting.bytes -= size(&queued.message);
    }
}

async fn read(group: Arc<Group>, handler: Arc<dyn MessageHandler>) {
    loop {
        let next = group.waiting.lock().take(Instant::now());
        let queued = match next {
            Ok(queued) => queued,
            Err(Some(due)) => {
                tokio::select! {
                    () = group.more.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                }
                continue;
            }
            Err(None) => {
                group.more.notified().await;
                continue;
            }
        };
        let message = queued.message.clone();
        let taken = Taken {
            group: group.clone(),
            queued: Some(queued),
        };
        let outcome = handler.handle(message).await;
        taken.settle(outcome);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures::{FutureExt, future::BoxFuture};
    use tokio::sync::mpsc;

    /// Answers what it is told to, and tells what it got.
    struct Scripted {
        answers: Mutex<VecDeque<Outcome>>,
        got: mpsc::UnboundedSender<Message>,
    }

    impl MessageHandler for Scripted {
        fn handle(&self, message: Message) -> BoxFuture<'_, Outcome> {
            self.got.send(message).unwrap();
            let answer = self.answers.lock().pop_front();
            async move { answer.unwrap_or(Outcome::Done) }.boxed()
        }
    }

    fn message(data: &str) -> Message {
        Message {
            topic: "orders".into(),
            data: data.to_owned().into(),
            metadata: Vec::new(),
        }
    }

    fn reader(
        broker: &Arc<Broker>,
        group: &str,
        answers: Vec<Outcome>,
    ) -> (Reader, mpsc::UnboundedReceiver<Message>) {
        let (got, receiver) = mpsc::unbounded_channel();
        let handler = Scripted {
            answers: Mutex::new(answers.into()),
            got,
        };
        let reader = broker.subscribe("orders".into(), group.into(), Arc::new(handler));
        (reader.unwrap(), receiver)
    }

    async fn next(receiver: &mut mpsc::UnboundedReceiver<Message>) -> String {
        let data = receiver.recv().await.unwrap().data;
        String::from_utf8(data.to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_come_again_does_not_hold_up_the_rest() {
        let broker = Arc::new(Broker::default());
        let (_reader, mut got) = reader(&broker, "a", vec![Outcome::Retry("busy".into())]);
        for data in ["one", "two", "three"] {
            broker.publish(message(data)).unwrap();
        }
        for data in ["one", "two", "three", "one"] {
            assert_eq!(next(&mut got).await, data);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_nobody_wants_is_given_up_at_last() {
        let broker = Arc::new(Broker::default());
        let never = vec![Outcome::Retry("no".into()); 1000];
        let (reader, mut got) = reader(&broker, "a", never);
        broker.publish(message("one")).unwrap();
        for _ in 0..MAX_ATTEMPTS {
            assert_eq!(next(&mut got).await, "one");
        }
        tokio::time::sleep(LONGEST_PAUSE * 10).await;
        assert!(got.try_recv().is_err());
        assert_eq!(reader.group.waiting.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_group_that_is_behind_keeps_a_publish_from_all() {
        struct Never;
        impl MessageHandler for Never {
            fn handle(&self, _: Message) -> BoxFuture<'_, Outcome> {
                std::future::pending().boxed()
            }
        }
        let broker = Arc::new(Broker::default());
        let stuck = broker
            .subscribe("orders".into(), "stuck".into(), Arc::new(Never))
            .unwrap();
        let (_reader, mut got) = reader(&broker, "well", Vec::new());
        let mut taken = 0;
        while broker.publish(message("x")).is_ok() {
            taken += 1;
            assert!(taken <= MAX_MESSAGES + 1);
            tokio::task::yield_now().await;
        }
        assert!(taken >= MAX_MESSAGES);
        for _ in 0..taken {
            next(&mut got).await;
        }
        let refused = broker.publish(message("x")).unwrap_err();
        assert!(refused.to_string().contains("subscriber stuck"), "{refused}");
        assert!(got.try_recv().is_err(), "taken by all or by none");
        // Its twin: without the one that is behind, the same is taken.
        drop(stuck);
        broker.publish(message("y")).unwrap();
        assert_eq!(next(&mut got).await, "y");
    }

    #[tokio::test]
    async fn what_a_reader_held_when_it_went_is_read_by_another() {
        struct Stuck(Arc<Notify>);
        impl MessageHandler for Stuck {
            fn handle(&self, _: Message) -> BoxFuture<'_, Outcome> {
                self.0.notify_one();
                std::future::pending().boxed()
            }
        }
        let broker = Arc::new(Broker::default());
        let held = Arc::new(Notify::new());
        let stuck = Arc::new(Stuck(held.clone()));
        let first = broker.subscribe("orders".into(), "a".into(), stuck).unwrap();
        broker.publish(message("one")).unwrap();
        held.notified().await;
        let (_second, mut got) = reader(&broker, "a", Vec::new());
        drop(first);
        assert_eq!(next(&mut got).await, "one");
    }

    #[tokio::test]
    async fn topics_and_groups_end_with_their_last_reader() {
        let broker = Arc::new(Broker::default());
        let (one, _) = reader(&broker, "a", Vec::new());
        let (two, _) = reader(&broker, "a", Vec::new());
        drop(one);
        assert_eq!(broker.topics.lock().len(), 1);
        drop(two);
        assert!(broker.topics.lock().is_empty());
        // Published to nobody: taken, as a broker does.
        assert_eq!(broker.publish(message("one")), Ok(()));
    }
}
