//! One call on its way: judged, sent, and written down as flows.

use crate::{
    AppContext, ChannelError, Decision, Endpoint, INVOKE_PORT, Place, Question, Runtime, error::ApiError,
};
use http::{Request, Response, Version, header};
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use weft_flows::{Direction, DropReason, Flow, Kind, MethodText, Party, Proof, Verdict, Via, bounded_path};
use weft_l7::{Body, SendError, SendFailure, hygiene};

/// What the flows of one call have in common.
pub(crate) struct Call {
    started: Instant,
    time: SystemTime,
    method: MethodText,
    path: Arc<str>,
    trace_id: [u8; 16],
    /// Id of the calling workload, whose egress policy it is; empty when another node judged that.
    workload: Arc<str>,
    source: Arc<Party>,
    proof: Proof,
    /// Headers that claimed what was not so.
    pub forged: Vec<&'static str>,
}

/// A call that got no answer from the app.
pub(crate) enum Failed {
    /// By policy.
    Refused,
    /// On the way; with the request if nothing of it was sent.
    Broken(Box<SendError>),
    /// By the proxy, on its way to the app behind a shared endpoint.
    Beyond(ChannelError),
}

impl Failed {
    /// The request, if nothing of it was sent.
    pub fn take_unsent(&mut self) -> Option<Request<Body>> {
        match self {
            Self::Refused | Self::Beyond(_) => None,
            Self::Broken(e) => e.request.take(),
        }
    }
}

/// How one side's decision ended.
struct End {
    verdict: Verdict,
    reason: Option<DropReason>,
    status: u16,
}

impl End {
    const REFUSED: u16 = 403;
    const BROKEN: u16 = 500;

    fn answered(status: u16) -> Self {
        Self {
            verdict: Verdict::Forwarded,
            reason: None,
            status,
        }
    }

    fn of(result: &Result<Response<Body>, Failed>) -> Self {
        let (verdict, reason, status) = match result {
            Ok(response) => return Self::answered(response.status().as_u16()),
            Err(Failed::Refused) => (Verdict::Dropped, DropReason::PolicyDenied, Self::REFUSED),
            // This side let it through; what refused it there is the proxy's to tell.
            Err(Failed::Beyond(ChannelError::Denied)) => return Self::answered(Self::REFUSED),
            Err(Failed::Beyond(ChannelError::Unreachable(_))) => {
                (Verdict::Error, DropReason::UpstreamFailed, Self::BROKEN)
            }
            Err(Failed::Broken(e)) => match e.failure {
                SendFailure::Overloaded(_) => (Verdict::Error, DropReason::Overloaded, 503),
                SendFailure::Broken(_) => (Verdict::Error, DropReason::UpstreamFailed, Self::BROKEN),
                SendFailure::Connect(_) | SendFailure::ConnectTimeout(_) => {
                    (Verdict::Error, DropReason::Unreachable, Self::BROKEN)
                }
            },
        };
        Self {
            verdict,
            reason: Some(reason),
            status,
        }
    }
}

impl Call {
    /// Of a request whose path is already the one that is forwarded.
    pub fn new<B>(
        request: &Request<B>,
        trace_id: [u8; 16],
        workload: Arc<str>,
        source: Arc<Party>,
        proof: Proof,
    ) -> Self {
        Self {
            started: Instant::now(),
            time: SystemTime::now(),
            method: MethodText::new(request.method().as_str()),
            path: bounded_path(request.uri().path()),
            trace_id,
            workload,
            source,
            proof,
            forged: Vec::new(),
        }
    }

    /// What its flows have in common; the latency is until now.
    fn flow(&self, direction: Direction, destination: Arc<Party>) -> Flow {
        Flow {
            time: self.time,
            method: self.method,
            path: self.path.clone(),
            latency: self.started.elapsed(),
            caller_proof: Some(self.proof),
            trace_id: self.trace_id,
            forged: self.forged.as_slice().into(),
            ..Flow::new(
                Kind::Invoke,
                direction,
                self.source.clone(),
                destination,
                INVOKE_PORT,
            )
        }
    }
}

