//! HTTP proxying: connections in, requests out.
//!
//! Owns: serving accepted connections with bounds ([`serve_connection`]), the header hygiene of a
//! proxy ([`hygiene`]), and pools of keep-alive connections to one peer ([`Pool`]). Bodies are
//! passed on as they come, never collected. What crosses the border are `http` requests and
//! responses with [`Body`]; whom a request is for and whether it may go is decided elsewhere.
//!
//! A request costs no task, no timer and no lock that another connection of the same pool does not
//! need at the same moment.

mod body;
pub mod hygiene;
mod pool;
mod scan;
mod server;

pub use body::{Body, InFlight};
pub use pool::{Connection, Connector, Pool, PoolLimits, SendError, SendFailure};
pub use server::{ServeError, ServerLimits, serve_connection};
