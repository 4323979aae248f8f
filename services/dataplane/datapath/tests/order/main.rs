//! No packet between two writes is judged by what was never desired: a model of the kernel judges
//! every probe after every single write, and is compared with what the rules say of the same probe
//! before and after the change.
#![allow(clippy::unwrap_used)]

mod full;
mod kernel;
mod order;
mod scene;
