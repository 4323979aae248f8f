//! One file per command.

pub mod admin;
pub mod apply;
pub mod containers;
pub mod delete;
#[cfg(feature = "dev")]
pub mod dev;
pub mod diff;
pub mod doctor;
pub mod explain;
pub mod get;
pub mod identity;
pub mod observe;
#[cfg(feature = "dev")]
mod preflight;
pub mod run;
pub mod status;
pub mod uninstall;
pub mod validate;
