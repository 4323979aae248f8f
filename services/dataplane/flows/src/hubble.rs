//! The flow log as Hubble's API has it.
//!
//! Owns: the conversion ([`Observer::events`]), what filters mean ([`Filters`]), field masks
//! ([`Mask`]), the order in which a request is answered ([`Stream`]), the JSON form ([`json`]) and
//! how flows read on a terminal ([`Printer`]). What comes from outside is bounded when it is read:
//! numbers of filters and values, lengths, sizes of regular expressions.

mod convert;
mod export;
mod filter;
mod glob;
pub mod json;
mod layers;
mod mask;
pub mod names;
mod print;
mod selector;
mod stream;

pub use convert::{Directory, Observer};
pub use export::{Export, ExportError, Rotation};
pub use filter::{FilterError, Filters};
pub use mask::{Mask, MaskError};
pub use print::{Layout, Printer, Text, TimeFormat, flow_type};
pub use selector::{Selector, SelectorError};
pub use stream::{Query, QueryError, Stream, flow_rate};

/// Hubble's name of a cluster that has none.
pub const CLUSTER: &str = "default";
