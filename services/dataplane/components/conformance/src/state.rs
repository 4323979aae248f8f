//! State stores.

use crate::{SOON, Shown, server::Server};
use futures::future::join_all;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_components_api::{
    Concurrency, DeleteRequest, GetRequest, Item, Operation, SetRequest, StateCapability, StateError,
    StateStore,
};

fn get(key: &str) -> GetRequest {
    GetRequest {
        key: key.into(),
        ..GetRequest::default()
    }
}

fn set(key: &str, value: &str) -> SetRequest {
    SetRequest {
        key: key.into(),
        value: value.to_owned().into(),
        ..SetRequest::default()
    }
}

fn delete(key: &str) -> DeleteRequest {
    DeleteRequest {
        key: key.into(),
        ..DeleteRequest::default()
    }
}

async fn there(store: &dyn StateStore, key: &str) -> Option<Item> {
    store.get(get(key)).await.unwrap()
}

async fn value(store: &dyn StateStore, key: &str) -> Option<String> {
    let item = there(store, key).await?;
    Some(String::from_utf8(item.value.to_vec()).unwrap())
}

/// All of it; `open` makes an empty store of its own each time.
pub async fn conforms<F: Future<Output = Arc<dyn StateStore>>>(open: impl Fn() -> F) -> Shown {
    let mut shown = vec!["values", "bulk"];
    values(&*open().await).await;
    bulk(&*open().await).await;
    let store = open().await;
    let can = |capability| store.capabilities().contains(&capability);
    if can(StateCapability::Etag) {
        etags(&*open().await).await;
        first_write(&*open().await).await;
        one_of_many_wins(&*open().await).await;
        shown.extend(["ETag", "first-write", "one of many writers wins"]);
    }
    if can(StateCapability::Ttl) {
        ttl(&*open().await).await;
        shown.push("TTL");
    }
    if can(StateCapability::Transactional) {
        transactions(&*open().await).await;
        shown.push("transactions");
    } else {
        let refused = store.transact(vec![Operation::Delete(delete("a"))]).await;
        assert!(refused.is_err(), "transactions are not declared, and not refused");
    }
    shown
}

