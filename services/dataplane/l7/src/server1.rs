//! Serving HTTP/1.1 on one accepted connection: one request after the other, each answered before the next
//! is looked at.

use crate::{
    Body, ServeError, ServerLimits,
    h1::{
        handed::Handed,
        head::{self, HeadError, HeadLimits, Looked, Message},
        received::{BodyEnd, Inner, Received, Shared},
        write::{self, Says, Written},
    },
    server::Watch,
    upgrade,
    writing::Writing,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header, response};
use http_body::Body as _;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::timeout,
};
use weft_drain::Watcher;

/// What is read of a request that nobody wants any more, so that its client reads the answer before it meets
/// a reset.
const LEFT_BEHIND: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// What a request says of how it is answered.
struct Asked {
    method: Method,
    version: Version,
    keep_alive: bool,
    takes_trailers: bool,
    /// It wants the connection to become something else.
    upgrade: Option<oneshot::Sender<Handed>>,
}

/// What becomes of a connection after an answer.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
    /// It is somebody else's.
    HandedOver,
}

/// Serves requests until the connection ends.
pub(crate) async fn serve_http1<T, H, F>(
    shared: &Arc<Shared<T>>,
    limits: &ServerLimits,
    watch: &Watch,
    drain: &Watcher,
    handle: &H,
) -> Result<(), ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Body>) -> F,
    F: Future<Output = Response<Body>>,
{
    let bounds = HeadLimits {
        fields: limits.max_headers,
        bytes: limits.max_head_bytes,
    };
    loop {
        let (request, message) = match next(shared, bounds, watch).await {
            Ok(Some(next)) => next,
            Ok(None) => {
                close(shared, false).await;
                return Ok(());
            }
            Err(ServeError::Head(error)) => {
                refuse(shared, error).await;
                return Err(error.into());
            }
            Err(error) => return Err(error),
        };
        watch.begin();
        let (request, asked) = received(shared, request, message);
        let Some(response) = handled(shared, handle(request)).await else {
            // Its client is gone.
            return Ok(());
        };
        let leaves = || drain.is_draining() || watch.leaves();
        match answer(shared, response, asked, leaves).await? {
            Then::GoOn => watch.end(),
            Then::Close => {
                let unread = is_unread(&shared.0.lock());
                close(shared, unread).await;
                return Ok(());
            }
            Then::HandedOver => return Ok(()),
        }
    }
}

/// The next request; `None` at the end of the connection.
async fn next<T>(
    shared: &Shared<T>,
    bounds: HeadLimits,
    watch: &Watch,
) -> Result<Option<(Request<()>, Message)>, ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut looked = Looked::default();
    poll_fn(|cx| {
        let mut inner = shared.0.lock();
        let Some(wire) = &mut inner.wire else {
            return Poll::Ready(Ok(None));
        };
        loop {
            if !wire.read.is_empty() {
                if let Some(next) = head::request(&mut wire.read, &mut looked, bounds)? {
                    return Poll::Ready(Ok(Some(next)));
                }
                watch.reading();
            } else if watch.leaves() {
                return Poll::Ready(Ok(None));
            } else {
                wire.rest();
            }
            match ready!(wire.poll_fill(cx, 0)) {
                Ok(0) if wire.read.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    })
    .await
}

/// The request with its body, and what is kept of it for its answer.
fn received<T>(shared: &Arc<Shared<T>>, mut request: Request<()>, message: Message) -> (Request<Body>, Asked)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Asked {
        upgrade: upgrade::prepare(&mut request),
        method: request.method().clone(),
        version: request.version(),
        keep_alive: message.keep_alive,
        takes_trailers: message.takes_trailers,
    };
    let has_body = !message.framing.is_ended();
    shared.0.lock().begin(message.framing, message.expects_continue);
    let body = match has_body {
        true => Body::received(Received::of(shared)),
        false => Body::empty(),
    };
    (request.map(|()| body), asked)
}

