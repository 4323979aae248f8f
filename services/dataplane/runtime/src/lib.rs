//! Dapr's HTTP and gRPC APIs for every app of the node.
//!
//! Owns: what a path means, the building blocks ([`Blocks`]), whose token is asked for, which headers are true, and service
//! invocation in both directions. Who is there, who may call whom and how sockets are made comes
//! through the traits [`Directory`], [`Judge`], [`AppDialer`] and [`TunnelDialer`]; requests travel
//! by `weft-l7` and `weft-tunnel`; every decision becomes a flow.

mod api;
mod blocks;
mod call;
mod context;
mod env;
mod error;
mod grpc;
mod inbound;
mod path;
mod pools;
mod runtime;
mod truth;
mod tunnels;

pub use blocks::{BlockProblem, Blocks};
pub use context::{AppChannel, AppContext, AppHealth, AppSettings, AppSpec, Token};
pub use env::{
    AppDialer, Channel, ChannelError, Decision, Directory, Endpoint, INVOKE_PORT, Judge, Place, Question,
    RequestJudge, RequestLine, Target, TunnelDialer,
};
pub use inbound::TunnelHandler;
pub use runtime::{Environment, Runtime, RuntimeLimits};
pub use tunnels::Tunnels;
