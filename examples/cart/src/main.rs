//! A small app as anybody would write one: it serves HTTP on 127.0.0.1 and calls other apps through
//! Dapr's API on localhost:3500. It knows nothing of Weft.
//!
//! Usage: `weft-example-cart <name> <port>`. Routes:
//! - `GET /echo?id=<id>`: who I am, who the caller is by its header, and the id.
//! - `GET /call?app=<app-id>&id=<id>`: calls `/echo` of another app and passes its reply on.
//!
//! The environment variable `DAPR_HTTP_PORT` moves the API's port, as in Dapr's SDKs.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::{Value, json};
use std::{collections::HashMap, env, sync::Arc};
use tokio::net::TcpListener;

type Http = Client<HttpConnector, Full<Bytes>>;

struct App {
    name: String,
    api: String,
    token: Option<String>,
    http: Http,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let (Some(name), Some(port)) = (args.next(), args.next()) else {
        eprintln!("usage: weft-example-cart <name> <port>");
        std::process::exit(2);
    };
    let api_port = env::var("DAPR_HTTP_PORT").unwrap_or_else(|_| "3500".into());
    let app = Arc::new(App {
        name,
        api: format!("http://localhost:{api_port}"),
        token: env::var("DAPR_API_TOKEN").ok(),
        http: Client::builder(TokioExecutor::new()).build_http(),
    });
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let app = app.clone();
        tokio::spawn(async move {
            let serve = service_fn(|request| {
                let app = app.clone();
                async move { Ok::<_, std::convert::Infallible>(app.answer(request).await) }
            });
            let io = TokioIo::new(stream);
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, serve)
                .await;
        });
    }
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let query = query(request.uri().query().unwrap_or_default());
        let id = query.get("id").cloned().unwrap_or_default();
        let (status, body) = match request.uri().path() {
            "/echo" => (StatusCode::OK, self.echo(&request, &id)),
            "/call" => {
                self.call(query.get("app").map(String::as_str).unwrap_or_default(), &id)
                    .await
            }
            _ => (StatusCode::NOT_FOUND, json!({"error": "no such route"})),
        };
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        response.headers_mut().insert(
            "content-type",
            hyper::header::HeaderValue::from_static("application/json"),
        );
        response
    }

    fn echo(&self, request: &Request<Incoming>, id: &str) -> Value {
        let header = |name: &str| {
            request
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
        };
        json!({
            "app": self.name,
            "id": id,
            "caller": header("dapr-caller-app-id"),
            "callerNamespace": header("dapr-caller-namespace"),
            "callee": header("dapr-callee-app-id"),
            "traceparent": header("traceparent"),
        })
    }

    async fn call(&self, app: &str, id: &str) -> (StatusCode, Value) {
        let uri = format!("{}/v1.0/invoke/{app}/method/echo?id={id}", self.api);
        let mut request = Request::get(uri);
        if let Some(token) = &self.token {
            request = request.header("dapr-api-token", token);
        }
        let reply = async {
            let response = self.http.request(request.body(Full::default())?).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
        };
        match reply.await {
            Ok((status, body)) => {
                let reply = serde_json::from_slice(&body)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
                (status, json!({"app": self.name, "reply": reply}))
            }
            Err(error) => (StatusCode::BAD_GATEWAY, json!({"error": error.to_string()})),
        }
    }
}

/// `a=1&b=2`, without decoding: ids are plain.
fn query(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}
