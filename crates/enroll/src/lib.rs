//! How a process becomes a member of the mesh and stays one.
mod token;
pub use token::{JoinToken, TokenError};
