//! `weft.dataplane.v1.Flows`.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_drain::Watcher;
use weft_flows::{FlowLog, Item};
use weft_proto::weft::dataplane::v1::{ObserveRequest, ObserveResponse, flows_server::Flows};

/// Flows on their way to one observer; what it does not take in time is counted as lost.
const AHEAD: usize = 64;
/// Filters of one request.
const MAX_FILTERS: usize = 64;

#[derive(Debug)]
pub struct Service {
    pub log: FlowLog,
    pub drain: Watcher,
}

#[tonic::async_trait]
impl Flows for Service {
    type ObserveStream = ReceiverStream<Result<ObserveResponse, Status>>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let request = request.into_inner();
        if request.filters.len() > MAX_FILTERS {
            return Err(Status::invalid_argument(format!(
                "filters: at most {MAX_FILTERS}"
            )));
        }
        let (past, follower) = self.log.observe(&request);
        let (log, mut drain) = (self.log.clone(), self.drain.clone());
        let (send, stream) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            for recorded in past {
                let item = Item::Flow(Box::new(recorded));
                if send.send(Ok(log.to_response(&item))).await.is_err() {
                    return;
                }
            }
            let Some(mut follower) = follower else { return };
            loop {
                let item = tokio::select! {
                    item = follower.next() => item,
                    () = send.closed() => return,
                    () = drain.draining() => return,
                };
                if send.send(Ok(log.to_response(&item))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(stream.into()))
    }
}
