//! `observer.Observer`.

use super::{Place, peers::Peers};
use crate::agent::Shared;
use std::{collections::BTreeSet, sync::Arc, time::SystemTime};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_flows::{
    FlowLog,
    hubble::{CLUSTER, Observer as Events, Query, Stream, flow_rate},
};
use weft_proto::hubble::{
    observer::{
        GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse,
        GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
        GetNodesResponse, Namespace, Node, ServerStatusRequest, ServerStatusResponse, Tls,
        observer_server::Observer,
    },
    relay::NodeState,
};

/// Bytes of a request.
pub const MAX_REQUEST: usize = 256 * 1024;
/// Answers of `GetFlows` at once, of all callers together.
const MAX_STREAMS: usize = 64;
/// Flows on their way to one caller; what it does not take in time is counted as lost.
const AHEAD: usize = 64;

/// Answers from the agent's flow log and its view of the mesh.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    events: Events,
    place: Place,
    peers: Peers,
    streams: Arc<Semaphore>,
}

impl Service {
    pub fn new(shared: &Arc<Shared>, place: Place, peers: Peers) -> Self {
        Self {
            shared: shared.clone(),
            events: super::observer(shared),
            place,
            peers,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    fn log(&self) -> &FlowLog {
        &self.shared.flows
    }

    fn uptime(&self) -> u64 {
        let up = SystemTime::now()
            .duration_since(self.place.started)
            .unwrap_or_default();
        u64::try_from(up.as_nanos()).unwrap_or(u64::MAX)
    }

    fn held(&self) -> u64 {
        self.log().recorded().min(self.log().capacity())
    }
}

type Sent<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Observer for Service {
    type GetFlowsStream = Sent<GetFlowsResponse>;
    type GetAgentEventsStream = Sent<GetAgentEventsResponse>;
    type GetDebugEventsStream = Sent<GetDebugEventsResponse>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let query = Query::new(request.get_ref()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let Ok(place) = self.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{MAX_STREAMS} callers are being answered already; try again when one of them has ended"
            )));
        };
        let (log, events) = (self.log().clone(), self.events.clone());
        let mut drain = self.shared.drain.clone();
        let (send, stream) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _place = place;
            let answering = async {
                let mut stream = Stream::new(&log, events, query).await;
                while let Some(response) = stream.next().await {
                    if send.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = answering => {}
                () = send.closed() => {}
                () = drain.draining() => {}
            }
        });
        Ok(Response::new(stream.into()))
    }

    async fn get_agent_events(
        &self,
        _: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        Err(Status::unimplemented(
            "this agent keeps no agent events; `weft status` shows its state, its log what happened",
        ))
    }

    async fn get_debug_events(
        &self,
        _: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        Err(Status::unimplemented(
            "the programs of this node make no debug events; GetFlows tells what they decided",
        ))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let tls = Tls {
            enabled: self.place.tls,
            server_name: self.peers.server_name().unwrap_or_default(),
        };
        let nodes = self.peers.all().into_iter().map(|(name, address)| {
            let node = Node {
                name: name.clone(),
                address,
                tls: Some(tls.clone()),
                ..Default::default()
            };
            if name != self.shared.node {
                // Only whoever asks it knows how it is.
                return node;
            }
            Node {
                version: weft_model::VERSION.into(),
                state: NodeState::NodeConnected.into(),
                uptime_ns: self.uptime(),
                num_flows: self.held(),
                max_flows: self.log().capacity(),
                seen_flows: self.log().recorded(),
                ..node
            }
        });
        Ok(Response::new(GetNodesResponse {
            nodes: nodes.collect(),
        }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let known: BTreeSet<String> = self.shared.view.mesh.read(|endpoints| {
            let workloads = endpoints.messages().filter_map(|e| e.workload.as_ref());
            workloads.map(|w| w.namespace.clone()).collect()
        });
        let namespaces = known.into_iter().map(|namespace| Namespace {
            cluster: CLUSTER.into(),
            namespace,
        });
        Ok(Response::new(GetNamespacesResponse {
            namespaces: namespaces.collect(),
        }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        Ok(Response::new(ServerStatusResponse {
            num_flows: self.held(),
            max_flows: self.log().capacity(),
            seen_flows: self.log().recorded(),
            uptime_ns: self.uptime(),
            version: format!("weft v{}", weft_model::VERSION),
            flows_rate: flow_rate(self.log(), SystemTime::now()),
            ..Default::default()
        }))
    }
}
