//! Layered configuration with one precedence for every binary: flags, then `WEFT_*` environment,
//! then the file, then built-in defaults.
//!
//! A configuration is a plain serde type with `Default` and `deny_unknown_fields`. Its flags are a
//! clap type whose fields are `Option`s with `env`, serialised without the ones not given; clap
//! itself ranks flags above environment. Nothing here knows any one service.

mod load;
mod paths;

pub use load::{ConfigError, load};
pub use paths::{default_file, run_dir, state_dir};
