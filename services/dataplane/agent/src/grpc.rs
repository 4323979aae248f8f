//! Dapr's gRPC port: accepts HTTP/2 and answers every call with UNIMPLEMENTED, in words.
//!
//! An SDK that connects gets an answer that says what to use, instead of a refused connection.

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{convert::Infallible, time::Duration};
use tokio::net::TcpStream;
use weft_drain::Watcher;

const MESSAGE: &str = "Dapr's gRPC API is not served yet; use the HTTP API on port 3500 (DAPR_HTTP_PORT)";
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 64;

/// Serves one connection to its end, or to the drain.
pub async fn serve(stream: TcpStream, mut drain: Watcher) {
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.draining() => {
            connection.as_mut().graceful_shutdown();
            match drain.until_forced(connection).await {
                Some(ended) => ended,
                None => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "gRPC connection");
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(unimplemented())
}

/// The answer to every call.
pub fn unimplemented() -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("12"));
    headers.insert("grpc-message", HeaderValue::from_static(MESSAGE));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_answered_in_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (trigger, drain) = weft_drain::channel();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, drain).await;
        });
        let channel = tonic::transport::Endpoint::from_shared(address)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = weft_proto::weft::placement::v1::placement_client::PlacementClient::new(channel);
        let status = client
            .lookup(weft_proto::weft::placement::v1::LookupRequest::default())
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert!(status.message().contains("HTTP API"), "{status}");
        drop(client);
        assert_eq!(
            trigger.drain(Duration::from_secs(5)).await,
            weft_drain::Outcome::Drained
        );
        server.await.unwrap();
    }
}
