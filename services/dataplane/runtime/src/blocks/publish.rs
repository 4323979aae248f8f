//! Publishing, whatever API it is asked for by.

use super::{
    BlockError, Blocks,
    app::Broker,
    cloud_event::{self, Publication},
    record::{Record, failure},
};
use crate::AppContext;
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc};
use weft_components_api::Message;
use weft_flows::Kind;

/// Entries of one bulk.
const MAX_ENTRIES: usize = 10_000;

/// One app at one topic of one of its brokers.
pub(crate) struct Publisher<'a> {
    blocks: &'a Blocks,
    app: &'a AppContext,
    broker: Arc<Broker>,
    topic: &'a str,
    metadata: Vec<(String, String)>,
    raw: bool,
    trace: Trace,
}

/// The trace that a call belongs to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace {
    pub id: [u8; 16],
    pub parent: String,
    pub state: String,
}

impl Trace {
    /// That of a request: its own, or a new one.
    pub fn of(headers: &mut http::HeaderMap) -> Self {
        let id = weft_l7::trace::trace(headers);
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        Self {
            id,
            parent: text("traceparent"),
            state: text("tracestate"),
        }
    }
}

/// One of a bulk.
#[derive(Debug)]
pub(crate) struct Entry {
    pub id: String,
    pub data: Bytes,
    pub content_type: String,
    pub metadata: Option<BTreeMap<String, String>>,
}

/// As Go reads a truth value.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "" | "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Whether metadata say that content is published as it is.
pub(crate) fn is_raw(metadata: &[(String, String)]) -> Result<bool, String> {
    let text = metadata
        .iter()
        .find(|(key, _)| key == "rawPayload")
        .map_or("", |(_, v)| v.as_str());
    truth(text).ok_or_else(|| format!("rawPayload value must be a valid boolean: actual is '{text}'"))
}

impl<'a> Publisher<'a> {
    /// Finds the broker and looks at what the request says of itself.
    pub fn new(
        blocks: &'a Blocks,
        app: &'a AppContext,
        name: &str,
        topic: &'a str,
        metadata: Vec<(String, String)>,
        trace: Trace,
    ) -> Result<Self, BlockError> {
        if name.is_empty() {
            return Err(BlockError::pubsub_name_empty(&metadata));
        }
        let Some(broker) = blocks.of(app).brokers.get(name).cloned() else {
            return Err(BlockError::pubsub_not_found(name, &metadata));
        };
        if topic.is_empty() {
            return Err(BlockError::topic_empty(name, &metadata));
        }
        let raw = is_raw(&metadata).map_err(|e| BlockError::publish_metadata(name, &metadata, &e))?;
        Ok(Self {
            blocks,
            app,
            broker,
            topic,
            metadata,
            raw,
            trace,
        })
    }

    fn app_id(&self) -> &str {
        &self.app.party().app_id
    }

    fn message(
        &self,
        data: &Bytes,
        content_type: &str,
        metadata: Vec<(String, String)>,
    ) -> Result<Message, BlockError> {
        let name = &self.broker.name;
        let data = match self.raw {
            true => data.clone(),
            false => {
                let publication = Publication {
                    app_id: self.app_id(),
                    pubsub: name,
                    topic: self.topic,
                    content_type,
                    data,
                    traceparent: &self.trace.parent,
                    tracestate: &self.trace.state,
                };
                let event = cloud_event::wrap(&publication, &metadata);
                let mut event = event.map_err(|e| BlockError::cloud_event(name, self.app_id(), &e))?;
                if !self.broker.keeps_ttl() {
                    cloud_event::set_expiration(&mut event, &metadata);
                }
                serde_json::Value::from(event).to_string().into()
            }
        };
        Ok(Message {
            topic: self.broker.topic(self.topic),
            data,
            metadata,
        })
    }

