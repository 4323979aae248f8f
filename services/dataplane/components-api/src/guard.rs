//! What holds something open: until it is dropped.

use std::fmt;

/// A subscription, a reading, a watch: it ends when this is dropped.
pub struct Guard(Box<dyn Send + Sync>);

impl Guard {
    /// That ends with `guard`.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = &self.0;
        f.write_str("Guard")
    }
}
