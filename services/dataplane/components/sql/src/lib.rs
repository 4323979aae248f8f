//! State stores on SQL databases: `state.sqlite`, a file of the app's own, and `state.postgresql` v2.
//!
//! Tables have Dapr's form, so that its tools and daprd itself can read them.

mod bridge;
mod common;
mod dsn;
mod postgres;
mod sqlite;

pub use postgres::PostgresState;
pub use sqlite::SqliteState;
