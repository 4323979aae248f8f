//! What a component is: one trait per building block, implemented by drivers.
//!
//! Owns the traits ([`StateStore`], [`PubSub`], [`InputBinding`], [`OutputBinding`], [`SecretStore`],
//! [`ConfigurationStore`], [`LockStore`]), what a manifest says of a component ([`ComponentSpec`]), how its metadata is checked ([`Schema`]), and how a driver
//! is found by `spec.type` and `spec.version` ([`Drivers`]). Knows nothing of HTTP, gRPC or policy.
//!
//! An instance belongs to one app: [`Driver::open`] is called once per component and app. Every call
//! may be cancelled by dropping its future; an implementation must then be as if the call had either
//! been done or never begun. Dropping an instance ends it.

pub mod beneath;
mod bindings;
mod configuration;
mod driver;
mod guard;
mod lock;
mod metadata;
mod net;
mod pubsub;
mod secrets;
mod spec;
mod state;
pub mod time;

pub use bindings::{
    BindingError, BindingEvent, BindingHandler, BindingRequest, BindingResponse, InputBinding, OutputBinding,
    Reading,
};
pub use configuration::{
    ConfigurationError, ConfigurationHandler, ConfigurationItem, ConfigurationItems, ConfigurationStore,
};
pub use driver::{Component, Driver, Drivers, Home, InitError, Instance};
pub use guard::Guard;
pub use lock::{LockError, LockStore, Unlocked};
pub use metadata::{Block, Field, Metadata, MetadataError, Schema};
pub use net::{Dialer, Net};
pub use pubsub::{
    Message, MessageHandler, Outcome, PubSub, PubSubError, PubSubFeature, Subscribe, Subscription,
};
pub use secrets::{Secret, SecretError, SecretFeature, SecretStore};
pub use spec::{ComponentSpec, Owner, SecretRef, SpecError};
pub use state::{
    Concurrency, DeleteRequest, GetRequest, Item, Operation, SetRequest, StateCapability, StateError,
    StateStore, state_ttl,
};
