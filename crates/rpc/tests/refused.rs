//! What comes to nothing before a handler decides on it is told, with who it was and why.
#![allow(clippy::unwrap_used, missing_docs)]

mod ca;

use ca::{Ca, NOW, Running};
use futures::future::BoxFuture;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Request, Status, body::Body};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use weft_rpc::{ConnectionRefused, GrpcServer, Refusal, StatusExt as _, TurnedAway, channel};
use weft_tls::{ClientAuth, Expect, ManualClock, Revoked, SvidCell};

const PATIENCE: Duration = Duration::from_secs(20);

fn request() -> HealthCheckRequest {
    HealthCheckRequest {
        service: String::new(),
    }
}

/// What was told, as soon as there is so much of it.
async fn told<T: Clone>(heard: &Mutex<Vec<T>>, count: usize) -> Vec<T> {
    let enough = async {
        while heard.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("nothing was told");
    heard.lock().unwrap().clone()
}

struct Rig {
    ca: Ca,
    clock: ManualClock,
    server: Running,
    heard: Arc<Mutex<Vec<ConnectionRefused>>>,
}

impl Rig {
    async fn new() -> Self {
        let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
        let heard = Arc::<Mutex<Vec<ConnectionRefused>>>::default();
        let put = heard.clone();
        let hears = move |it| put.lock().unwrap().push(it);
        let listening = |server: GrpcServer| server.on_connection_refused(hears);
        let server = ca.serve_with(&clock, ClientAuth::Required, listening).await;
        Self {
            ca,
            clock,
            server,
            heard,
        }
    }

    async fn check(&self, svid: Option<&SvidCell>) -> Result<(), Status> {
        // The server's clock is not the caller's.
        let trust = self.ca.trust(&ManualClock::at(NOW));
        let live = channel(&self.server.address, svid, &trust, Expect::Member).unwrap();
        HealthClient::new(live).check(request()).await.map(drop)
    }

    /// The one refusal since the last, of this certificate.
    async fn refusal(&self, svid: Option<&SvidCell>) -> ConnectionRefused {
        self.check(svid).await.unwrap_err();
        let all = told(&self.heard, 1).await;
        self.heard.lock().unwrap().clear();
        let shown = all[0].shown.as_ref().map(|peer| peer.serial.clone());
        let serial = svid.map(|cell| cell.get().unwrap().identity().serial.clone());
        assert_eq!(shown, serial, "{all:?}");
        all[0].clone()
    }
}

#[tokio::test]
async fn a_handshake_that_is_refused_is_told_with_its_certificate() {
    let rig = Rig::new().await;
    let ops = rig.ca.cell("/weft/admin/ops");
    rig.check(Some(&ops)).await.unwrap();
    assert_eq!(rig.refusal(None).await.reason, "CERTIFICATE_REQUIRED");
    // Another authority of the same name: its signatures are not the mesh's.
    let foreign = Ca::new().cell("/weft/admin/ops");
    let refusal = rig.refusal(Some(&foreign)).await;
    assert_eq!(refusal.reason, "CERTIFICATE_INVALID");
    assert!(refusal.text.contains("ignature"), "{}", refusal.text);
    let short = SvidCell::new();
    short.set(rig.ca.svid("/weft/admin/late", 10));
    rig.check(Some(&short)).await.unwrap();
    rig.clock.set(NOW + 11);
    assert_eq!(rig.refusal(Some(&short)).await.reason, "CERTIFICATE_EXPIRED");
    rig.clock.set(NOW - 61);
    assert_eq!(rig.refusal(Some(&ops)).await.reason, "CERTIFICATE_NOT_YET_VALID");
    rig.clock.set(NOW);
    let mut revoked = Revoked::new();
    revoked.serial(&ops.get().unwrap().identity().serial);
    rig.server.trust.set_revoked(revoked);
    let refusal = rig.refusal(Some(&ops)).await;
    assert_eq!(refusal.reason, "CERTIFICATE_REVOKED");
    assert_eq!(refusal.from.to_string(), "127.0.0.1");
    // The next certificate of the same name is good, and who only looks in is not refused.
    drop(TcpStream::connect(&rig.server.address).await.unwrap());
    rig.check(Some(&rig.ca.cell("/weft/admin/ops"))).await.unwrap();
    let mut stream = TcpStream::connect(&rig.server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let all = told(&rig.heard, 1).await;
    assert_eq!((all.len(), all[0].reason), (1, "HANDSHAKE_FAILED"), "{all:?}");
}

#[tokio::test]
async fn a_connection_beyond_the_share_is_told_with_its_caller() {
    let rig = Rig::new().await;
    let greedy = rig.ca.cell("/ns/default/greedy");
    let trust = rig.ca.trust(&rig.clock);
    let mut held = Vec::new();
    // As many as one workload may have, and one more.
    for _ in 0..33 {
        let live = channel(&rig.server.address, Some(&greedy), &trust, Expect::Member).unwrap();
        let _ = HealthClient::new(live.clone()).check(request()).await;
        held.push(live);
    }
    let all = told(&rig.heard, 1).await;
    assert!(
        all.iter().all(|it| it.reason == "CONNECTIONS_TOO_MANY"),
        "{all:?}"
    );
    let id = all[0].shown.as_ref().unwrap().id.to_string();
    assert_eq!(id, "spiffe://cluster.local/ns/default/greedy");
}

/// Answers only who says so.
#[derive(Clone)]
struct Slow;

impl tonic::server::NamedService for Slow {
    const NAME: &'static str = "weft.placement.v1.Placement";
}

impl tower::Service<http::Request<Body>> for Slow {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answers = request.headers().contains_key("answer");
        Box::pin(async move {
            if !answers {
                std::future::pending::<()>().await;
            }
            let status: Status = Refusal::new(Code::NotFound, "NOT_THERE", "test", "answered").into();
            Ok(status.into_http())
        })
    }
}

#[tokio::test]
async fn a_call_without_an_answer_in_time_is_told() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let heard = Arc::<Mutex<Vec<TurnedAway>>>::default();
    let put = heard.clone();
    let hears = move |it| put.lock().unwrap().push(it);
    let slow = |server: GrpcServer| {
        let server = server.answer_within(Duration::from_millis(300));
        server.on_turned_away(hears).add_service(Slow)
    };
    let server = ca.serve_with(&clock, ClientAuth::Required, slow).await;
    let node = ca.cell("/weft/node/n1");
    let live = channel(&server.address, Some(&node), &ca.trust(&clock), Expect::Member).unwrap();
    let method = "/weft.placement.v1.Placement/Lookup";
    let call = async |answer: bool| {
        let mut client = tonic::client::Grpc::new(live.clone());
        client.ready().await.unwrap();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let mut asked = Request::new(request());
        if answer {
            asked.metadata_mut().insert("answer", "yes".parse().unwrap());
        }
        let call = client.unary(asked, path, codec);
        let answer = timeout(PATIENCE, call).await.expect("it never ends");
        answer.map(drop).unwrap_err()
    };
    assert_eq!(call(true).await.code(), Code::NotFound);
    let status = call(false).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!(info.reason, "NOT_ANSWERED_IN_TIME");
    let all = told(&heard, 1).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (all[0].reason, all[0].method.as_str()),
        ("NOT_ANSWERED_IN_TIME", method)
    );
    assert_eq!(all[0].caller.node().as_deref(), Some("n1"));
}
