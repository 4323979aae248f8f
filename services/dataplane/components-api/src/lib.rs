//! What a component is: one trait per building block, implemented by drivers.
//!
//! Owns the traits ([`StateStore`], [`PubSub`], [`InputBinding`], [`OutputBinding`]), what a manifest
//! says of a component ([`ComponentSpec`]), how its metadata is checked ([`Schema`]), and how a driver
//! is found by `spec.type` and `spec.version` ([`Drivers`]). Knows nothing of HTTP, gRPC or policy.
//!
//! An instance belongs to one app: [`Driver::open`] is called once per component and app. Every call
//! may be cancelled by dropping its future; an implementation must then be as if the call had either
//! been done or never begun. Dropping an instance ends it.

mod bindings;
mod driver;
mod metadata;
mod pubsub;
mod spec;
mod state;
pub mod time;

pub use bindings::{
    BindingError, BindingEvent, BindingHandler, BindingRequest, BindingResponse, InputBinding, OutputBinding,
    Reading,
};
pub use driver::{Component, Driver, Drivers, InitError, Instance};
pub use metadata::{Block, Field, Metadata, MetadataError, Schema};
pub use pubsub::{
    Message, MessageHandler, Outcome, PubSub, PubSubError, PubSubFeature, Subscribe, Subscription,
};
pub use spec::{ComponentSpec, Owner, SpecError};
pub use state::{
    Concurrency, DeleteRequest, GetRequest, Item, Operation, SetRequest, StateCapability, StateError,
    StateStore,
};
