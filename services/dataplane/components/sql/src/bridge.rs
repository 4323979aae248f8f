//! A unix socket of this process by which sqlx reaches a server as the app: it can not be given connections.

use crate::common::Running;
use std::{io, path::Path};
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use weft_components_api::Net;

/// Connections at once; a pool has fewer.
const MAX: usize = 64;

/// The socket, until this is dropped.
pub(crate) struct Bridge {
    folder: TempDir,
    _running: Running,
}

impl Bridge {
    /// To a server; the socket is named as PostgreSQL's clients look for it.
    pub fn open(net: Net, host: String, port: u16) -> io::Result<Self> {
        // Nobody but this user can enter it.
        let folder = tempfile::Builder::new().prefix("weft-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{port}")))?;
        let running = Running::new(run(listener, net, host, port));
        Ok(Self {
            folder,
            _running: running,
        })
    }

    /// Where the socket is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

async fn run(listener: UnixListener, net: Net, host: String, port: u16) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = carried.join_next(), if !carried.is_empty() => {}
            accepted = listener.accept(), if carried.len() < MAX => match accepted {
                Ok((near, _)) => drop(carried.spawn(carry(near, net.clone(), host.clone(), port))),
                Err(error) => {
                    tracing::warn!(%error, "a component's connection can not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn carry(mut near: UnixStream, net: Net, host: String, port: u16) {
    match net.connect(&host, port).await {
        Ok(mut far) => {
            let _ = far.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
        Err(error) => tracing::debug!(host, port, %error, "a component's server can not be reached"),
    }
}
