//! Copies of requests whose answers nobody waits for.

use crate::{
    forward::again,
    head::Head,
    outgoing::{Goals, Outgoing},
    record::Record,
    served::Served,
    way::Source,
};
use http::Request;
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::time::timeout;
use weft_l7::Body;
use weft_route::spec::BackendRef;

impl Served {
    /// Sends copies of a request, as far as there is room for them and its body is short enough to be
    /// kept. They are judged and written down like any other request.
    pub(crate) fn mirror(
        self: &Arc<Self>,
        source: &Arc<Source>,
        mirrors: &[BackendRef],
        head: &Head,
        request: &Request<Body>,
        record: &Record,
    ) {
        for service in mirrors {
            let Ok(place) = self.proxy.mirrors.clone().try_acquire_owned() else {
                tracing::debug!(service = %service.name, "no copy is made: too many are under way");
                return;
            };
            let Some((backends, copy)) = self.backends(service).zip(again(request)) else {
                tracing::debug!(service = %service.name, "no copy is made: no backend, or a long body");
                continue;
            };
            let outgoing = Outgoing {
                goals: Goals::Any(backends),
                rule: None,
                mirrors: Vec::new(),
            };
            let (served, source) = (self.clone(), source.clone());
            let (mut head, mut record) = (head.clone(), record.clone());
            let limit = self.proxy.limits.mirror_time;
            let sending = async move {
                let sent = Box::pin(served.send(&source, outgoing, &mut head, copy, &mut record, None)).await;
                let Ok(response) = sent else { return };
                let mut body = response.into_body();
                // To its end, so that the connection can be used again.
                while let Some(Ok(_)) = body.frame().await {}
            };
            tokio::spawn(async move {
                let _place = place;
                let _ = timeout(limit, sending).await;
            });
        }
    }
}
