//! Sockets across namespaces: marking the node's own, and closing those whose backend is gone.

use crate::{
    NodeError,
    namespace::{Entrance, Namespace},
};
use std::{os::fd::AsFd, os::fd::OwnedFd, sync::Arc, time::Duration};
use weft_bpf::{Closer, Gone, Kernel, NamespaceSockets, OwnSockets};
use weft_handoff::{GoneBackend, Transport};

/// After this, calls that were under way when a backend went are sockets that can be seen: between
/// a program's choice and the socket's entry in the kernel's tables there is nothing to wait for.
pub(crate) const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the kernel's maps tell of sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    closer: Closer,
    own: OwnSockets,
}

impl Sockets {
    pub(crate) fn open(kernel: &Kernel) -> Result<Self, weft_bpf::Error> {
        Ok(Self {
            closer: kernel.closer()?,
            own: kernel.own_sockets()?,
        })
    }

    /// The programs leave these alone from now on.
    pub(crate) fn mark(&self, sockets: &[OwnedFd]) -> Result<(), NodeError> {
        Ok(sockets
            .iter()
            .try_for_each(|socket| self.own.mark(socket.as_fd()))?)
    }

    /// Closes what is meant in these namespaces and says how many sockets that were. A namespace that
    /// cannot be looked into is told in the log: one that is gone has no sockets.
    pub(crate) async fn close(
        self: &Arc<Self>,
        entrance: &Entrance,
        namespaces: &[Arc<Namespace>],
        gone: &Arc<[Gone]>,
    ) -> usize {
        let mut closed = 0;
        for namespace in namespaces {
            let opened = entrance.run(namespace, || {
                NamespaceSockets::open().map_err(|source| NodeError::Process {
                    action: "look into a namespace's sockets",
                    source,
                })
            });
            let mut sockets = match opened.await {
                Ok(sockets) => sockets,
                Err(error) => {
                    tracing::warn!(%error, "sockets to removed backends may stay open");
                    continue;
                }
            };
            let (all, gone) = (Arc::clone(self), Arc::clone(gone));
            // The socket stays with its namespace, and listing may take a while.
            let done = tokio::task::spawn_blocking(move || all.closer.close(&mut sockets, &gone));
            match done.await {
                Ok(Ok(count)) => closed += count,
                Ok(Err(error)) => {
                    tracing::warn!(%error, place = %namespace.place, "sockets to removed backends may stay open");
                }
                Err(error) => tracing::error!(%error, "closing sockets broke off"),
            }
        }
        closed
    }
}

/// As the kernel's part has it.
pub(crate) fn gone(backends: Vec<GoneBackend>) -> Arc<[Gone]> {
    backends
        .into_iter()
        .map(|gone| Gone {
            transport: match gone.transport {
                Transport::Tcp => weft_bpf::Transport::Tcp,
                Transport::Udp => weft_bpf::Transport::Udp,
            },
            backend: gone.backend,
            services: gone.services.into_iter().collect(),
        })
        .collect()
}
