//! The control services as this agent sees them: for `weft status` and the metrics.

use crate::subscription::explain;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weft_drain::Watcher;
use weft_proto::weft::dataplane::v1 as pb;

/// A service that is called now and then only is asked so often whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// One service's connection. Clones share.
#[derive(Debug, Clone)]
pub struct Upstream {
    name: &'static str,
    address: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    error: String,
}

impl Upstream {
    /// Not connected yet.
    pub fn new(name: &'static str, address: &str) -> Self {
        Self {
            name,
            address: address.into(),
            state: Arc::default(),
        }
    }

    /// `identity`, `policy` or `placement`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the last contact was good.
    pub fn is_connected(&self) -> bool {
        self.state.lock().connected
    }

    /// A call came through. Says so in the log when it did not before.
    pub fn connected(&self) {
        let mut state = self.state.lock();
        if !state.connected {
            tracing::info!(service = self.name, address = %self.address, "connected");
        }
        *state = State {
            connected: true,
            error: String::new(),
        };
    }

    /// A call failed. Each new reason is logged once.
    pub fn failed(&self, error: &str) {
        let mut state = self.state.lock();
        if state.connected || state.error != error {
            tracing::warn!(service = self.name, address = %self.address, error, "not connected; what runs goes on with the last good state");
        }
        *state = State {
            connected: false,
            error: error.to_owned(),
        };
    }

    /// Asks the service how it is, now and then, until the drain: for one that no stream is kept to.
    pub async fn watch(self, channel: Channel, drain: Watcher) {
        let asking = async {
            let mut client = HealthClient::new(channel);
            loop {
                let asked = client.check(HealthCheckRequest::default());
                match tokio::time::timeout(ASK_EVERY, asked).await {
                    Ok(Ok(_)) => self.connected(),
                    Ok(Err(status)) => self.failed(&explain(&status)),
                    Err(_) => self.failed(&format!("no answer within {} s", ASK_EVERY.as_secs())),
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        let _: Option<()> = drain.until_draining(asking).await;
    }

    /// As the status API tells it.
    pub fn status(&self) -> pb::Upstream {
        let state = self.state.lock();
        pb::Upstream {
            name: self.name.into(),
            address: self.address.to_string(),
            connected: state.connected,
            error: state.error.clone(),
        }
    }
}
