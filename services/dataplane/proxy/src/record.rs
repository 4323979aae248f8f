//! What is written down of one request.

use crate::{
    Proxy,
    answer::Failure,
    way::{Sides, Source, Way},
};
use http::{Request, StatusCode, Version};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use weft_flows::{Direction, Flow, HttpVersion, Kind, MethodText, Party, ServiceName, Verdict};
use weft_l7::Body;
use weft_model::NumericIdentity;

/// What the flows of one request have in common.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    started: Instant,
    time: SystemTime,
    method: MethodText,
    version: HttpVersion,
    source_port: u16,
    service: Option<Arc<ServiceName>>,
    /// For whom it is, as the client wrote it.
    pub authority: Arc<str>,
    /// Headers that claimed what was not so.
    pub forged: Vec<&'static str>,
    /// As it is forwarded; empty until that is known.
    pub path: Arc<str>,
    pub route: Option<Arc<str>>,
    pub trace_id: [u8; 16],
}

impl Record {
    pub fn new(request: &Request<Body>, source_port: u16, service: Option<Arc<ServiceName>>) -> Self {
        Self {
            started: Instant::now(),
            time: SystemTime::now(),
            method: MethodText::new(request.method().as_str()),
            version: match request.version() {
                Version::HTTP_10 => HttpVersion::Http10,
                Version::HTTP_2 => HttpVersion::Http2,
                _ => HttpVersion::Http11,
            },
            source_port,
            service,
            authority: Arc::default(),
            forged: Vec::new(),
            path: Arc::default(),
            route: None,
            trace_id: [0; 16],
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    fn flow(
        &self,
        source: &Source,
        direction: Direction,
        destination: &Arc<Party>,
        port: u16,
        latency: Duration,
    ) -> Flow {
        let (from, to) = (source.party.clone(), destination.clone());
        Flow {
            route: self.route.clone(),
            method: self.method,
            path: self.path.clone(),
            latency,
            caller_proof: Some(source.proof),
            trace_id: self.trace_id,
            source_port: self.source_port,
            service: self.service.clone(),
            version: self.version,
            authority: self.authority.clone(),
            forged: self.forged.as_slice().into(),
            ..Flow::at(self.time, Kind::Http, direction, from, to, port)
        }
    }

    /// A request that was judged on its way to an endpoint, and how it ended. What happened after a
    /// side had let it through is the last side's to tell.
    pub fn judged(&self, proxy: &Proxy, way: &Way, sides: Sides, end: Result<StatusCode, Failure>) {
        let status = end.unwrap_or_else(Failure::status).as_u16();
        let latency = self.started.elapsed();
        let there = sides.refused_there;
        let mut sides = sides.said.into_iter().flatten().peekable();
        while let Some((direction, decision)) = sides.next() {
            let (mut verdict, mut reason) = match (&end, sides.peek()) {
                (Err(failure), None) => failure.end(),
                _ => (Verdict::Forwarded, None),
            };
            if verdict == Verdict::Forwarded && decision.audited.is_some() {
                (verdict, reason) = (Verdict::Audit, decision.audited);
            }
            let there = there.clone().filter(|_| sides.peek().is_none());
            proxy.flows.record(Flow {
                verdict,
                drop_reason: reason,
                rule_of_callee: there.is_some(),
                rule: there.or(decision.rule),
                status,
                via: way.via,
                ..self.flow(
                    &way.source,
                    direction,
                    &way.destination,
                    way.goal.address().port(),
                    latency,
                )
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
            status: end.unwrap_or_else(Failure::status).as_u16(),
            ..self.flow(source, direction, &party, asked.port, self.started.elapsed())
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
