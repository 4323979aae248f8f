//! For tests: what every driver of a building block must do, run against each of them.
//!
//! What a driver declares is checked to be so; what it does not declare is not asked of it. A check that
//! fails panics with what was expected.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod configuration;
pub mod input;
pub mod lock;
pub mod pubsub;
pub mod secrets;
pub mod server;
pub mod state;
pub mod table;

pub use table::Shown;

use std::{sync::Arc, time::Duration};
use weft_components_api::{Home, Instance, Metadata, Net, Owner};

/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

/// For app `cart` of namespace `shop`, with a folder that is not there.
pub fn instance(name: &str, metadata: &[(&str, &str)]) -> Instance {
    let pairs = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Instance {
        name: name.into(),
        owner: Owner {
            namespace: "shop".into(),
            app_id: "cart".into(),
        },
        metadata: Metadata::new(pairs.collect()).unwrap(),
        home: Home {
            files: "/nonexistent".into(),
            environment: Arc::default(),
            net: Net::direct(),
        },
    }
}
