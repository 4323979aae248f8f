//! Nodes and pods as network namespaces, for tests and the demo.
//!
//! A [`Testnet`] is made by root and removed on drop, whatever its test did. Everything it makes on
//! the machine is a folder below `/run/weft-test` and a cgroup below `<cgroup2>/weft-test`; the
//! caller's own namespaces are left as they are. [`sweep`] removes what killed processes left.
//!
//! ```no_run
//! # fn main() -> Result<(), weft_testnet::Error> {
//! use weft_testnet::Testnet;
//!
//! let net = Testnet::new()?;
//! let (a, b) = (net.node("a")?, net.node("b")?);
//! let (shop, cart) = (a.pod("shop")?, b.pod("cart")?);
//! let listener = cart.namespace().listen((cart.v4(), 0))?;
//! let wire = net.underlay(&b).capture()?;
//! # let port = 1;
//! let stream = shop.namespace().connect((cart.v4(), port))?;
//! let seen = wire.stop()?;
//! # Ok(()) }
//! ```

mod capture;
mod cgroup;
mod error;
mod foreign;
mod home;
mod namespace;
mod process;
mod topology;
mod wire;

pub use capture::Capture;
pub use error::Error;
pub use foreign::ForeignProgram;
pub use home::sweep;
pub use namespace::Namespace;
pub use process::{Process, Spawn};
pub use topology::{Link, Node, Pod, Testnet};
pub use wire::{Captured, Stream, Tls};
