//! Dapr's gRPC API: the same building blocks and invocation as over HTTP, in protobuf.
//!
//! Owns the reading and writing of messages; what is done is [`crate::blocks`] and invocation's.

mod convert;
mod invoke;
mod metadata;
mod publish;
mod shared;
mod state;
mod stores;
mod subscribe;

use crate::{AppContext, Runtime, truth};
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tower_service::Service;
use weft_drain::Watcher;
use weft_proto::dapr::{
    common::v1 as common,
    runtime::v1::{
        self as pb,
        dapr_server::{Dapr, DaprServer},
    },
};

/// Calls at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Bytes of one message, either way (Dapr's default of `--max-body-size`).
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The API as one app sees it.
struct Api {
    runtime: Arc<Runtime>,
    app: Arc<AppContext>,
    /// Ends streams that would not end by themselves; `None` where their connection is another's.
    drain: Option<Watcher>,
}

impl Runtime {
    /// The API as `app` sees it.
    fn grpc(self: &Arc<Self>, app: &Arc<AppContext>, drain: Option<Watcher>) -> DaprServer<Api> {
        let api = Api {
            runtime: self.clone(),
            app: app.clone(),
            drain,
        };
        DaprServer::new(api)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Serves the gRPC API to `app` on one connection that is known to be its own, to its end or to the
    /// drain: what is under way then is finished.
    pub async fn serve_grpc<T>(
        self: &Arc<Self>,
        app: &Arc<AppContext>,
        io: T,
        mut drain: Watcher,
    ) -> Result<(), hyper::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.grpc(app, Some(drain.clone()));
        let answer = service_fn(|request: Request<Incoming>| {
            let (mut server, app) = (server.clone(), app.clone());
            async move {
                match admitted(&app, request) {
                    Ok(request) => server.call(request).await,
                    Err(refused) => Ok(*refused),
                }
            }
        });
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(16 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), answer));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = drain.draining() => connection.as_mut().graceful_shutdown(),
        }
        drain.until_forced(connection).await.unwrap_or(Ok(()))
    }
}

/// With the app's token, where it has one; it goes no further.
fn admitted(
    app: &AppContext,
    mut request: Request<Incoming>,
) -> Result<Request<Incoming>, Box<Response<tonic::body::Body>>> {
    let shown = request.headers_mut().remove(truth::API_TOKEN);
    let Some(token) = app.token() else {
        return Ok(request);
    };
    let why = match shown {
        Some(shown) if token.matches(shown.as_bytes()) => return Ok(request),
        Some(_) => "authentication error: api token mismatch",
        None => "missing api token in request metadata",
    };
    Err(Box::new(convert::of_http(401, why).into_http()))
}

impl Api {
    /// Until the drain begins.
    fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let drain = self.drain.clone();
        async move {
            match drain {
                Some(mut drain) => drain.draining().await,
                None => std::future::pending().await,
            }
        }
    }
}

type Answer<T> = Result<tonic::Response<T>, Status>;

fn answer<T>(done: Result<T, impl Into<Status>>) -> Answer<T> {
    done.map(tonic::Response::new).map_err(Into::into)
}

#[tonic::async_trait]
impl Dapr for Api {
    async fn invoke_service(
        &self,
        request: tonic::Request<pb::InvokeServiceRequest>,
    ) -> Answer<common::InvokeResponse> {
        self.invoke(request).await
    }

    async fn get_state(&self, request: tonic::Request<pb::GetStateRequest>) -> Answer<pb::GetStateResponse> {
        answer(self.state_get(request).await)
    }

    async fn get_bulk_state(
        &self,
        request: tonic::Request<pb::GetBulkStateRequest>,
    ) -> Answer<pb::GetBulkStateResponse> {
        answer(self.state_bulk_get(request).await)
    }

    async fn save_state(&self, request: tonic::Request<pb::SaveStateRequest>) -> Answer<()> {
        answer(self.state_save(request).await)
    }

    async fn query_state_alpha1(
        &self,
        request: tonic::Request<pb::QueryStateRequest>,
    ) -> Answer<pb::QueryStateResponse> {
        answer(self.state_query(request))
    }

    async fn delete_state(&self, request: tonic::Request<pb::DeleteStateRequest>) -> Answer<()> {
        answer(self.state_delete(request).await)
    }

