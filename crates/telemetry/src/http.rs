//! `GET /metrics` and `GET /healthz` on a port of their own, so that a scrape never waits behind
//! traffic.

use crate::{Health, Metrics, TelemetryError};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, header::CONTENT_TYPE, header::HeaderValue, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
};
use weft_drain::Watcher;

/// Scrapers at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 32;

/// Set by whoever replaces a process by a new one that overlaps with it: ports that both need are
/// shared then. Without it a port in use is an error, as operators expect.
pub const SHARE_PORTS_ENV: &str = "WEFT_SHARE_PORTS";

/// Binds `address`; see [`listen`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, TelemetryError> {
    listen(address).map_err(|source| TelemetryError::Listen { address, source })
}

/// Listens at `address`, together with the process's predecessor or successor if it has one. The
/// kernel lets only processes of one user share. Must be called in a runtime.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if std::env::var_os(SHARE_PORTS_ENV).is_some() {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves until the drain starts.
pub async fn serve(listener: TcpListener, metrics: Metrics, health: Health, mut drain: Watcher) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (listener.accept().await, slot)
        };
        let (Ok((stream, _)), slot) = (tokio::select! {
            () = drain.draining() => return,
            next = next => next,
        }) else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (metrics, health, mut stop) = (metrics.clone(), health.clone(), drain.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let answer = service_fn(move |request| {
                let response = respond(&request, &metrics, &health);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                // A scraper that breaks off is its own affair.
                _ = connection => {}
                () = stop.draining() => {}
            }
        });
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics, health: &Health) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.text(),
        ),
        (&Method::GET, "/healthz") => {
            let line = |(name, state): (&str, Result<(), String>)| match state {
                Ok(()) => format!("ok {name}\n"),
                Err(reason) => format!("waiting {name}: {reason}\n"),
            };
            let status = if health.is_ready() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            (
                status,
                "text/plain; charset=utf-8",
                health.parts().into_iter().map(line).collect(),
            )
        }
        (_, "/metrics" | "/healthz") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".into()),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "only /metrics and /healthz are here\n".into(),
        ),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
