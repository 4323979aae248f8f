//! Identifiers and value types that every part of Weft shares.
//!
//! Owns: SPIFFE IDs and the roles inside them, labels, numeric security identities, names.
//! Nothing here does I/O, and nothing here knows a wire format.

mod identity;
mod labels;
mod name;
mod spiffe;

pub use identity::NumericIdentity;
pub use labels::{APP_ID_LABEL, Labels, NAMESPACE_LABEL, NAMESPACE_LABELS_PREFIX, SERVICE_ACCOUNT_LABEL};
pub use name::{NameError, check_app_id, check_dns_label, check_name, match_pattern};
pub use spiffe::{Principal, SpiffeError, SpiffeId, SvidForm, TrustDomain};

/// The product's version, as every binary prints it and every hello carries it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
