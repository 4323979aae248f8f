//! One service's database: a pool that is safe against power loss, brought to the schema this
//! binary knows, with errors an operator can act on.
//!
//! Owns the SQLite file: its permissions, its lock against a second process, its settings. What
//! crosses the border is an sqlx pool and a [`StoreError`]. Each service embeds its own
//! migrations (`migrations/sqlite/`, `migrations/postgres/`) and passes them in; queries live with the
//! service. On a PostgreSQL server, several replicas share a database ([`Database::server`]), or one
//! process at a time owns it ([`Database::owned`]).

mod database;
mod error;
mod lease;
mod sqlite;
mod url;

pub use database::Database;
pub use error::StoreError;
pub use lease::Standing;
pub use url::{DatabaseUrl, NoDatabaseUrl};

/// How a process is called to others that want its database: `policy on host-1, process 42`.
pub fn this_process(service: &str) -> String {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    let host = host.unwrap_or_else(|| "an unnamed host".into());
    format!("{service} on {host}, process {}", std::process::id())
}
