//! Running commands to their end, and waiting for what comes about.

use anyhow::{Result, bail};
use std::{process::Command, time::Duration};
use tokio::time::Instant;

/// Runs a command and returns what it printed; its error output is the failure's text.
pub async fn output(mut command: Command) -> Result<String> {
    let name = format!("{:?}", command.get_program());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        bail!(
            "{name} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Asks until there is an answer or the time is over; the last refusal is the failure's text.
pub async fn wait_for<T, F, Fut>(what: &str, patience: Duration, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let end = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end => {
                bail!(
                    "{what} did not come about within {} s: {error:#}",
                    patience.as_secs()
                )
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
