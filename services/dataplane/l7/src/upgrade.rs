//! WebSockets: a request that asks its connection to become something else.
//!
//! Only `websocket` passes. `Upgrade: h2c` above all does not: what came after it would be requests
//! that nobody has looked at.

use crate::{Body, h1::handed::Handed};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use tokio::sync::oneshot;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// The client's end of a connection that is to become a WebSocket.
#[derive(Debug)]
pub struct Upgrade(oneshot::Receiver<Handed>);

/// Both ends of one that has.
#[derive(Debug)]
pub struct Upgraded {
    client: oneshot::Receiver<Handed>,
    server: Handed,
    /// What counts it, at the server's end.
    _held: Body,
}

/// Where a served connection is handed over when it becomes something else; a request carries it.
#[derive(Debug, Clone)]
struct Place(Arc<Mutex<Option<oneshot::Receiver<Handed>>>>);

/// Makes that place for a request that asks for it.
pub(crate) fn prepare<B>(request: &mut Request<B>) -> Option<oneshot::Sender<Handed>> {
    if !request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let (give, take) = oneshot::channel();
    let place = Place(Arc::new(Mutex::new(Some(take))));
    request.extensions_mut().insert(place);
    Some(give)
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
        let place: Place = request.extensions_mut().remove()?;
        let taken = place.0.lock().take()?;
        Some(Self(taken))
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
        let Some(server) = response.body_mut().take_handed() else {
            return Err(io::Error::other("its connection can not become anything else"));
        };
        Ok(Some(Upgraded {
            client: self.0,
            server,
            _held: std::mem::take(response.body_mut()),
        }))
    }
}

impl Upgraded {
    /// Carries bytes both ways until both ends have ended. Begins once the answer is written.
    pub async fn carry(self) -> io::Result<(u64, u64)> {
        let mut client = self.client.await.map_err(io::Error::other)?;
        let mut server = self.server;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    }
}
