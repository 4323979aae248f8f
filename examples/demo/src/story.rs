//! The story, chapter by chapter. A chapter that can not go on fails its checks and leaves the
//! rest to the next; only a stage that does not come up ends the demo.

mod attribution;
mod failures;
mod flows;
mod invocation;
mod membership;
mod mesh;
pub mod pipeline;
mod policy;
mod whoami;
mod wire;

use crate::{
    report::Report,
    stage::{Stage, StageOptions},
};
use anyhow::Result;
use serde_json::Value;

/// Plays all of it and returns the stage, still running.
pub async fn play(options: &StageOptions, report: &mut Report) -> Result<Stage> {
    report.note("everything below runs in network namespaces of its own and is removed at the end");
    let mut stage = Stage::new(options)?;
    membership::play(&mut stage, report).await?;
    invocation::play(&mut stage, report).await?;
    attribution::play(&mut stage, report).await?;
    policy::play(&mut stage, report).await?;
    wire::play(&mut stage, report).await?;
    mesh::play(&mut stage, report).await?;
    failures::play(&mut stage, report).await?;
    flows::play(&mut stage, report).await?;
    whoami::play(&mut stage, report).await?;
    Ok(stage)
}

/// A unique id for one request.
fn unique(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!(
        "{what}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The example apps' reply.
fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()))
}
