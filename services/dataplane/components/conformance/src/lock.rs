//! Lock stores.

use crate::{SOON, Shown};
use futures::future::join_all;
use std::{sync::Arc, time::Duration};
use weft_components_api::{LockStore, Unlocked};

const LONG: Duration = Duration::from_secs(600);

async fn lock(store: &dyn LockStore, resource: &str, owner: &str, expiry: Duration) -> bool {
    store
        .try_lock(resource.into(), owner.into(), expiry)
        .await
        .unwrap()
}

async fn unlock(store: &dyn LockStore, resource: &str, owner: &str) -> Unlocked {
    store.unlock(resource.into(), owner.into()).await.unwrap()
}

/// All of it; `open` makes another client of one store.
pub async fn conforms<F: Future<Output = Arc<dyn LockStore>>>(open: impl Fn() -> F) -> Shown {
    let (one, other) = (open().await, open().await);
    assert!(lock(&*one, "a", "me", LONG).await);
    assert!(!lock(&*other, "a", "you", LONG).await, "it is held");
    assert!(
        !lock(&*one, "a", "me", LONG).await,
        "not even its owner gets it again"
    );
    assert!(lock(&*other, "b", "you", LONG).await, "another is free");
    assert_eq!(unlock(&*other, "a", "you").await, Unlocked::OfOthers);
    assert_eq!(unlock(&*other, "a", "me").await, Unlocked::Success);
    assert_eq!(unlock(&*one, "a", "me").await, Unlocked::NotThere);
    assert!(lock(&*other, "a", "you", LONG).await, "it is free again");

    // It ends by itself, and then is nobody's.
    assert!(lock(&*one, "short", "me", Duration::from_secs(1)).await);
    let free = async {
        while !lock(&*other, "short", "you", LONG).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, free).await.expect("it does not end");
    assert_eq!(unlock(&*one, "short", "me").await, Unlocked::OfOthers);

    // Of many who want it one gets it.
    let owners: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    let all = owners.iter().map(|owner| lock(&*one, "wanted", owner, LONG));
    assert_eq!(join_all(all).await.into_iter().filter(|got| *got).count(), 1);
    vec!["one holder", "unlock by its owner", "expiry", "one of many"]
}
