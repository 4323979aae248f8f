//! A database on a server that belongs to one process at a time.
#![allow(clippy::unwrap_used)]

mod postgres;

use postgres::Postgres;
use sqlx::{Executor, migrate::Migrator};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use weft_store::{Database, DatabaseUrl, StoreError};

static NOTES: Migrator = sqlx::migrate!("tests/migrations/server");
/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

async fn open(url: &DatabaseUrl, holder: &str) -> Database {
    Database::owned(url, &NOTES, holder, |_| {}).await.unwrap()
}

async fn note(database: &Database, body: &str) -> Result<(), StoreError> {
    let mut tx = database.begin_write().await?;
    let insert = sqlx::query("INSERT INTO notes (body) VALUES ($1)").bind(body);
    insert.execute(&mut *tx).await.map_err(|e| database.error(&e))?;
    tx.commit().await.map_err(|e| database.error(&e))
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.unwrap()
}

#[tokio::test]
async fn the_next_process_waits_says_for_whom_and_then_has_it_all() {
    let postgres = Postgres::start();
    let url = DatabaseUrl::new(postgres.url()).unwrap();
    let first = open(&url, "policy on a, process 1").await;
    note(&first, "one").await.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let next = tokio::spawn({
        let (url, told) = (url.clone(), Arc::clone(&told));
        async move {
            let waiting = |holder: &str| told.lock().unwrap().push(holder.to_owned());
            Database::owned(&url, &NOTES, "policy on b, process 2", waiting)
                .await
                .unwrap()
        }
    });
    within(async {
        while told.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Meanwhile the first one writes as before.
    note(&first, "two").await.unwrap();
    assert!(!next.is_finished());
    first.close().await;
    let next = within(next).await.unwrap();
    note(&next, "three").await.unwrap();
    // Said once, however often it looked.
    assert_eq!(*told.lock().unwrap(), ["policy on a, process 1"]);
    assert_eq!(
        postgres.execute("SELECT string_agg(body, ' ' ORDER BY id) FROM notes"),
        "one two three"
    );
    next.close().await;
}

#[tokio::test]
async fn who_was_replaced_unnoticed_can_not_write_and_hears_of_it() {
    let postgres = Postgres::start();
    let url = DatabaseUrl::new(postgres.url()).unwrap();
    let first = open(&url, "policy on a, process 1").await;
    note(&first, "kept").await.unwrap();
    let lost = tokio::spawn(first.lost(false));
    // As after the process was stopped for longer than its right lasts.
    postgres.execute("UPDATE weft_lease SET held_until = 0");
    let second = open(&url, "policy on b, process 2").await;
    let refused = note(&first, "from the past").await.unwrap_err();
    let StoreError::Taken { holder, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(holder, "policy on b, process 2");
    let text = refused.to_string();
    assert!(
        text.starts_with("database postgres://127.0.0.1:") && !text.contains('\n'),
        "{text}"
    );
    let lost = within(lost).await.unwrap();
    assert_eq!(lost.to_string(), text);
    note(&second, "kept too").await.unwrap();
    assert_eq!(
        postgres.execute("SELECT string_agg(body, ', ' ORDER BY id) FROM notes"),
        "kept, kept too"
    );
    // What it gives back is not its own any more.
    first.close().await;
    note(&second, "and this").await.unwrap();
    second.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_makes_unsure_and_takes_nothing() {
    let mut postgres = Postgres::start();
    let url = DatabaseUrl::new(postgres.url()).unwrap();
    let database = open(&url, "placement on a, process 1").await;
    let (strict, patient) = (
        tokio::spawn(database.lost(true)),
        tokio::spawn(database.lost(false)),
    );
    postgres.kill();
    let lost = within(strict).await.unwrap();
    assert!(matches!(lost, StoreError::Unsure { .. }), "{lost}");
    postgres.up();
    // Nobody took it: it goes on.
    within(async {
        while note(&database, "after").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(!patient.is_finished());
    patient.abort();
    database.close().await;
}

#[tokio::test]
async fn replicas_that_share_wait_for_nobody() {
    let postgres = Postgres::start();
    let [one, two] = [(), ()].map(|()| async { Database::server(&postgres.url(), &NOTES).await.unwrap() });
    let (one, two) = tokio::join!(one, two);
    for database in [&one, &two] {
        note(database, "both").await.unwrap();
    }
    one.pool().execute("SELECT body FROM notes").await.unwrap();
}

#[test]
fn a_url_shows_no_password_and_must_be_one() {
    let url = "postgres://u:hunter2@h:1/d?x=y";
    let read: DatabaseUrl = serde_json::from_value(url.into()).unwrap();
    assert_eq!(
        format!("{read} {read:?}"),
        "postgres://h:1/d DatabaseUrl(postgres://h:1/d)"
    );
    // What a configuration hands on is whole.
    assert_eq!(serde_json::to_value(&read).unwrap(), url);
    let refused = serde_json::from_value::<DatabaseUrl>("mysql://u:hunter2@h/d".into()).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("postgres://") && !text.contains("hunter2"),
        "{text}"
    );
}
