//! WebSockets: a request that asks its connection to become something else.
//!
//! Only `websocket` passes. `Upgrade: h2c` above all does not: what came after it would be requests
//! that nobody has looked at.

use crate::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// The client's end of a connection that is to become a WebSocket.
#[derive(Debug)]
pub struct Upgrade(OnUpgrade);

/// Both ends of one that has.
#[derive(Debug)]
pub struct Upgraded {
    client: OnUpgrade,
    server: OnUpgrade,
    /// What counts it, at the server's end.
    _held: Body,
}

fn says(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    tokens.any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(header::UPGRADE).iter();
    let one = named
        .next()
        .is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()));
    one && named.next().is_none() && says(headers, header::CONNECTION, "upgrade")
}

impl Upgrade {
    /// Takes it out of a request, if it asks for one (RFC 6455, section 4.1). Before the headers of
    /// this hop are taken away.
    pub fn asked(request: &mut Request<Body>) -> Option<Self> {
        let fits = request.version() == Version::HTTP_11 && request.method() == Method::GET;
        if !fits || !request.headers().contains_key(header::UPGRADE) || !is_websocket(request.headers()) {
            return None;
        }
        Some(Self(hyper::upgrade::on(request)))
    }

    /// Asks the same of the next hop.
    pub fn ask(headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, WEBSOCKET);
    }

    /// What came of it. `None`: the server answers in HTTP. A switch to anything else is an error.
    pub fn answered(self, response: &mut Response<Body>) -> io::Result<Option<Upgraded>> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(None);
        }
        if !is_websocket(response.headers()) {
            return Err(io::Error::other(
                "it switched to a protocol that was not asked for",
            ));
        }
        Ok(Some(Upgraded {
            client: self.0,
            server: hyper::upgrade::on(&mut *response),
            _held: std::mem::take(response.body_mut()),
        }))
    }
}

impl Upgraded {
    /// Carries bytes both ways until both ends have ended. Begins once the answer is written.
    pub async fn carry(self) -> io::Result<(u64, u64)> {
        let (client, server) = tokio::try_join!(self.client, self.server).map_err(io::Error::other)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    }
}
