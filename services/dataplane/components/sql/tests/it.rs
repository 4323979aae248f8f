//! `state.postgresql` against a PostgreSQL of its own.

#![allow(clippy::unwrap_used)]

#[path = "../../../../../crates/store/tests/postgres/mod.rs"]
mod postgres;

use postgres::Postgres;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use weft_components_api::{Component, Driver, GetRequest, InitError, SetRequest, StateStore};
use weft_components_conformance::{instance, server::Server, state, table};
use weft_components_sql::PostgresState;

async fn open(url: &str, more: &[(&str, &str)]) -> Result<Arc<dyn StateStore>, InitError> {
    let metadata = [&[("connectionString", url)][..], more].concat();
    match PostgresState.open(instance("store", &metadata)).await? {
        Component::State(store) => Ok(store),
        other => panic!("{other:?}"),
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms_has_daprs_form_and_outlives_its_server() {
    let mut server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let url = server.url();
    let next = AtomicUsize::new(0);
    let mut shown = state::conforms(async || {
        let prefix = format!("t{}_", next.fetch_add(1, Ordering::Relaxed));
        open(&url, &[("tablePrefix", &prefix)]).await.unwrap()
    })
    .await;

    let quick = [("timeout", "2s"), ("cleanupInterval", "50ms")];
    let store = open(&url, &quick).await.unwrap();
    store.set(set("cart||a", "kept")).await.unwrap();
    let row = server.execute("SELECT key || ' ' || convert_from(value, 'UTF8') || ' ' || row_id FROM state");
    assert_eq!(row.trim(), "cart||a kept 1");
    let noted = server.execute("SELECT value FROM dapr_metadata WHERE key = 'migrations-state-v2-'");
    assert_eq!(noted.trim(), "2");
    let short = SetRequest {
        metadata: vec![("ttlInSeconds".into(), "1".into())],
        ..set("cart||short", "x")
    };
    store.set(short).await.unwrap();
    let count = || server.execute("SELECT count(*) FROM state");
    let swept = async {
        while count().trim() != "1" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), swept)
        .await
        .expect("what has ended is not swept");
    // One that daprd made before it numbered rows is brought on.
    server.execute("ALTER TABLE state DROP COLUMN row_id");
    server.execute("UPDATE dapr_metadata SET value = '1' WHERE key = 'migrations-state-v2-'");
    let again = open(&url, &quick).await.unwrap();
    assert_eq!(get(&*again, "cart||a").await.as_deref(), Some("kept"));
    assert_eq!(server.execute("SELECT row_id FROM state").trim(), "1");
    server.execute("UPDATE dapr_metadata SET value = '9' WHERE key = 'migrations-state-v2-'");
    let newer = open(&url, &quick).await.err().unwrap().to_string();
    assert!(newer.contains("the form 9"), "{newer}");

    shown.extend(state::outlives(&*store, &mut Own(&mut server)).await);
    table::told("state.postgresql", &shown);
}

struct Own<'a>(&'a mut Postgres);

impl Server for Own<'_> {
    async fn stop(&mut self) {
        tokio::task::block_in_place(|| self.0.kill());
    }

    async fn again(&mut self) {
        tokio::task::block_in_place(|| self.0.up());
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let port = weft_components_conformance::server::free_port().await;
    let host = format!("host=127.0.0.1 port={port} user=me password=s3cret database=x");
    let error = open(&host, &[("timeout", "1s")]).await.err().unwrap().to_string();
    assert!(
        error.contains(&format!("the database at 127.0.0.1:{port}")),
        "{error}"
    );
    assert!(!error.contains("s3cret"));
}
