//! What is written down of one request.

use crate::{
    Proxy,
    answer::Failure,
    way::{Sides, Source, Way},
};
use http::{Method, StatusCode};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};
use weft_flows::{Direction, Flow, Kind, MethodText, Party, Verdict, bounded_path};
use weft_model::NumericIdentity;

/// What the flows of one request have in common.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    started: Instant,
    time: SystemTime,
    method: MethodText,
    /// As it is forwarded; as it came until that is known.
    pub path: Box<str>,
    pub route: Option<Arc<str>>,
    pub trace_id: [u8; 16],
}

impl Record {
    pub fn new(method: &Method, path: &str) -> Self {
        Self {
            started: Instant::now(),
            time: SystemTime::now(),
            method: MethodText::new(method.as_str()),
            path: bounded_path(path),
            route: None,
            trace_id: [0; 16],
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    fn flow(&self, source: &Source, destination: &Arc<Party>, port: u16) -> Flow {
        Flow {
            time: self.time,
            verdict: Verdict::Forwarded,
            direction: Direction::Egress,
            kind: Kind::Http,
            source: source.party.clone(),
            destination: destination.clone(),
            destination_port: port,
            drop_reason: None,
            rule: None,
            route: self.route.clone(),
            method: self.method,
            path: self.path.clone(),
            status: 0,
            latency: self.started.elapsed(),
            via: None,
            caller_proof: Some(source.proof),
            trace_id: self.trace_id,
            traffic: None,
            packet: None,
        }
    }

    /// A request that was judged on its way to an endpoint, and how it ended. What happened after a
    /// side had let it through is the last side's to tell.
    pub fn judged(&self, proxy: &Proxy, way: &Way, sides: Sides, end: Result<StatusCode, Failure>) {
        let status = end.map_or_else(Failure::status, |status| status).as_u16();
        let mut sides = sides.0.into_iter().flatten().peekable();
        while let Some((direction, decision)) = sides.next() {
            let (mut verdict, mut reason) = match (&end, sides.peek()) {
                (Err(failure), None) => failure.end(),
                _ => (Verdict::Forwarded, None),
            };
            if verdict == Verdict::Forwarded && decision.audited.is_some() {
                (verdict, reason) = (Verdict::Audit, decision.audited);
            }
            proxy.flows.record(Flow {
                verdict,
                direction,
                drop_reason: reason,
                rule: decision.rule,
                status,
                via: way.via,
                ..self.flow(&way.source, &way.destination, way.goal.address().port())
            });
        }
    }

    /// A request that never came to an endpoint: `asked` is what it was for. A route has answered it,
    /// or it can not go on.
    pub fn answered_here(
        &self,
        proxy: &Proxy,
        source: &Source,
        asked: Asked<'_>,
        end: Result<StatusCode, Failure>,
    ) {
        let (verdict, drop_reason) = match end {
            Ok(_) => (Verdict::Forwarded, None),
            Err(failure) => failure.end(),
        };
        let party = Arc::new(Party {
            namespace: asked.namespace.into(),
            workload: asked.name.into(),
            app_id: Arc::default(),
            identity: NumericIdentity::UNKNOWN,
            spiffe_id: Arc::default(),
            address: asked.address,
            node: Arc::default(),
        });
        let direction = match source.context {
            Some(_) => Direction::Egress,
            None => Direction::Ingress,
        };
        proxy.flows.record(Flow {
            verdict,
            drop_reason,
            direction,
            status: end.map_or_else(Failure::status, |status| status).as_u16(),
            ..self.flow(source, &party, asked.port)
        });
    }
}

/// What a request asked for, where no endpoint is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub address: Option<IpAddr>,
    pub port: u16,
}
