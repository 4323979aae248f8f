//! How much may be on its way to who does not read: 4 MiB for each stream, 16 MiB for a connection, both
//! ways. Asked of HTTP/2 itself, at the other end.

use crate::{
    raw,
    rig::{SOON, quick, rig},
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use h2::SendStream;
use http::{HeaderMap, Method, Request, Response};
use std::{future::poll_fn, io, net::SocketAddr, sync::Arc};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use weft_tls::{ClientAuth, server_config};
use weft_tunnel::{Client, Dialer, Local};

const MIB: usize = 1 << 20;
const STREAM: usize = 4 * MIB;
/// As many streams as there are streams' windows in the connection's.
const STREAMS: usize = 4;

/// Asks for more than there can be; waits until there is as much as is wanted.
async fn has_room(stream: &mut SendStream<Bytes>) {
    stream.reserve_capacity(64 * MIB);
    let grown = async {
        while stream.capacity() < STREAM {
            poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        }
    };
    let waited = timeout(SOON, grown).await;
    assert!(waited.is_ok(), "{} bytes of {STREAM}", stream.capacity());
    assert_eq!(stream.capacity(), STREAM);
}

/// The fifth finds nothing left, until the first gives back.
async fn are_as_promised(mut streams: Vec<SendStream<Bytes>>) {
    let mut last = streams.pop().unwrap();
    assert_eq!(streams.len(), STREAMS);
    for stream in &mut streams {
        has_room(stream).await;
    }
    last.reserve_capacity(64 * MIB);
    assert_eq!(last.capacity(), 0, "the connection's window is larger");
    streams[0].reserve_capacity(0);
    has_room(&mut last).await;
}

#[tokio::test]
async fn the_accepting_side_takes_four_mebibytes_a_stream_and_sixteen_in_all() {
    let rig = rig(quick()).await;
    let mut builder = h2::client::Builder::new();
    builder.max_send_buffer_size(64 * MIB);
    let (sender, connection) = builder.handshake(raw(&rig).await).await.unwrap();
    tokio::spawn(connection);
    let mut streams = Vec::new();
    let mut held = Vec::new();
    for _ in 0..=STREAMS {
        let request = Request::builder().method(Method::CONNECT).uri("cart.default:1");
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        // By its answer its settings and the connection's window have come.
        held.push(answer.await.unwrap());
        streams.push(stream);
    }
    are_as_promised(streams).await;
}

struct Direct;

impl Dialer for Direct {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<TcpStream>> {
        TcpStream::connect(to).boxed()
    }
}

#[tokio::test]
async fn the_opening_side_takes_four_mebibytes_a_stream_and_sixteen_in_all() {
    let mut rig = rig(quick()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    rig.destination.address = listener.local_addr().unwrap();
    let local = Arc::new(Local::One(rig.ca.cell("cart", "n2")));
    let tls = server_config(local, &rig.server_trust, ClientAuth::Required, &[b"h2"]).unwrap();
    let (told, checked) = oneshot::channel();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls)).accept(tcp).await.unwrap();
        let mut builder = h2::server::Builder::new();
        builder.max_send_buffer_size(64 * MIB);
        let mut connection = builder.handshake::<_, Bytes>(tls).await.unwrap();
        let (mut streams, mut held) = (Vec::new(), Vec::new());
        while streams.len() <= STREAMS {
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            streams.push(respond.send_response(Response::new(()), false).unwrap());
            held.push((request, respond));
        }
        tokio::select! {
            () = are_as_promised(streams) => {}
            _ = connection.accept() => panic!("the connection has ended"),
        }
        told.send(()).unwrap();
        // The last answer may not have gone out yet.
        while connection.accept().await.is_some() {}
        drop(held);
    });
    let client = Client::new(rig.trust.clone(), Arc::new(Direct), quick());
    let mut open = Vec::new();
    for _ in 0..=STREAMS {
        let opening = client.open(&rig.source, &rig.destination, "cart.default:1", HeaderMap::new());
        open.push(timeout(SOON, opening).await.unwrap().unwrap());
    }
    timeout(SOON, checked).await.unwrap().unwrap();
}
