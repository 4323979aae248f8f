//! HTTP proxying: connections in, requests out.
//!
//! Owns: serving accepted connections with bounds ([`serve_connection`], [`serve_any`]), the header
//! hygiene of a proxy ([`hygiene`]), the trace of a request ([`trace`]), and connections to one peer:
//! [`Pool`] for HTTP/1.1, [`MuxPool`] for HTTP/2. Bodies are passed on as they come, never collected
//! unless asked for. What crosses the border are `http` requests and responses with [`Body`]; whom a
//! request is for and whether it may go is decided elsewhere.
//!
//! A request costs no task, no timer and no lock that another connection of the same pool does not
//! need at the same moment; one of HTTP/2 costs a task.

mod body;
mod detect;
mod drive;
pub mod hygiene;
mod mux;
mod pool;
mod scan;
mod server;
mod server2;
pub mod trace;
mod upgrade;

pub use body::{Body, BodyError, InFlight};
pub use mux::{MuxConnection, MuxConnector, MuxPool};
pub use pool::{Connection, Connector, Pool, PoolLimits, SendError, SendFailure};
pub use server::{ServeError, ServerLimits, serve_any, serve_connection};
pub use upgrade::{Upgrade, Upgraded};
