//! What a policy says is what comes through: between pods, processes and hosts outside, both ways, for
//! TCP, UDP and ICMP in both families, through the finished processes and the kernel. Each refusal has
//! a twin that differs in one thing and is let through, and the flow says why. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod audit;
mod cases;
mod matrix;
mod scene;
mod spoofing;
