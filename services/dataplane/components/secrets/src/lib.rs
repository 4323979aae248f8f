//! Secret stores that need no server: `secretstores.local.env` and `secretstores.local.file`.
//!
//! Both are an app's own. Its environment is what annotation `dapr.io/env` gives its runtime, and its file
//! is beneath its folder: no app reads what another was given, nor what the node has.

mod env;
mod file;

pub use env::LocalEnv;
pub use file::LocalFile;
