//! An app's connections, made for its components.

use super::{Slot, Surroundings};
use crate::AppDialer;
use futures::{FutureExt, future::BoxFuture};
use std::{
    io,
    sync::{Arc, Weak},
};
use tokio::net::TcpStream;
use weft_components_api::Dialer;

/// Dials as one of the app's workloads on this node.
pub(super) struct AppNet {
    slot: Weak<Slot>,
    apps: Arc<dyn AppDialer>,
}

impl AppNet {
    pub fn new(slot: &Arc<Slot>, surroundings: &Surroundings) -> Self {
        Self {
            slot: Arc::downgrade(slot),
            apps: surroundings.apps.clone(),
        }
    }
}

impl Dialer for AppNet {
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let context = self.slot.upgrade().and_then(|slot| {
            let replicas = slot.replicas.lock();
            replicas.values().next().map(|replica| replica.context.clone())
        });
        match context {
            Some(context) => self.apps.egress(&context, host, port),
            None => {
                let error = io::Error::new(io::ErrorKind::NotConnected, "no workload of the app is here");
                std::future::ready(Err(error)).boxed()
            }
        }
    }
}
