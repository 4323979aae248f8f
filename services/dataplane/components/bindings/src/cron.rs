//! `bindings.cron`: an event at each moment of a schedule.

use crate::schedule::Schedule;
use futures::{FutureExt, future::BoxFuture};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::task::AbortHandle;
use weft_components_api::{
    BindingError, BindingEvent, BindingHandler, Block, Component, Driver, Field, InitError, InputBinding,
    Instance, Reading, Schema, time::rfc3339,
};

/// A long wait is waited in pieces, so that a clock that is set is noticed.
const PIECE: Duration = Duration::from_secs(60);

/// The driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cron;

impl Driver for Cron {
    fn block(&self) -> Block {
        Block::Bindings
    }

    fn kind(&self) -> &'static str {
        "bindings.cron"
    }

    fn schema(&self) -> &'static Schema {
        &Schema {
            fields: &[Field {
                name: "schedule",
                required: true,
            }],
        }
    }

    fn open(&self, instance: Instance) -> BoxFuture<'_, Result<Component, InitError>> {
        async move {
            let text = instance.metadata.get("schedule").unwrap_or_default();
            let schedule: Schedule = text
                .parse()
                .map_err(|e| InitError::Failed(format!("invalid schedule format '{text}': {e}")))?;
            let binding = Binding {
                name: instance.name,
                schedule: Arc::new(schedule),
            };
            Ok(Component::Binding {
                input: Some(Arc::new(binding)),
                output: None,
            })
        }
        .boxed()
    }
}

struct Binding {
    name: String,
    schedule: Arc<Schedule>,
}

struct Stop(AbortHandle);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InputBinding for Binding {
    fn read(&self, handler: Arc<dyn BindingHandler>) -> BoxFuture<'_, Result<Reading, BindingError>> {
        let task = tokio::spawn(run(self.name.clone(), self.schedule.clone(), handler));
        async move { Ok(Reading::new(Stop(task.abort_handle()))) }.boxed()
    }
}

/// An event that the app has not answered when the next is due leaves that one out: events of an app
/// that hangs do not pile up.
async fn run(name: String, schedule: Arc<Schedule>, handler: Arc<dyn BindingHandler>) {
    loop {
        wait(&schedule).await;
        let now = OffsetDateTime::now_utc();
        let event = BindingEvent {
            data: bytes::Bytes::new(),
            metadata: vec![
                ("timeZone".into(), "UTC".into()),
                ("readTimeUTC".into(), rfc3339(now.into())),
            ],
        };
        if let Err(error) = handler.handle(event).await {
            tracing::warn!(binding = name, %error, "the app did not take an event");
        }
    }
}

async fn wait(schedule: &Schedule) {
    if let Schedule::Every(pause) = schedule {
        return tokio::time::sleep(*pause).await;
    }
    loop {
        let now = OffsetDateTime::now_utc();
        let Some(next) = schedule.next(now) else {
            return std::future::pending().await;
        };
        let rest = Duration::try_from(next - now).unwrap_or_default();
        if rest <= PIECE {
            return tokio::time::sleep(rest).await;
        }
        tokio::time::sleep(PIECE).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_components_conformance::{input, instance};

    async fn open(schedule: &str) -> Result<Arc<dyn InputBinding>, InitError> {
        match Cron.open(instance("tick", &[("schedule", schedule)])).await? {
            Component::Binding { input, output } => {
                assert!(output.is_none());
                Ok(input.unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        for schedule in ["@every 1s", "* * * * * *"] {
            let binding = open(schedule).await.unwrap();
            let events = input::conforms(&*binding, Duration::from_secs(5)).await;
            let names: Vec<&str> = events[0].metadata.iter().map(|(k, _)| k.as_str()).collect();
            assert_eq!(names, ["timeZone", "readTimeUTC"]);
        }
    }

    #[tokio::test]
    async fn a_wrong_schedule_is_said() {
        let error = open("every second").await.err().unwrap().to_string();
        assert_eq!(
            error,
            "invalid schedule format 'every second': expected 5 to 6 fields, found 2: \"every second\""
        );
    }
}
