//! HTTP/1.1 on one connection, at either end of it.
//!
//! Owns: what heads and bodies look like on the wire, and the buffers between them and the socket. A
//! message is read and written by whoever waits for it: no task, no channel, and what is received is
//! passed on without being copied. Reading is strict: what two readers could take for different messages
//! is refused, whatever else could be made of it.

pub(crate) mod chunked;
pub(crate) mod exchange;
pub(crate) mod framing;
pub(crate) mod handed;
pub(crate) mod head;
pub(crate) mod received;
pub(crate) mod wire;
pub(crate) mod write;

#[cfg(test)]
mod fuzz;