impl Runtime {
    /// Judges the callee's side of a call and delivers it to the app on this node.
    pub(crate) async fn deliver(
        &self,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        via: Via,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failed> {
        let decision = self.judge_call(call, endpoint, Direction::Ingress, call.proof != Proof::PortToken);
        if decision.refused.is_some() {
            self.refuse(call, endpoint, Direction::Ingress, via, decision);
            return Err(Failed::Refused);
        }
        let result = match self.env.apps.remote(endpoint, &call.source) {
            Some(remote) => {
                let _counted = endpoint.begin();
                remote.send(request).await.map_err(Failed::Beyond)
            }
            None => {
                request.headers_mut().insert(header::HOST, endpoint.host());
                let pool = self.pools.local(&self.env.apps, endpoint);
                answered(pool.send(request, Some(endpoint.begin())).await)
            }
        };
        self.write_down(
            call,
            endpoint,
            Direction::Ingress,
            via,
            decision,
            End::of(&result),
        );
        result
    }

    /// Judges the caller's side of a call, and takes it to the app, here or on another node.
    pub(crate) async fn send(
        &self,
        app: &Arc<AppContext>,
        call: &Call,
        endpoint: &Arc<Endpoint>,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failed> {
        let (via, authenticated) = match endpoint.place() {
            Place::Local { .. } => (Via::SameNode, call.proof != Proof::PortToken),
            Place::Remote { .. } => (Via::Tunnel, true),
        };
        let decision = self.judge_call(call, endpoint, Direction::Egress, authenticated);
        if decision.refused.is_some() {
            self.refuse(call, endpoint, Direction::Egress, via, decision);
            return Err(Failed::Refused);
        }
        if via == Via::SameNode {
            let result = self.deliver(call, endpoint, via, request).await;
            // Egress let it through; what happened then is the ingress side's to tell.
            let end = End::answered(End::of(&result).status);
            self.write_down(call, endpoint, Direction::Egress, via, decision, end);
            return result;
        }
        let pool = self.pools.remote(&self.env.tunnels, app, endpoint);
        let result = answered(pool.send(request, Some(endpoint.begin())).await);
        if let Err(Failed::Broken(e)) = &result {
            tracing::warn!(
                caller = %app.workload(), callee = %endpoint.workload(), error = %e.failure,
                "a call to another node failed"
            );
        }
        self.write_down(call, endpoint, Direction::Egress, via, decision, End::of(&result));
        result
    }

    fn judge_call(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        direction: Direction,
        authenticated: bool,
    ) -> Decision {
        let workload = match direction {
            Direction::Egress => &call.workload,
            Direction::Ingress => endpoint.workload(),
        };
        self.env.judge.judge(&Question {
            direction,
            workload,
            source: &call.source,
            destination: endpoint.party(),
            port: INVOKE_PORT,
            authenticated,
        })
    }

    fn refuse(&self, call: &Call, endpoint: &Endpoint, direction: Direction, via: Via, decision: Decision) {
        let end = End {
            verdict: Verdict::Dropped,
            reason: decision.refused,
            status: End::REFUSED,
        };
        self.write_down(call, endpoint, direction, via, decision, end);
    }

    fn write_down(
        &self,
        call: &Call,
        endpoint: &Endpoint,
        direction: Direction,
        via: Via,
        decision: Decision,
        end: End,
    ) {
        let (verdict, reason) = match (end.verdict, decision.audited) {
            (Verdict::Forwarded, Some(reason)) => (Verdict::Audit, Some(reason)),
            (verdict, _) => (verdict, end.reason),
        };
        self.env.flows.record(Flow {
            verdict,
            drop_reason: reason,
            rule: decision.rule,
            status: end.status,
            via: Some(via),
            ..call.flow(direction, endpoint.party().clone())
        });
    }

    /// A call to nobody: there is no endpoint to judge or to name but what was asked for.
    pub(crate) fn write_down_unknown(
        &self,
        call: &Call,
        destination: Party,
        reason: DropReason,
        status: u16,
    ) {
        self.env.flows.record(Flow {
            verdict: Verdict::Error,
            drop_reason: Some(reason),
            status,
            ..call.flow(Direction::Egress, Arc::new(destination))
        });
    }
}

/// The answer as it may be passed on.
fn answered(sent: Result<Response<Body>, Box<SendError>>) -> Result<Response<Body>, Failed> {
    match sent {
        Ok(mut response) => {
            if hygiene::strip_hop_by_hop(response.headers_mut()).is_err() {
                // It names its hop-by-hop headers in a way that can not be read: none are known to
                // be meant for the caller.
                response.headers_mut().remove(header::CONNECTION);
            }
            *response.version_mut() = Version::HTTP_11;
            Ok(response)
        }
        Err(e) => Err(Failed::Broken(e)),
    }
}

/// What the caller is told.
pub(crate) fn told(failed: &Failed, app_id: &str) -> ApiError {
    let e = match failed {
        Failed::Refused => return ApiError::denied(app_id),
        Failed::Beyond(error) => return beyond(error, app_id),
        Failed::Broken(e) => e,
    };
    match e.failure {
        SendFailure::Overloaded(_) => ApiError::overloaded(app_id),
        SendFailure::Broken(_) => {
            ApiError::unavailable(app_id, "the app closed the connection before it answered")
        }
        SendFailure::Connect(_) | SendFailure::ConnectTimeout(_) => {
            ApiError::unavailable(app_id, "the app can not be reached")
        }
    }
}

/// What the caller is told of the way behind a shared endpoint, or to a Service.
pub(crate) fn beyond(error: &ChannelError, app_id: &str) -> ApiError {
    match error {
        ChannelError::Denied => ApiError::denied(app_id),
        ChannelError::Unreachable(what) => ApiError::unavailable(app_id, what),
    }
}
