//! A flow for each call of a building block: who, which component, and what came of it.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use weft_flows::{
    Direction, DropReason, Flow, FlowLog, Kind, MethodText, Party, Proof, Verdict, Via, bounded_path,
};

/// Of one call on its way.
pub(crate) struct Record {
    started: Instant,
    flow: Flow,
}

impl Record {
    /// An app calls a component: `what` is done with `object`, a store's operation or a topic.
    pub fn call(
        kind: Kind,
        app: &Arc<Party>,
        proof: Proof,
        component: &Arc<Party>,
        what: &str,
        object: &str,
    ) -> Self {
        let flow = Flow::new(kind, Direction::Egress, app.clone(), component.clone(), 0);
        Self::of(flow, Some(proof), what, object)
    }

    /// A component calls an app, on its port.
    pub fn delivery(
        kind: Kind,
        component: &Arc<Party>,
        app: &Arc<Party>,
        port: u16,
        what: &str,
        path: &str,
    ) -> Self {
        let flow = Flow::new(kind, Direction::Ingress, component.clone(), app.clone(), port);
        Self::of(flow, None, what, path)
    }

    fn of(flow: Flow, proof: Option<Proof>, what: &str, object: &str) -> Self {
        let slash = if object.starts_with('/') { "" } else { "/" };
        Self {
            started: Instant::now(),
            flow: Flow {
                time: SystemTime::now(),
                method: MethodText::new(what),
                path: bounded_path(&format!("{slash}{object}")),
                via: Some(Via::SameNode),
                caller_proof: proof,
                ..flow
            },
        }
    }

    /// With the trace that it belongs to.
    pub fn traced(mut self, trace_id: [u8; 16]) -> Self {
        self.flow.trace_id = trace_id;
        self
    }

    /// It is over, with this status of HTTP; `failed` says why, unless it was well.
    pub fn end(mut self, log: &FlowLog, status: u16, failed: Option<DropReason>) {
        self.flow.latency = self.started.elapsed();
        self.flow.status = status;
        self.flow.drop_reason = failed;
        self.flow.verdict = match failed {
            None => Verdict::Forwarded,
            Some(DropReason::PolicyDenied) => Verdict::Dropped,
            Some(_) => Verdict::Error,
        };
        log.record(self.flow);
    }
}

/// How a status of HTTP is told in a flow: what the caller did wrong is an answer as any other.
pub(crate) fn failure(status: u16) -> Option<DropReason> {
    match status {
        403 => Some(DropReason::PolicyDenied),
        500.. => Some(DropReason::UpstreamFailed),
        _ => None,
    }
}
