//! A route that changes ten times a second, from its manifest on.

use anyhow::{Result, ensure};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use weft_demo::stage::Stage;

const EVERY: Duration = Duration::from_millis(100);
/// Fewer a second were no measurement.
const LEAST: f64 = 9.0;
/// The manifest.
pub const FILE: &str = "route.yaml";

/// The route of Service whoami in one of its forms: each is another change for nodes and proxy. It has a name
/// of its own: in the chain the published route of the gateway is there beside it.
pub fn route(number: u64) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: whoami-itself, namespace: default}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: whoami, port: 80}}]\n  rules:\n    \
         - filters:\n        - type: ResponseHeaderModifier\n          \
         responseHeaderModifier: {{set: [{{name: x-route, value: \"{number}\"}}]}}\n      \
         backendRefs: [{{name: whoami-v1, port: 80}}]\n"
    )
}

/// Writes the manifest again and again.
pub struct Changes {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<f64>>,
}

impl Changes {
    /// Begins.
    pub fn start(stage: &Stage) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (halt, file) = (stop.clone(), stage.resources().join(FILE));
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let mut every = tokio::time::interval(EVERY);
            let mut made: u32 = 0;
            while !halt.load(Ordering::Relaxed) {
                every.tick().await;
                made += 1;
                replace(&file, &route(made.into()))?;
            }
            Ok(f64::from(made) / begun.elapsed().as_secs_f64())
        });
        Self { stop, task }
    }

    /// Ends; answers how many there were a second.
    pub async fn stop(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let rate = self.task.await??;
        ensure!(rate >= LEAST, "only {rate:.1} changes of the route a second");
        Ok(rate)
    }
}

/// As a whole; the file keeps its owner.
fn replace(file: &PathBuf, text: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(file)?;
    // Hidden from who reads manifests until it has its name.
    let beside = file.with_extension("new");
    std::fs::write(&beside, text)?;
    std::os::unix::fs::chown(&beside, Some(owner.uid()), Some(owner.gid()))?;
    std::fs::rename(&beside, file)?;
    Ok(())
}
