//! The programs on this machine's kernel, with real sockets and processes. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "net_kernel/actor.rs"]
mod actor;
#[path = "net_kernel/callers.rs"]
mod callers;
#[path = "net_kernel/captures.rs"]
mod captures;
#[path = "net_kernel/lifecycle.rs"]
mod lifecycle;
#[path = "net_kernel/limits.rs"]
mod limits;
#[path = "net_kernel/processes.rs"]
mod processes;
#[path = "net_kernel/removal.rs"]
mod removal;
#[path = "net_kernel/rig.rs"]
mod rig;
#[path = "net_kernel/scene.rs"]
mod scene;
#[path = "net_kernel/services.rs"]
mod services;
#[path = "net_kernel/talk.rs"]
mod talk;
