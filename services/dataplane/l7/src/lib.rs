//! HTTP proxying: connections in, requests out.
//!
//! Owns: serving accepted connections with bounds ([`serve_connection`], [`serve_any`]), the header
//! hygiene of a proxy ([`hygiene`]), the trace of a request ([`trace`]), and connections to one peer:
//! [`Pool`] for HTTP/1.1, [`MuxPool`] for HTTP/2. Bodies are passed on as they come, never collected
//! unless asked for. What crosses the border are `http` requests and responses with [`Body`]; whom a
//! request is for and whether it may go is decided elsewhere.
//!
//! HTTP/1.1 is read and written here, by whoever waits for a message: in a proxy's hop the tasks, channels
//! and copies between two general ends cost as much as all that the hop is for. HTTP/2 is hyper's.
//!
//! A request costs no task, no timer and no lock that another connection of the same pool does not
//! need at the same moment; one of HTTP/2 costs a task.

mod beside;
mod body;
mod detect;
mod h1;
pub mod hygiene;
mod mux;
mod pool;
mod server;
mod server1;
mod server2;
pub mod trace;
mod upgrade;
mod writing;

pub use beside::unless;
pub use body::{Body, BodyError, InFlight};
pub use h1::{chunked::ChunkError, exchange::ExchangeError, head::HeadError};
pub use mux::{MuxConnection, MuxConnector, MuxPool};
pub use pool::{Connection, Connector, Pool, PoolLimits, SendError, SendFailure};
pub use server::{ServeError, ServerLimits, serve_any, serve_connection};
pub use upgrade::{Upgrade, Upgraded};
