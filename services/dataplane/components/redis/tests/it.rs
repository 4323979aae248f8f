//! Against a Redis of its own: everything that drivers of their blocks must do, and what becomes of it
//! when the server or the agent goes away.

#![allow(clippy::unwrap_used)]

use futures::{FutureExt, future::BoxFuture};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use weft_components_api::{
    Component, Driver, GetRequest, Message, MessageHandler, Outcome, PubSub, SetRequest, StateStore,
    Subscribe,
};
use weft_components_conformance::{
    configuration, instance, lock, pubsub,
    server::{Redis, Server},
    state, table,
};
use weft_components_redis::{RedisConfiguration, RedisLock, RedisPubSub, RedisState};

const SOON: Duration = Duration::from_secs(20);

async fn open(driver: &dyn Driver, server: &Redis, more: &[(&str, &str)]) -> Component {
    let host = format!("127.0.0.1:{}", server.port());
    let metadata = [&[("redisHost", host.as_str())][..], more].concat();
    driver.open(instance("redis", &metadata)).await.unwrap()
}

async fn store(server: &Redis, more: &[(&str, &str)]) -> Arc<dyn StateStore> {
    match open(&RedisState, server, more).await {
        Component::State(store) => store,
        other => panic!("{other:?}"),
    }
}

async fn broker(server: &Redis) -> Arc<dyn PubSub> {
    let quick = [("processingTimeout", "300"), ("redeliverInterval", "100")];
    match open(&RedisPubSub, server, &quick).await {
        Component::PubSub(broker) => broker,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn state_conforms() {
    let mut server = Redis::start().await;
    let databases = AtomicUsize::new(0);
    let mut shown = state::conforms(async || {
        let database = databases.fetch_add(1, Ordering::Relaxed).to_string();
        store(&server, &[("redisDB", &database)]).await
    })
    .await;
    let one = store(&server, &[]).await;
    shown.extend(state::outlives(&*one, &mut server).await);
    table::told("state.redis", &shown);
}

#[tokio::test]
async fn pubsub_conforms() {
    let server = Redis::start().await;
    let shown = pubsub::conforms(|_| broker(&server)).await;
    table::told("pubsub.redis", &shown);
}

#[tokio::test]
async fn lock_conforms() {
    let server = Redis::start().await;
    let shown = lock::conforms(async || match open(&RedisLock, &server, &[]).await {
        Component::Lock(store) => store,
        other => panic!("{other:?}"),
    })
    .await;
    table::told("lock.redis", &shown);
}

#[tokio::test]
async fn configuration_conforms() {
    let server = Redis::start().await;
    let shown = configuration::conforms(async |items| {
        let mut client = server.client().await;
        let known: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut client)
            .await
            .unwrap();
        for key in known.iter().filter(|key| !items.contains_key(key.as_str())) {
            let _: () = redis::cmd("DEL").arg(key).query_async(&mut client).await.unwrap();
        }
        for (key, (value, version)) in items {
            let text = match version {
                "" => value.to_owned(),
                version => format!("{value}||{version}"),
            };
            let _: () = redis::cmd("SET")
                .arg(key)
                .arg(text)
                .query_async(&mut client)
                .await
                .unwrap();
        }
        match open(&RedisConfiguration, &server, &[]).await {
            Component::Configuration(store) => store,
            other => panic!("{other:?}"),
        }
    })
    .await;
    table::told("configuration.redis", &shown);
}

fn set(key: &str, value: &str) -> SetRequest {
    SetRequest {
        key: key.into(),
        value: value.to_owned().into(),
        ..SetRequest::default()
    }
}

async fn get(store: &dyn StateStore, key: &str) -> Option<String> {
    let request = GetRequest {
        key: key.into(),
        ..GetRequest::default()
    };
    let item = store.get(request).await.unwrap()?;
    Some(String::from_utf8(item.value.to_vec()).unwrap())
}

#[tokio::test]
async fn values_have_daprs_form() {
    let server = Redis::start().await;
    let store = store(&server, &[("ttlInSeconds", "600")]).await;
    store.set(set("cart||a", "{\"n\":1}")).await.unwrap();
    let mut client = server.client().await;
    let fields: std::collections::BTreeMap<String, String> = redis::cmd("HGETALL")
        .arg("cart||a")
        .query_async(&mut client)
        .await
        .unwrap();
    let wanted = [
        ("data".to_owned(), "{\"n\":1}".to_owned()),
        ("version".to_owned(), "1".to_owned()),
    ];
    assert_eq!(fields, wanted.into());
    let left: i64 = redis::cmd("TTL")
        .arg("cart||a")
        .query_async(&mut client)
        .await
        .unwrap();
    assert!((590..=600).contains(&left), "{left}");
    // What daprd wrote is read, and what somebody wrote as a plain text, which a write makes a value.
    let write: [&str; 6] = ["cart||b", "data", "two", "version", "7", "first-write"];
    let _: () = redis::cmd("HSET")
        .arg(&write[..])
        .arg(0)
        .query_async(&mut client)
        .await
        .unwrap();
    assert_eq!(get(&*store, "cart||b").await.as_deref(), Some("two"));
    let _: () = redis::cmd("SET")
        .arg("old")
        .arg("text")
        .query_async(&mut client)
        .await
        .unwrap();
    assert_eq!(get(&*store, "old").await.as_deref(), Some("text"));
    store.set(set("old", "new")).await.unwrap();
    assert_eq!(get(&*store, "old").await.as_deref(), Some("new"));
    let wrong = SetRequest {
        etag: Some("no number".into()),
        ..set("old", "x")
    };
    let error = store.set(wrong).await.unwrap_err();
    assert!(
        matches!(error, weft_components_api::StateError::EtagInvalid(_)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let server = Redis::start_with(&["--requirepass", "s3cret"]).await;
    let host = format!("127.0.0.1:{}", server.port());
    let without = RedisState
        .open(instance("redis", &[("redisHost", &host)]))
        .await
        .unwrap_err();
    assert!(without.to_string().contains("NOAUTH"), "{without}");
    let store = store(&server, &[("redisPassword", "s3cret")]).await;
    assert_eq!(get(&*store, "a").await, None);
}

#[tokio::test]
async fn a_broker_that_is_away_is_an_error_and_one_that_is_back_goes_on() {
    let mut server = Redis::start().await;
    let broker = broker(&server).await;
    let (_subscription, mut got) = subscribe(&*broker, Answers::Done).await;
    publish(&*broker, "before").await;
    assert_eq!(next(&mut got).await, "before");
    server.stop().await;
    let message = Message {
        topic: "orders".into(),
        data: "lost".into(),
        metadata: Vec::new(),
    };
    let error = broker.publish(message.clone()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("redis streams: error from publish: "),
        "{error}"
    );
    server.again().await;
    let back = async {
        while broker.publish(message.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, back).await.expect("it does not come back");
    // What was taken just before may come again: its acknowledgement went with the server.
    let mut came = next(&mut got).await;
    while came == "before" {
        came = next(&mut got).await;
    }
    assert_eq!(came, "lost");
}

#[derive(Clone, Copy)]
enum Answers {
    Done,
    /// The agent goes before the app has answered.
    Never,
}

struct App(mpsc::UnboundedSender<String>, Answers);

impl MessageHandler for App {
    fn handle(&self, message: Message) -> BoxFuture<'_, Outcome> {
        let _ = self.0.send(String::from_utf8(message.data.to_vec()).unwrap());
        match self.1 {
            Answers::Done => std::future::ready(Outcome::Done).boxed(),
            Answers::Never => std::future::pending().boxed(),
        }
    }
}

async fn subscribe(
    broker: &dyn PubSub,
    answers: Answers,
) -> (weft_components_api::Subscription, mpsc::UnboundedReceiver<String>) {
    let (sender, got) = mpsc::unbounded_channel();
    let request = Subscribe {
        topic: "orders".into(),
        group: "viewer".into(),
        metadata: Vec::new(),
    };
    (
        broker
            .subscribe(request, Arc::new(App(sender, answers)))
            .await
            .unwrap(),
        got,
    )
}

async fn publish(broker: &dyn PubSub, text: &str) {
    let message = Message {
        topic: "orders".into(),
        data: text.to_owned().into(),
        metadata: Vec::new(),
    };
    broker.publish(message).await.unwrap();
}

async fn next(got: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(SOON, got.recv()).await.expect("no message").unwrap()
}

#[tokio::test]
async fn nothing_is_lost_when_an_agent_goes_and_another_comes() {
    let server = Redis::start().await;
    let first = broker(&server).await;
    let (subscription, mut got) = subscribe(&*first, Answers::Never).await;
    publish(&*first, "held").await;
    assert_eq!(next(&mut got).await, "held");
    drop((subscription, first));
    // While nobody is there.
    let publisher = broker(&server).await;
    publish(&*publisher, "meanwhile").await;
    let second = broker(&server).await;
    let (_subscription, mut got) = subscribe(&*second, Answers::Done).await;
    let mut all = [next(&mut got).await, next(&mut got).await];
    all.sort_unstable();
    assert_eq!(all, ["held", "meanwhile"]);
    // What was taken does not come again.
    publish(&*publisher, "last").await;
    assert_eq!(next(&mut got).await, "last");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(got.try_recv().is_err());
}
