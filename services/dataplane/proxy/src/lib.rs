//! HTTP between workloads, request by request: which route it takes, who may, which backend and
//! endpoint answers, and what is said of it when it is over.
//!
//! Owns: the tables of routes and gateways ([`Routing`]), made of what the policy service sent; the
//! way of one request through them ([`Proxy`]); what a client is told when it can not go on. What
//! crosses the border: connections with who opened them and where to ([`Front`]); who is there, who
//! may and sockets come through [`Mesh`]; requests travel by `weft-l7` and `weft-tunnel`; every
//! decision becomes a flow.
//!
//! A route's change swaps a table between two requests; connections stay. What a request needs to
//! know of the mesh is kept with its connection until the mesh changes.

mod answer;
mod backends;
mod convert;
mod forward;
mod gateway;
mod head;
mod limits;
mod listeners;
mod mesh;
mod mirror;
mod outgoing;
mod outlet;
mod peers;
mod proxy;
mod record;
mod routes;
mod routing;
mod served;
mod way;

pub use backends::{Backends, Member, Speaks};
pub use convert::RouteError;
pub use limits::ProxyLimits;
pub use listeners::Listeners;
pub use mesh::{Answerer, Answers, Mesh};
pub use outlet::{Outlet, Unanswered};
pub use proxy::Proxy;
pub use routes::{Routes, Slot};
pub use routing::{Applied, Routing};
pub use served::{Caller, Front, To};
