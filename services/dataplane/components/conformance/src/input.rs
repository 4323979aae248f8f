//! Input bindings.

use crate::SOON;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use weft_components_api::{BindingError, BindingEvent, BindingHandler, InputBinding};

/// An app that answers every other event with an error.
struct Moody(mpsc::UnboundedSender<BindingEvent>, parking_lot::Mutex<bool>);

impl BindingHandler for Moody {
    fn handle(&self, event: BindingEvent) -> BoxFuture<'_, Result<Bytes, BindingError>> {
        let _ = self.0.send(event);
        let mut fine = self.1.lock();
        *fine = !*fine;
        let answer = match *fine {
            true => Ok(Bytes::new()),
            false => Err(BindingError::Failed("the app does not like it".into())),
        };
        async move { answer }.boxed()
    }
}

/// A binding that makes events by itself: they come, whatever the app answers, until the reading is
/// dropped. `quiet` is longer than the pause between two. Answers the events seen.
pub async fn conforms(binding: &dyn InputBinding, quiet: Duration) -> Vec<BindingEvent> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let handler = Arc::new(Moody(sender, parking_lot::Mutex::new(false)));
    let reading = binding.read(handler).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(timeout(SOON, events.recv()).await.expect("no event").unwrap());
    }
    drop(reading);
    // One may have been on its way.
    while events.try_recv().is_ok() {}
    tokio::time::sleep(quiet).await;
    assert!(
        events.try_recv().is_err(),
        "an event after the end of the reading"
    );
    seen
}
