//! The proxy between real sockets: a mesh that is as the test says, and apps that tell what came.
#![allow(clippy::unwrap_used)]

mod failing;
mod gateway;
mod judging;
mod lasting;
mod protocols;
mod routing;
mod world;
