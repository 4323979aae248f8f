//! Agents in a whole mesh: the real control services in the same process, real sockets and
//! certificates, no root.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/control.rs"]
mod control;
mod failures;
// What only tests with pods look at is in it too.
#[allow(dead_code)]
#[path = "../common/flows.rs"]
mod flows;
mod hubble;
mod hubble_live;
mod invocation;
mod shared;
mod support;
mod surface;
