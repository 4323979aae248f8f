//! The node's membership in placement: kept from the start, so that actors can be placed as soon as
//! apps host some.

use crate::upstream::Upstream;
use tonic::transport::Channel;
use weft_drain::Watcher;
use weft_placement_client::{Config, Link};

/// Keeps the stream until the drain, and tells `upstream` how it stands.
pub async fn follow(channel: Channel, upstream: Upstream, mut drain: Watcher) {
    let client = weft_placement_client::start(channel, Config::default(), Vec::new());
    let mut status = client.status();
    loop {
        match &status.borrow_and_update().link {
            Link::Up { .. } => upstream.connected(),
            Link::Down { reason, .. } if !reason.is_empty() => upstream.failed(reason),
            Link::Down { .. } => {}
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = drain.draining() => return,
        }
    }
}
