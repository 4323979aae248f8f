//! `weft-node`: the privileged process of a node.

use std::process::ExitCode;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use weft_node::{Config, Flags, NodeError};
use weft_service::{Context, Info};

const INFO: Info = Info {
    binary: "weft-node",
    name: "node",
    about: "The privileged process of a Weft node: BPF programs, namespaces, descriptors; starts weft-agent. SIGHUP replaces the agent without losing a request.",
    metrics_port: 7315,
    secrets: &[],
};

fn main() -> ExitCode {
    if let Err(error) = weft_node::join_machine_cgroups() {
        // Pods are served all the same; what is missing then is told by `weft status`.
        eprintln!("weft-node: cannot see the machine's cgroups: {error}");
    }
    weft_service::main::<Config, Flags, NodeError, _, _>(
        INFO,
        |config| &config.telemetry,
        |config: Config, context: Context| async move {
            let (replace, asked) = mpsc::channel(1);
            let mut hangups = signal(SignalKind::hangup()).map_err(|source| NodeError::Process {
                action: "listen for SIGHUP",
                source,
            })?;
            let listening = tokio::spawn(async move {
                while hangups.recv().await.is_some() {
                    // One replacement at a time; a second one asked for meanwhile follows.
                    let _ = replace.try_send(());
                }
            });
            let ended = weft_node::serve(config, context, asked).await;
            listening.abort();
            ended
        },
    )
}
