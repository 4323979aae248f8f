//! One file per command.

pub mod admin;
pub mod identity;
pub mod observe;
pub mod run;
pub mod status;
