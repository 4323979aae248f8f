//! Brokers.

use crate::{SOON, Shown};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tokio::{sync::mpsc, time::timeout};
use weft_components_api::{Message, MessageHandler, Outcome, PubSub, Subscribe};

struct Taker {
    got: mpsc::UnboundedSender<Message>,
    /// Messages that it does not take the first time.
    not_yet: Mutex<BTreeSet<Vec<u8>>>,
}

impl MessageHandler for Taker {
    fn handle(&self, message: Message) -> BoxFuture<'_, Outcome> {
        let again = self.not_yet.lock().remove(message.data.as_ref());
        let _ = self.got.send(message);
        async move {
            match again {
                true => Outcome::Retry("not yet".into()),
                false => Outcome::Done,
            }
        }
        .boxed()
    }
}

fn message(topic: &str, data: &str) -> Message {
    Message {
        topic: topic.into(),
        data: data.to_owned().into(),
        metadata: vec![("a".into(), "b".into())],
    }
}

async fn subscribe(
    broker: &dyn PubSub,
    group: &str,
    topic: &str,
    not_yet: &[&str],
) -> (
    weft_components_api::Subscription,
    mpsc::UnboundedReceiver<Message>,
) {
    let (got, receiver) = mpsc::unbounded_channel();
    let not_yet = not_yet.iter().map(|data| data.as_bytes().to_vec()).collect();
    let taker = Taker {
        got,
        not_yet: Mutex::new(not_yet),
    };
    let request = Subscribe {
        topic: topic.into(),
        group: group.into(),
        metadata: Vec::new(),
    };
    (
        broker.subscribe(request, Arc::new(taker)).await.unwrap(),
        receiver,
    )
}

async fn next(receiver: &mut mpsc::UnboundedReceiver<Message>) -> Message {
    timeout(SOON, receiver.recv()).await.expect("no message").unwrap()
}

async fn texts(receiver: &mut mpsc::UnboundedReceiver<Message>, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(String::from_utf8(next(receiver).await.data.to_vec()).unwrap());
    }
    texts
}

/// All of it; `open` makes another app's client of one broker.
pub async fn conforms<F: Future<Output = Arc<dyn PubSub>>>(open: impl Fn(&'static str) -> F) -> Shown {
    let (publisher, viewer, other) = (open("publisher").await, open("viewer").await, open("other").await);

    // Each group gets all of its topic, and nothing of another.
    let (viewing, mut seen) = subscribe(&*viewer, "viewer", "orders", &[]).await;
    let (_others, mut seen_by_other) = subscribe(&*other, "other", "orders", &[]).await;
    let (_elsewhere, mut elsewhere) = subscribe(&*viewer, "viewer", "bills", &[]).await;
    for i in 0..50 {
        publisher
            .publish(message("orders", &i.to_string()))
            .await
            .unwrap();
    }
    let wanted: BTreeSet<String> = (0..50).map(|i| i.to_string()).collect();
    assert_eq!(
        texts(&mut seen, 50).await.into_iter().collect::<BTreeSet<_>>(),
        wanted
    );
    assert_eq!(
        texts(&mut seen_by_other, 50)
            .await
            .into_iter()
            .collect::<BTreeSet<_>>(),
        wanted
    );

    // Topic, content and what is beside it arrive as they were.
    let bulk = vec![message("bills", "first"), message("bills", "second")];
    assert!(publisher.bulk_publish(bulk).await.iter().all(Result::is_ok));
    let first = next(&mut elsewhere).await;
    assert_eq!(
        (first.topic.as_str(), first.data.as_ref()),
        ("bills", b"first".as_ref())
    );
    assert!(first.metadata.contains(&("a".into(), "b".into())));
    assert_eq!(texts(&mut elsewhere, 1).await, ["second"]);
    assert!(elsewhere.try_recv().is_err() && seen.try_recv().is_err());

    // What is not taken comes again; what is taken does not.
    let (_retries, mut retried) = subscribe(&*viewer, "viewer", "again", &["one"]).await;
    publisher.publish(message("again", "one")).await.unwrap();
    assert_eq!(texts(&mut retried, 2).await, ["one", "one"]);
    publisher.publish(message("again", "two")).await.unwrap();
    assert_eq!(texts(&mut retried, 1).await, ["two"]);

    // Two readers of one group share its messages.
    let (_one, mut one) = subscribe(&*viewer, "team", "work", &[]).await;
    let (_two, mut two) = subscribe(&*other, "team", "work", &[]).await;
    for i in 0..20 {
        publisher.publish(message("work", &i.to_string())).await.unwrap();
    }
    let mut all = BTreeSet::new();
    for _ in 0..20 {
        let got = timeout(SOON, async {
            tokio::select! {
                Some(message) = one.recv() => message,
                Some(message) = two.recv() => message,
            }
        });
        assert!(all.insert(got.await.expect("no message").data), "twice");
    }

    // A subscription ends when it is dropped; others go on.
    drop(viewing);
    publisher.publish(message("orders", "late")).await.unwrap();
    assert_eq!(texts(&mut seen_by_other, 1).await, ["late"]);
    assert!(seen.try_recv().is_err());
    vec![
        "each group gets all",
        "order",
        "bulk",
        "delivered again",
        "a group shares",
        "unsubscribe",
    ]
}