    fn allowed(&self) -> Result<(), BlockError> {
        match self.broker.scopes.may_publish(self.topic) {
            true => Ok(()),
            false => Err(BlockError::publish_forbidden(
                &self.broker.name,
                self.topic,
                self.app_id(),
            )),
        }
    }

    async fn recorded<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, BlockError>>,
    ) -> Result<T, BlockError> {
        let party = &self.broker.party;
        let record = Record::call(
            Kind::Publish,
            self.app.party(),
            self.app.proof(),
            party,
            what,
            self.topic,
        );
        let done = work.await;
        let status = done.as_ref().map_or_else(|e| e.status().as_u16(), |_| 200);
        let record = record.traced(self.trace.id);
        record.end(&self.blocks.flows(), status, failure(status));
        done
    }

    /// One message.
    pub async fn publish(&self, data: &Bytes, content_type: &str) -> Result<(), BlockError> {
        let message = self.message(data, content_type, self.metadata.clone())?;
        let publish = async {
            self.allowed()?;
            let done = self.broker.broker.publish(message).await;
            done.map_err(|e| BlockError::publish(&self.broker.name, self.topic, &e.to_string()))
        };
        self.recorded("publish", publish).await
    }

    /// The error of a body that can not be read.
    pub fn unreadable(&self, error: &str) -> BlockError {
        BlockError::publish(&self.broker.name, self.topic, error)
    }

    /// The error of a bulk that can not be read.
    pub fn unreadable_bulk(&self, error: &str) -> BlockError {
        BlockError::unreadable_events(&self.broker.name, self.topic, self.app_id(), error)
    }

    /// The error of an entry whose content is not of the kind that it says.
    pub fn mismatch(&self, error: &str) -> BlockError {
        BlockError::envelope(&self.broker.name, self.topic, self.app_id(), error)
    }

    /// Several messages; answers which were not taken, and why.
    pub async fn publish_bulk(&self, entries: Vec<Entry>) -> Result<Vec<(String, String)>, BlockError> {
        let name = &self.broker.name;
        if entries.len() > MAX_ENTRIES {
            return Err(self.unreadable_bulk(&format!("more than {MAX_ENTRIES} entries")));
        }
        let mut ids = Vec::with_capacity(entries.len());
        let mut messages = Vec::with_capacity(entries.len());
        let mut known = std::collections::HashSet::with_capacity(entries.len());
        for entry in entries {
            if entry.id.is_empty() || !known.insert(entry.id.clone()) {
                return Err(BlockError::entries(name, self.topic, self.app_id()));
            }
            // An entry's own count more than the request's.
            let mut metadata: BTreeMap<String, String> = self.metadata.iter().cloned().collect();
            metadata.extend(entry.metadata.unwrap_or_default());
            let metadata = metadata.into_iter().collect();
            messages.push(self.message(&entry.data, &entry.content_type, metadata)?);
            ids.push(entry.id);
        }
        let publish = async {
            self.allowed()?;
            let done = self.broker.broker.bulk_publish(messages).await;
            let failed = ids.into_iter().zip(done);
            let failed = failed.filter_map(|(id, done)| Some((id, done.err()?.to_string())));
            Ok(failed.collect())
        };
        self.recorded("bulk-publish", publish).await
    }

    /// The error of a bulk of which not all was taken.
    pub fn incomplete(&self, failed: &[(String, String)]) -> BlockError {
        let texts: Vec<&str> = failed.iter().map(|(_, error)| error.as_str()).collect();
        BlockError::publish(&self.broker.name, self.topic, &texts.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_is_what_go_takes_for_true() {
        let raw = |text: &str| is_raw(&[("rawPayload".into(), text.into())]);
        assert_eq!(
            (raw("true"), raw("1"), raw("F"), raw("")),
            (Ok(true), Ok(true), Ok(false), Ok(false))
        );
        assert_eq!(is_raw(&[]), Ok(false));
        assert_eq!(
            raw("yes"),
            Err("rawPayload value must be a valid boolean: actual is 'yes'".into())
        );
    }
}
