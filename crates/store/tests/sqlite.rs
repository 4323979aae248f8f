//! What an operator meets: each fault with the twin that works.
#![allow(clippy::unwrap_used)]

use sqlx::{Connection, Executor, SqliteConnection, migrate::Migrator};
use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};
use weft_store::{Database, StoreError};

static V1: Migrator = sqlx::migrate!("tests/migrations/v1");
static V2: Migrator = sqlx::migrate!("tests/migrations/v2");
const SHORT: Duration = Duration::from_millis(200);

async fn open(path: &Path) -> Result<Database, StoreError> {
    Database::file_with(path, &V1, SHORT).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn one_line_naming(error: &StoreError, path: &Path) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn keeps_what_was_written_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/identity.db");
    let store = open(&path).await.unwrap();
    let mut tx = store.begin_write().await.unwrap();
    tx.execute("INSERT INTO notes (body) VALUES ('kept')")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for file in ["identity.db", "identity.db-wal", "identity.db-shm"] {
        assert_eq!(mode(&path.with_file_name(file)), 0o600, "{file}");
    }
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(store.pool())
        .await
        .unwrap();
    let sync: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(store.pool())
        .await
        .unwrap();
    let keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!((journal.as_str(), sync, keys), ("wal", 2, 1));
    store.close().await;

    let store = open(&path).await.unwrap();
    let body: String = sqlx::query_scalar("SELECT body FROM notes")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(body, "kept");
}

#[tokio::test]
async fn a_file_open_to_others_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    open(&path).await.unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_second_process_is_told_that_it_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let first = open(&path).await.unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    one_line_naming(&error, &path);
    first.close().await;
    open(&path).await.unwrap();
}

#[tokio::test]
async fn a_held_write_lock_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let store = open(&path).await.unwrap();
    let mut other = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    let error = store.begin_write().await.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    one_line_naming(&error, &path);
    other.execute("ROLLBACK").await.unwrap();
    store.begin_write().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let store = open(&path).await.unwrap();
    let mut connection = store.pool().acquire().await.unwrap();
    let insert = "INSERT INTO notes (body) VALUES (hex(zeroblob(200000)))";
    connection.execute(insert).await.unwrap();
    // SQLite reports a reached page limit exactly as a full disk.
    connection.execute("PRAGMA max_page_count = 1").await.unwrap();
    let error = store.error(&connection.execute(insert).await.unwrap_err());
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    one_line_naming(&error, &path);
}

#[tokio::test]
async fn what_is_no_database_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    std::fs::write(&path, "this is not a database".repeat(100)).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    one_line_naming(&error, &path);
}

#[tokio::test]
async fn an_unusable_path_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    // A folder where the database should be, and a file where its folder should be.
    for path in [dir.path().to_path_buf(), dir.path().join("file/a.db")] {
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
        one_line_naming(&error, &path);
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_an_older_one_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    open(&path).await.unwrap().close().await;
    Database::file(&path, &V2).await.unwrap().close().await;
    let error = open(&path).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    one_line_naming(&error, &path);
}
