//! One service's database: a pool that is safe against power loss, brought to the schema this
//! binary knows, with errors an operator can act on.
//!
//! Owns the SQLite file: its permissions, its lock against a second process, its settings. What
//! crosses the border is an sqlx pool and a [`StoreError`]. Each service embeds its own
//! migrations (`migrations/sqlite/`) and passes them in; queries live with the service.
//! A service that may also keep its state on a PostgreSQL server uses [`Database`], with migrations
//! of its own for that (`migrations/postgres/`).

mod database;
mod error;
mod sqlite;

pub use database::Database;
pub use error::StoreError;
pub use sqlite::Store;