/// While the server is away every call fails, and none waits for ever; when it is back it has what it
/// acknowledged, and calls succeed by themselves.
pub async fn outlives(store: &dyn StateStore, server: &mut impl Server) -> Shown {
    store.set(set("kept", "one")).await.unwrap();
    server.stop().await;
    for _ in 0..2 {
        let done = tokio::time::timeout(SOON, store.set(set("lost", "x"))).await;
        assert!(done.expect("it waits for ever").is_err());
    }
    assert!(store.get(get("kept")).await.is_err());
    server.again().await;
    let back = async {
        while store.set(set("back", "two")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, back)
        .await
        .expect("it does not come back");
    assert_eq!(value(store, "kept").await.as_deref(), Some("one"));
    assert_eq!(value(store, "back").await.as_deref(), Some("two"));
    vec!["server away and back"]
}

async fn values(store: &dyn StateStore) {
    assert_eq!(there(store, "a").await, None);
    store.delete(delete("a")).await.unwrap();
    store.set(set("a", "one")).await.unwrap();
    assert_eq!(value(store, "a").await.as_deref(), Some("one"));
    store.set(set("a", "two")).await.unwrap();
    assert_eq!(value(store, "a").await.as_deref(), Some("two"));
    store.set(set("b", "")).await.unwrap();
    assert_eq!(
        value(store, "b").await.as_deref(),
        Some(""),
        "an empty value is one"
    );
    for key in ["a/b", "ä ö", "%00", "' or 1=1", "a||b"] {
        store.set(set(key, key)).await.unwrap();
        assert_eq!(value(store, key).await.as_deref(), Some(key));
    }
    store.delete(delete("a")).await.unwrap();
    assert_eq!(there(store, "a").await, None);
    assert_eq!(value(store, "a||b").await.as_deref(), Some("a||b"), "another key");
}

async fn bulk(store: &dyn StateStore) {
    let sets = (0..40).map(|i| set(&format!("k{i}"), &i.to_string())).collect();
    assert!(store.bulk_set(sets).await.iter().all(Result::is_ok));
    let keys = (0..41).rev().map(|i| get(&format!("k{i}"))).collect();
    let got = store.bulk_get(keys, 3).await;
    assert_eq!(got.len(), 41);
    assert_eq!(got[0], Ok(None), "in the order asked for");
    for (item, i) in got[1..].iter().zip((0..40).rev()) {
        let item = item.as_ref().unwrap().as_ref().unwrap();
        assert_eq!(item.value, i.to_string().as_bytes());
    }
    let deletes = (0..40).map(|i| delete(&format!("k{i}"))).collect();
    assert!(store.bulk_delete(deletes).await.iter().all(Result::is_ok));
    assert_eq!(there(store, "k7").await, None);
}

fn is_mismatch(result: &Result<(), StateError>) -> bool {
    matches!(
        result,
        Err(StateError::EtagMismatch(_) | StateError::EtagInvalid(_))
    )
}

async fn etags(store: &dyn StateStore) {
    store.set(set("a", "one")).await.unwrap();
    let first = there(store, "a").await.unwrap().etag.unwrap();
    assert_eq!(
        there(store, "a").await.unwrap().etag.as_ref(),
        Some(&first),
        "stays while nobody writes"
    );
    let with = |value: &str, etag: &str| SetRequest {
        etag: Some(etag.to_owned()),
        ..set("a", value)
    };
    store.set(with("two", &first)).await.unwrap();
    let second = there(store, "a").await.unwrap().etag.unwrap();
    assert_ne!(first, second);
    assert!(is_mismatch(&store.set(with("three", &first)).await));
    assert_eq!(value(store, "a").await.as_deref(), Some("two"));
    let away = |etag: &str| DeleteRequest {
        etag: Some(etag.to_owned()),
        ..delete("a")
    };
    assert!(is_mismatch(&store.delete(away(&first)).await));
    store.set(with("an empty one is none", "")).await.unwrap();
    let now = there(store, "a").await.unwrap().etag.unwrap();
    store.delete(away(&now)).await.unwrap();
    assert!(is_mismatch(&store.set(with("gone", &now)).await));
}

async fn first_write(store: &dyn StateStore) {
    let first = |value: &str, etag: Option<String>| SetRequest {
        concurrency: Concurrency::FirstWrite,
        etag,
        ..set("a", value)
    };
    store.set(first("one", None)).await.unwrap();
    assert!(is_mismatch(&store.set(first("two", None)).await));
    let etag = there(store, "a").await.unwrap().etag;
    store.set(first("three", etag)).await.unwrap();
    // Its twin: the last write wins when it is asked to.
    store.set(set("a", "four")).await.unwrap();
    assert_eq!(value(store, "a").await.as_deref(), Some("four"));
}

async fn one_of_many_wins(store: &dyn StateStore) {
    store.set(set("a", "0")).await.unwrap();
    let etag = there(store, "a").await.unwrap().etag;
    let writes = (1..20).map(|i| {
        store.set(SetRequest {
            etag: etag.clone(),
            ..set("a", &i.to_string())
        })
    });
    let done = join_all(writes).await;
    assert_eq!(done.iter().filter(|r| r.is_ok()).count(), 1);
    let winner = done.iter().position(Result::is_ok).unwrap() + 1;
    assert_eq!(value(store, "a").await, Some(winner.to_string()));
}

async fn ttl(store: &dyn StateStore) {
    let with = |key: &str, ttl: &str| SetRequest {
        metadata: vec![("ttlInSeconds".into(), ttl.into())],
        ..set(key, "x")
    };
    store.set(with("short", "1")).await.unwrap();
    store.set(with("long", "1000")).await.unwrap();
    for endless in ["0", "-1", ""] {
        store.set(with("endless", endless)).await.unwrap();
        assert_eq!(
            there(store, "endless").await.unwrap().expires,
            None,
            "{endless:?}"
        );
    }
    assert!(store.set(with("wrong", "soon")).await.is_err());
    assert_eq!(there(store, "wrong").await, None);
    let ends = there(store, "long").await.unwrap().expires.unwrap();
    assert!(ends > SystemTime::now());
    let gone = async {
        while there(store, "short").await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("it does not end");
    assert!(there(store, "long").await.is_some());
    // A write without one makes it endless again.
    store.set(set("long", "y")).await.unwrap();
    assert_eq!(there(store, "long").await.unwrap().expires, None);
}

async fn transactions(store: &dyn StateStore) {
    store.set(set("a", "old")).await.unwrap();
    let upsert = |key: &str, value: &str| Operation::Upsert(set(key, value));
    store
        .transact(vec![
            upsert("a", "new"),
            upsert("b", "new"),
            Operation::Delete(delete("c")),
        ])
        .await
        .unwrap();
    assert_eq!(value(store, "a").await.as_deref(), Some("new"));
    assert_eq!(value(store, "b").await.as_deref(), Some("new"));
    // The last one fails: nothing of it is done.
    let stale = Operation::Upsert(SetRequest {
        etag: Some("stale".into()),
        ..set("b", "x")
    });
    let refused = store
        .transact(vec![
            upsert("a", "x"),
            Operation::Delete(delete("b")),
            upsert("d", "x"),
            stale,
        ])
        .await;
    assert!(refused.is_err());
    assert_eq!(value(store, "a").await.as_deref(), Some("new"));
    assert_eq!(value(store, "b").await.as_deref(), Some("new"));
    assert_eq!(there(store, "d").await, None);
    store.transact(Vec::new()).await.unwrap();
}
