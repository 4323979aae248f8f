//! Configuration stores.

use crate::{SOON, Shown};
use futures::{FutureExt, future::BoxFuture};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::mpsc, time::timeout};
use weft_components_api::{ConfigurationHandler, ConfigurationItems, ConfigurationStore};

/// What a store is to have: values and versions by their keys.
pub type Items = BTreeMap<&'static str, (&'static str, &'static str)>;

struct Told(mpsc::UnboundedSender<ConfigurationItems>);

impl ConfigurationHandler for Told {
    fn changed(&self, items: ConfigurationItems) -> BoxFuture<'_, ()> {
        let _ = self.0.send(items);
        std::future::ready(()).boxed()
    }
}

/// What was told last of each key, once all of `wanted` is so.
async fn until(told: &mut mpsc::UnboundedReceiver<ConfigurationItems>, wanted: &[(&str, &str)]) {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let wait = async {
        while !wanted
            .iter()
            .all(|(key, value)| known.get(*key).is_some_and(|v| v == value))
        {
            let items = told.recv().await.expect("the store ended it");
            known.extend(items.into_iter().map(|(key, item)| (key, item.value)));
        }
    };
    let waited = timeout(SOON, wait).await;
    assert!(waited.is_ok(), "{wanted:?} was not told, only {known:?}");
}

/// All of it; `open` makes the store have these items and opens it.
pub async fn conforms(open: impl AsyncFn(Items) -> Arc<dyn ConfigurationStore>) -> Shown {
    let store = open([("a", ("1", "v1")), ("b", ("2", "")), ("c", ("3", ""))].into()).await;
    let got = store
        .get(vec!["a".into(), "none".into(), "b".into()], Vec::new())
        .await
        .unwrap();
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        ["a", "b"],
        "what is not there is left out"
    );
    assert_eq!((got["a"].value.as_str(), got["a"].version.as_str()), ("1", "v1"));
    assert_eq!((got["b"].value.as_str(), got["b"].version.as_str()), ("2", ""));
    let all = store.get(Vec::new(), Vec::new()).await.unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);

    let (sender, mut some) = mpsc::unbounded_channel();
    let some_guard = store
        .watch(vec!["a".into(), "d".into()], Vec::new(), Arc::new(Told(sender)))
        .await
        .unwrap();
    let (sender, mut every) = mpsc::unbounded_channel();
    let _every = store
        .watch(Vec::new(), Vec::new(), Arc::new(Told(sender)))
        .await
        .unwrap();
    // One is changed, one is new, one is gone, one stays.
    let _again = open([("a", ("9", "v2")), ("b", ("2", "")), ("d", ("4", ""))].into()).await;
    until(&mut some, &[("a", "9"), ("d", "4")]).await;
    until(&mut every, &[("a", "9"), ("c", ""), ("d", "4")]).await;
    assert_eq!(
        store.get(vec!["a".into()], Vec::new()).await.unwrap()["a"].version,
        "v2"
    );

    // Who has ended it is told nothing more; others are.
    drop(some_guard);
    while some.try_recv().is_ok() {}
    let _last = open([("a", ("10", ""))].into()).await;
    until(&mut every, &[("a", "10"), ("b", "")]).await;
    assert!(some.try_recv().is_err());
    vec!["get", "all keys", "subscribe", "unsubscribe"]
}
