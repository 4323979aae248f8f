//! The metrics of one process.

use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::ConstGauge},
    registry::Registry,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A registry under the prefix `weft_<service>`. Clones share.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// With the gauge `build_info` in place.
    pub fn new(service: &str) -> Self {
        let mut registry = Registry::with_prefix(format!("weft_{service}"));
        let version = vec![("version".into(), env!("CARGO_PKG_VERSION").into())];
        registry.sub_registry_with_labels(version.into_iter()).register(
            "build_info",
            "The running version",
            ConstGauge::new(1_i64),
        );
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Registers a metric, say a clone of a `Counter` or `Family`, under `weft_<service>_<name>`.
    pub fn register<M>(&self, name: &str, help: &str, metric: M)
    where
        M: prometheus_client::registry::Metric,
    {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register(name, help, metric);
    }

    /// Registers a family and returns it.
    pub fn family<L, M>(&self, name: &str, help: &str) -> Family<L, M>
    where
        Family<L, M>: prometheus_client::registry::Metric + Clone + Default,
    {
        let family = Family::<L, M>::default();
        self.register(name, help, family.clone());
        family
    }

    /// Registers what makes its metrics when they are asked for. Their names get the prefix as well.
    pub fn register_collector(&self, collector: Box<dyn prometheus_client::collector::Collector>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register_collector(collector);
    }

    /// The OpenMetrics text of everything registered.
    pub fn text(&self) -> String {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing to a string fails only if a metric itself refuses to be encoded.
        if encode(&mut text, &registry).is_err() {
            text.clear();
        }
        text
    }
}
