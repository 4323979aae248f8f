//! `InvokeService`: a call by gRPC of an app that takes HTTP.

use super::{Answer, Api, MAX_MESSAGE, convert::of_http};
use crate::error::Own;
use http::{HeaderName, HeaderValue, Method, Request, header};
use tonic::{
    Status,
    metadata::{AsciiMetadataKey, KeyAndValueRef, MetadataValue},
};
use weft_l7::Body;
use weft_proto::dapr::{common::v1 as common, runtime::v1 as pb};

fn method(extension: Option<&common::HttpExtension>) -> Method {
    use common::http_extension::Verb;
    match extension.map_or(Verb::None, common::HttpExtension::verb) {
        Verb::Get => Method::GET,
        Verb::Head => Method::HEAD,
        Verb::Put => Method::PUT,
        Verb::Delete => Method::DELETE,
        Verb::Connect => Method::CONNECT,
        Verb::Options => Method::OPTIONS,
        Verb::Trace => Method::TRACE,
        Verb::Patch => Method::PATCH,
        Verb::Post | Verb::None => Method::POST,
    }
}

/// What gRPC and this hop say of themselves, and what only the runtime may say.
fn is_own(name: &str) -> bool {
    const OWN: [&str; 8] = [
        "content-type",
        "content-length",
        "te",
        "host",
        "user-agent",
        "connection",
        "dapr-app-id",
        "accept-encoding",
    ];
    OWN.contains(&name) || name.starts_with("grpc-") || name.starts_with(':')
}

impl Api {
    pub(super) async fn invoke(
        &self,
        request: tonic::Request<pb::InvokeServiceRequest>,
    ) -> Answer<common::InvokeResponse> {
        let (metadata, extensions, asked) = request.into_parts();
        let message = asked.message.unwrap_or_default();
        let extension = message.http_extension.as_ref();
        let query = extension.map_or("", |e| e.querystring.trim_start_matches('?'));
        let mut path = format!("/{}", message.method.trim_start_matches('/'));
        if !query.is_empty() {
            path = format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' });
        }
        let uri = path
            .parse()
            .map_err(|_| Status::invalid_argument(format!("{path:?} is no method")))?;
        let body = message.data.map(|data| data.value).unwrap_or_default();
        let length = body.len();
        let mut call = Request::new(Body::full(body));
        *call.method_mut() = method(extension);
        *call.uri_mut() = uri;
        // By which hands the call came, where that is known.
        *call.extensions_mut() = extensions;
        let headers = call.headers_mut();
        for pair in metadata.iter() {
            if let KeyAndValueRef::Ascii(key, value) = pair
                && !is_own(key.as_str())
                && let Ok(name) = HeaderName::try_from(key.as_str())
                && let Ok(value) = HeaderValue::from_bytes(value.as_bytes())
            {
                headers.append(name, value);
            }
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let kind = HeaderValue::from_str(&message.content_type);
        if let Some(kind) = kind.ok().filter(|kind| !kind.is_empty()) {
            headers.insert(header::CONTENT_TYPE, kind);
        }
        let response = self.runtime.invoke(&self.app, &asked.id, call).await;
        if let Some(own) = response.extensions().get::<Own>() {
            return Err(Status::internal(own.0.clone()));
        }
        let (head, body) = response.into_parts();
        let body = body.keep(MAX_MESSAGE).await;
        let body =
            body.map_err(|e| Status::internal(format!("failed to invoke, id: {}, err: {e}", asked.id)))?;
        let body = http_body_util::BodyExt::collect(body).await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let status = head.status.as_u16();
        if !head.status.is_success() {
            return Err(of_http(status, &String::from_utf8_lossy(&body)));
        }
        let kind = head
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|k| k.to_str().ok());
        let mut answer = tonic::Response::new(common::InvokeResponse {
            data: Some(prost_types::Any {
                value: body.to_vec(),
                ..Default::default()
            }),
            content_type: kind.unwrap_or_default().to_owned(),
        });
        let told = answer.metadata_mut();
        told.insert("dapr-http-status", MetadataValue::from(status));
        for (name, value) in &head.headers {
            let key = AsciiMetadataKey::from_bytes(name.as_str().as_bytes());
            if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value.as_bytes()))
                && !is_own(name.as_str())
            {
                told.append(key, value);
            }
        }
        Ok(answer)
    }
}
