//! The real `weft-node` on networks of namespaces: what is inside a pod is inside, what is passed
//! on works, nothing stays behind. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "../../../bpf/tests/compile/mod.rs"]
mod compile;
mod layout;
mod lifecycle;
mod pods;
mod processes;
mod refusals;
mod rig;
mod services;
mod stub;
mod supervised;
