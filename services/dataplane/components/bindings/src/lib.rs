//! Bindings that need no server: `bindings.cron` and `bindings.localstorage`.

mod cron;
mod localstorage;
mod schedule;

pub use cron::Cron;
pub use localstorage::LocalStorage;