    async fn delete_bulk_state(&self, request: tonic::Request<pb::DeleteBulkStateRequest>) -> Answer<()> {
        answer(self.state_delete_bulk(request).await)
    }

    async fn execute_state_transaction(
        &self,
        request: tonic::Request<pb::ExecuteStateTransactionRequest>,
    ) -> Answer<()> {
        answer(self.state_transact(request).await)
    }

    async fn publish_event(&self, request: tonic::Request<pb::PublishEventRequest>) -> Answer<()> {
        answer(self.publish(request).await)
    }

    async fn bulk_publish_event(
        &self,
        request: tonic::Request<pb::BulkPublishRequest>,
    ) -> Answer<pb::BulkPublishResponse> {
        answer(self.publish_bulk(request).await)
    }

    async fn bulk_publish_event_alpha1(
        &self,
        request: tonic::Request<pb::BulkPublishRequest>,
    ) -> Answer<pb::BulkPublishResponse> {
        answer(self.publish_bulk(request).await)
    }

    type SubscribeTopicEventsAlpha1Stream = subscribe::Events;

    async fn subscribe_topic_events_alpha1(
        &self,
        request: tonic::Request<tonic::Streaming<pb::SubscribeTopicEventsRequestAlpha1>>,
    ) -> Answer<subscribe::Events> {
        answer(self.subscribe(request).await)
    }

    async fn invoke_binding(
        &self,
        request: tonic::Request<pb::InvokeBindingRequest>,
    ) -> Answer<pb::InvokeBindingResponse> {
        self.binding(request).await
    }

    async fn get_secret(
        &self,
        request: tonic::Request<pb::GetSecretRequest>,
    ) -> Answer<pb::GetSecretResponse> {
        answer(self.secret(request).await)
    }

    async fn get_bulk_secret(
        &self,
        request: tonic::Request<pb::GetBulkSecretRequest>,
    ) -> Answer<pb::GetBulkSecretResponse> {
        answer(self.secrets(request).await)
    }

    async fn get_configuration(
        &self,
        request: tonic::Request<pb::GetConfigurationRequest>,
    ) -> Answer<pb::GetConfigurationResponse> {
        answer(self.configuration(request).await)
    }

    async fn get_configuration_alpha1(
        &self,
        request: tonic::Request<pb::GetConfigurationRequest>,
    ) -> Answer<pb::GetConfigurationResponse> {
        answer(self.configuration(request).await)
    }

    type SubscribeConfigurationStream = stores::Told;

    async fn subscribe_configuration(
        &self,
        request: tonic::Request<pb::SubscribeConfigurationRequest>,
    ) -> Answer<stores::Told> {
        answer(self.watch(request).await)
    }

    type SubscribeConfigurationAlpha1Stream = stores::Told;

    async fn subscribe_configuration_alpha1(
        &self,
        request: tonic::Request<pb::SubscribeConfigurationRequest>,
    ) -> Answer<stores::Told> {
        answer(self.watch(request).await)
    }

    async fn unsubscribe_configuration(
        &self,
        request: tonic::Request<pb::UnsubscribeConfigurationRequest>,
    ) -> Answer<pb::UnsubscribeConfigurationResponse> {
        Ok(tonic::Response::new(self.unwatch(request.into_inner())))
    }

    async fn unsubscribe_configuration_alpha1(
        &self,
        request: tonic::Request<pb::UnsubscribeConfigurationRequest>,
    ) -> Answer<pb::UnsubscribeConfigurationResponse> {
        Ok(tonic::Response::new(self.unwatch(request.into_inner())))
    }

    async fn try_lock_alpha1(
        &self,
        request: tonic::Request<pb::TryLockRequest>,
    ) -> Answer<pb::TryLockResponse> {
        answer(self.lock(request).await)
    }

    async fn unlock_alpha1(&self, request: tonic::Request<pb::UnlockRequest>) -> Answer<pb::UnlockResponse> {
        answer(self.unlock(request).await)
    }

    async fn get_metadata(
        &self,
        _: tonic::Request<pb::GetMetadataRequest>,
    ) -> Answer<pb::GetMetadataResponse> {
        Ok(tonic::Response::new(self.metadata()))
    }

    async fn set_metadata(&self, request: tonic::Request<pb::SetMetadataRequest>) -> Answer<()> {
        self.set_extended(request.into_inner()).map(tonic::Response::new)
    }
}
