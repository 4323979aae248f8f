//! Flows into a file, for log shippers.

use crate::{agent::Shared, config::ExportConfig};
use futures::FutureExt;
use std::{path::PathBuf, sync::Arc, time::Duration};
use weft_flows::hubble::{Export, ExportError, Filters, Mask, Rotation, Stream, json};
use weft_proto::hubble::observer::GetFlowsResponse;

/// Flows that are written in one go.
const BATCH: usize = 128;
/// After a failure to write.
const PAUSE: Duration = Duration::from_secs(10);

/// Whether the configuration can be used, and what of it can not.
pub fn check(config: &ExportConfig) -> Result<(), String> {
    if config.file_max_size_mb == 0 {
        return Err("hubble_export.file_max_size_mb: a file of 0 MB holds nothing".into());
    }
    filters(config).map(|_| ())
}

fn filters(config: &ExportConfig) -> Result<(Filters, Option<Mask>), String> {
    let read = |name: &str, text: &str| json::filters(text).map_err(|e| format!("{name}: {e}"));
    let allow = read("hubble_export.allowlist", &config.allowlist)?;
    let deny = read("hubble_export.denylist", &config.denylist)?;
    let filters = Filters::new(&allow, &deny).map_err(|e| e.to_string())?;
    let mask = Mask::new(&config.fieldmask).map_err(|e| e.to_string())?;
    Ok((filters, mask))
}

/// Writes each flow from now on, until the drain. What can not be written is lost and told once; it is
/// tried again.
pub async fn run(shared: Arc<Shared>, config: ExportConfig) {
    let Some(path) = config.file_path.clone() else {
        return;
    };
    let (filters, mask) = match filters(&config) {
        Ok(read) => read,
        // The configuration was checked when it was read.
        Err(error) => return tracing::error!(error, "flows are not exported"),
    };
    let rotation = Rotation {
        max_bytes: config.file_max_size_mb.saturating_mul(1024 * 1024),
        max_backups: config.file_max_backups,
    };
    let mut drain = shared.drain.clone();
    let mut stream = Stream::following(&shared.flows, super::observer(&shared), filters, mask);
    let mut open: Option<Export> = None;
    let mut is_told = false;
    loop {
        let first = tokio::select! {
            first = stream.next() => first,
            () = drain.draining() => return,
        };
        let Some(first) = first else { return };
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match stream.next().now_or_never() {
                Some(Some(response)) => batch.push(response),
                _ => break,
            }
        }
        let (taken, path) = (open.take(), path.clone());
        let written = tokio::task::spawn_blocking(move || write(taken, path, rotation, batch)).await;
        match written {
            Ok(Ok(export)) => {
                if std::mem::take(&mut is_told) {
                    tracing::info!(path = %config.shown(), "flows are exported again");
                }
                open = Some(export);
            }
            Ok(Err(error)) => {
                if !is_told {
                    tracing::warn!(%error, "flows are not exported; trying again every {} s", PAUSE.as_secs());
                }
                is_told = true;
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = drain.draining() => return,
                }
            }
            Err(error) => return tracing::error!(%error, "flows are not exported any more"),
        }
    }
}

fn write(
    open: Option<Export>,
    path: PathBuf,
    rotation: Rotation,
    batch: Vec<GetFlowsResponse>,
) -> Result<Export, ExportError> {
    let mut export = match open {
        Some(export) => export,
        None => Export::open(&path, rotation)?,
    };
    for response in batch {
        export.write(response)?;
    }
    Ok(export)
}
