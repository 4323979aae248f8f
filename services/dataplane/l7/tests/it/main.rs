//! HTTP/1.1 served and asked for over real sockets.

#![allow(clippy::unwrap_used, missing_docs)]

mod passing;
mod server;
