//! Which parts of a process are ready.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Named parts and whether each is ready. Clones share. A process is ready when all are.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Health {
    /// Says that `part` exists and is not ready, with the reason that operators see.
    pub fn waiting(&self, part: &'static str, reason: impl Into<String>) {
        self.set(part, Err(reason.into()));
    }

    /// Says that `part` is ready.
    pub fn ready(&self, part: &'static str) {
        self.set(part, Ok(()));
    }

    fn set(&self, part: &'static str, state: Result<(), String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// All parts in order of their names.
    pub fn parts(&self) -> Vec<(&'static str, Result<(), String>)> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, state)| (*name, state.clone())).collect()
    }

    /// Whether all parts are ready.
    pub fn is_ready(&self) -> bool {
        self.parts().iter().all(|(_, state)| state.is_ok())
    }
}