/// What the handler answers; `None` when the client is gone before.
async fn handled<T, F>(shared: &Shared<T>, handling: F) -> Option<Response<Body>>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<Body>>,
{
    // On the heap: an idle connection would keep room for it.
    let mut handling = Box::pin(handling);
    poll_fn(|cx| match handling.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if is_gone(&mut shared.0.lock(), cx) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Whether the client has ended the connection. What it sent meanwhile is kept, and the end behind it not
/// looked for.
pub(crate) fn is_gone<T: AsyncRead + AsyncWrite + Unpin>(inner: &mut Inner<T>, cx: &mut Context<'_>) -> bool {
    let ended = inner.framing.is_ended();
    match &mut inner.wire {
        Some(wire) if ended && wire.read.is_empty() => {
            matches!(wire.poll_fill(cx, 0), Poll::Ready(Ok(0) | Err(_)))
        }
        _ => false,
    }
}

/// Writes an answer, and waits for the end of its request.
async fn answer<T>(
    shared: &Arc<Shared<T>>,
    response: Response<Body>,
    asked: Asked,
    leaves: impl Fn() -> bool,
) -> Result<Then, ServeError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut head, body) = response.into_parts();
    let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switches && asked.upgrade.is_none() {
        head = Response::new(()).into_parts().0;
        head.status = StatusCode::BAD_GATEWAY;
    }
    let written = written(&mut head, &body, &asked);
    // What was not asked for by now does not come.
    let unasked = shared.0.lock().answering();
    let close = !switches
        && (!asked.keep_alive
            || unasked
            || written == Written::ToEnd
            || says_close(&head.headers)
            || leaves());
    let says = match asked.version {
        _ if close => Says::Close,
        Version::HTTP_10 if !switches => Says::KeepAlive,
        _ => Says::Nothing,
    };
    if let Some(wire) = &mut shared.0.lock().wire {
        write::write_answer(&mut wire.out, &head, asked.version, written, says);
        wire.touch();
    }
    // Not needed any more, and the connection may be idle behind it for long.
    drop(head);
    let mut writing = Writing::new(body, written, asked.takes_trailers);
    poll_fn(|cx| writing.poll(shared, cx)).await?;
    drop(writing);
    if let Some(upgrade) = asked.upgrade.filter(|_| switches) {
        let taken = shared.0.lock().wire.take();
        if let Some(wire) = taken {
            let read = wire.read.freeze();
            // Where nobody takes it, it ends.
            let _ = upgrade.send(Handed {
                io: Box::new(wire.io),
                read,
            });
        }
        return Ok(Then::HandedOver);
    }
    if close || leaves() {
        return Ok(Then::Close);
    }
    let end = poll_fn(|cx| shared.0.lock().poll_body_end(cx)).await;
    Ok(match end {
        BodyEnd::Complete => Then::GoOn,
        BodyEnd::Abandoned => poll_fn(|cx| Poll::Ready(discard(&mut shared.0.lock(), cx))).await,
    })
}

/// How the answer's body is told from what follows.
fn written(head: &mut response::Parts, body: &Body, asked: &Asked) -> Written {
    if !head::has_body(&asked.method, head.status) {
        if head.status.is_informational() || head.status == StatusCode::NO_CONTENT {
            head.headers.remove(header::CONTENT_LENGTH);
        }
        return Written::Without;
    }
    match body.size_hint().exact() {
        Some(length) => Written::Length(length),
        None if asked.version == Version::HTTP_10 => Written::ToEnd,
        None => Written::Chunked,
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let close = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    headers.get(header::CONNECTION).is_some_and(close)
}

/// Whether something came, or is to come, that nobody has read: closing would take back what was written.
fn is_unread<T>(inner: &Inner<T>) -> bool {
    let read = inner.wire.as_ref().is_some_and(|wire| !wire.read.is_empty());
    read || !inner.framing.is_ended()
}

/// Reads what is here of a body that nobody wants.
fn discard<T: AsyncRead + AsyncWrite + Unpin>(inner: &mut Inner<T>, cx: &mut Context<'_>) -> Then {
    let Inner { wire, framing, .. } = inner;
    let Some(wire) = wire else { return Then::Close };
    let mut most = LEFT_BEHIND;
    loop {
        match framing.poll_frame(wire, cx) {
            Poll::Ready(None) => return Then::GoOn,
            Poll::Ready(Some(Ok(frame))) => {
                most = match most.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(left) => left,
                    None => return Then::Close,
                };
                if framing.is_ended() {
                    return Then::GoOn;
                }
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => return Then::Close,
        }
    }
}

/// Tells the client what is wrong with its head, which is the last that it is told.
async fn refuse<T: AsyncRead + AsyncWrite + Unpin>(shared: &Shared<T>, error: HeadError) {
    let text = format!("{error}\n");
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = error.status();
    let plain = http::HeaderValue::from_static("text/plain");
    head.headers.insert(header::CONTENT_TYPE, plain);
    if let Some(wire) = &mut shared.0.lock().wire {
        let length = Written::Length(text.len() as u64);
        write::write_answer(&mut wire.out, &head, Version::HTTP_11, length, Says::Close);
        wire.put(text.into(), b"");
    }
    close(shared, true).await;
}

/// Ends a connection in order; where something may be left unread, not before that is read.
async fn close<T: AsyncRead + AsyncWrite + Unpin>(shared: &Shared<T>, unread: bool) {
    let closing = poll_fn(|cx| {
        let mut inner = shared.0.lock();
        let Some(wire) = &mut inner.wire else {
            return Poll::Ready(Ok(()));
        };
        ready!(wire.poll_flush(cx))?;
        Pin::new(&mut wire.io).poll_shutdown(cx)
    });
    let mut most = LEFT_BEHIND;
    let lingering = async {
        closing.await?;
        poll_fn(|cx| {
            let mut inner = shared.0.lock();
            let Some(wire) = inner.wire.as_mut().filter(|_| unread) else {
                return Poll::Ready(Ok(()));
            };
            loop {
                wire.read.clear();
                match ready!(wire.poll_fill(cx, 0))? {
                    0 => return Poll::Ready(Ok::<_, io::Error>(())),
                    n if n > most => return Poll::Ready(Ok(())),
                    n => most -= n,
                }
            }
        })
        .await
    };
    // Whoever does not end it in time, or breaks it, has what it could have.
    let _ = timeout(LINGER, lingering).await;
}
