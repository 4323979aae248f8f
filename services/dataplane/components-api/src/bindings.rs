//! Bindings: events from outside to the app, and calls of the app to the outside.

use crate::Guard;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Why a binding did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// Something in the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It could not.
    #[error("{0}")]
    Failed(String),
}

/// An event for the app.
#[derive(Debug, Clone, Default)]
pub struct BindingEvent {
    /// Its content.
    pub data: Bytes,
    /// What travels beside it; headers for an HTTP app.
    pub metadata: Vec<(String, String)>,
}

/// Takes the events of a binding.
pub trait BindingHandler: Send + Sync + 'static {
    /// Takes one. The answer is the app's, or why there is none.
    fn handle(&self, event: BindingEvent) -> BoxFuture<'_, Result<Bytes, BindingError>>;
}

/// Events are read: until this is dropped.
pub type Reading = Guard;

/// A source of events, opened for one app.
pub trait InputBinding: Send + Sync + 'static {
    /// From now on `handler` gets the events.
    fn read(&self, handler: Arc<dyn BindingHandler>) -> BoxFuture<'_, Result<Reading, BindingError>>;
}

/// A call to the outside.
#[derive(Debug, Clone, Default)]
pub struct BindingRequest {
    /// One of [`OutputBinding::operations`].
    pub operation: String,
    /// What is sent.
    pub data: Bytes,
    /// Parameters of the operation.
    pub metadata: Vec<(String, String)>,
}

impl BindingRequest {
    /// A parameter, by its name in any case.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut all = self.metadata.iter();
        let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BindingResponse {
    /// Its content.
    pub data: Bytes,
    /// What came beside it.
    pub metadata: Vec<(String, String)>,
}

/// Something outside that can be called, opened for one app.
pub trait OutputBinding: Send + Sync + 'static {
    /// What can be asked of it; nothing else reaches [`OutputBinding::invoke`].
    fn operations(&self) -> &'static [&'static str];

    /// Does it. `None`: it has nothing to say.
    fn invoke(&self, request: BindingRequest)
    -> BoxFuture<'_, Result<Option<BindingResponse>, BindingError>>;
}
