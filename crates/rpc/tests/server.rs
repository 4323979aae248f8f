//! A real server on real sockets: who gets in, who does not, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weft_model::TrustDomain;
use weft_rpc::{Admit, GrpcServer, MethodRoles, channel, channel_pinned};
use weft_tls::{Bundle, ClientAuth, Expect, ManualClock, Svid, SvidCell, Trust, root_sha256, server_config};

const NOW: u64 = 1_800_000_000;
const ROLES: MethodRoles = MethodRoles(&[("/weft.placement.v1.Placement/Lookup", &[Admit::Node])]);

struct Ca {
    root: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    td: TrustDomain,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = at(NOW - 100);
        params.not_after = at(NOW + 1_000_000);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: rcgen::Issuer::new(params, key),
            td: TrustDomain::default(),
        }
    }

    fn svid(&self, path: &str, seconds: u64) -> Svid {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(
            format!("spiffe://{}{path}", self.td).try_into().unwrap(),
        )];
        params.not_before = at(NOW - 60);
        params.not_after = at(NOW + seconds);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Svid::new(vec![leaf, self.root.clone()], &key).unwrap()
    }

    fn cell(&self, path: &str) -> SvidCell {
        let cell = SvidCell::new();
        cell.set(self.svid(path, 3600));
        cell
    }

    fn trust(&self, clock: &ManualClock) -> Trust {
        let trust = Trust::new(self.td.clone(), clock.shared());
        trust
            .set(Bundle {
                trust_domain: self.td.clone(),
                version: 1,
                roots: vec![self.root.clone()],
            })
            .unwrap();
        trust
    }
}

fn at(unix: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(unix).unwrap()).unwrap()
}

struct Running {
    address: String,
    trigger: weft_drain::Trigger,
    task: tokio::task::JoinHandle<Result<(), weft_rpc::RpcError>>,
}

async fn serve(ca: &Ca, clock: &ManualClock, auth: ClientAuth) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cell = ca.cell("/weft/service/placement");
    let tls = server_config(Arc::new(cell), &ca.trust(clock), auth, &[b"h2"]).unwrap();
    let (trigger, watcher) = weft_drain::channel();
    let server = GrpcServer::new("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS, ROLES)
        .unwrap()
        .build();
    let task = tokio::spawn(server.serve_tls(listener, Arc::new(tls), watcher));
    Running {
        address,
        trigger,
        task,
    }
}

async fn health(channel: tonic::transport::Channel) -> Result<i32, tonic::Status> {
    let mut client = HealthClient::new(channel);
    let reply = tokio::time::timeout(
        Duration::from_secs(20),
        client.check(HealthCheckRequest {
            service: String::new(),
        }),
    );
    reply.await.unwrap().map(|r| r.into_inner().status)
}

#[tokio::test]
async fn a_role_gets_in_and_others_do_not() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = serve(&ca, &clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let expect = || Expect::Id(ca.td.service("placement").unwrap());
    let call = |svid: Option<SvidCell>, expect: Expect| {
        health(channel(&server.address, svid.as_ref(), &trust, expect).unwrap())
    };

    assert_eq!(call(Some(ca.cell("/weft/admin/ops")), expect()).await.unwrap(), 1);
    let workload = call(Some(ca.cell("/ns/default/cart")), expect())
        .await
        .unwrap_err();
    assert_eq!(workload.code(), Code::PermissionDenied, "{workload}");
    // No certificate: the handshake itself fails.
    assert!(call(None, expect()).await.is_err());
    // A stranger's certificate, same name.
    assert!(
        call(Some(Ca::new().cell("/weft/admin/ops")), expect())
            .await
            .is_err()
    );
    // The client refuses a server that is not whom it expects.
    let wrong = Expect::Id(ca.td.service("policy").unwrap());
    assert!(call(Some(ca.cell("/weft/admin/ops")), wrong).await.is_err());
}

#[tokio::test]
async fn certificates_are_judged_by_the_clock() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = serve(&ca, &clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let call = || {
        health(
            channel(
                &server.address,
                Some(&ca.cell("/weft/admin/ops")),
                &trust,
                Expect::Member,
            )
            .unwrap(),
        )
    };
    assert!(call().await.is_ok());
    clock.advance(Duration::from_secs(4000));
    assert!(call().await.is_err(), "an expired certificate was taken");
    clock.set(NOW - 1000);
    assert!(call().await.is_err(), "a certificate of the future was taken");
    clock.set(NOW);
    assert!(call().await.is_ok());
}

#[tokio::test]
async fn a_pinned_root_is_the_only_one_taken() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = serve(&ca, &clock, ClientAuth::Optional).await;
    let expect = ca.td.service("placement").unwrap();
    let pinned = |sha| health(channel_pinned(&server.address, sha, expect.clone(), clock.shared()).unwrap());
    // In, but without a certificate nothing is admitted: the refusal is gRPC's, not TLS'.
    let refused = pinned(root_sha256(&ca.root)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let other = pinned(root_sha256(&Ca::new().root)).await.unwrap_err();
    assert_ne!(other.code(), Code::Unauthenticated, "{other}");
}

#[tokio::test]
async fn a_drain_ends_the_server() {
    let (ca, clock) = (Ca::new(), ManualClock::at(NOW));
    let server = serve(&ca, &clock, ClientAuth::Required).await;
    let trust = ca.trust(&clock);
    let live = channel(
        &server.address,
        Some(&ca.cell("/weft/admin/ops")),
        &trust,
        Expect::Member,
    )
    .unwrap();
    assert!(health(live.clone()).await.is_ok());
    assert_eq!(
        server.trigger.drain(Duration::from_secs(5)).await,
        weft_drain::Outcome::Drained
    );
    server.task.await.unwrap().unwrap();
    assert!(health(live).await.is_err());
}

#[tokio::test]
async fn the_local_socket_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/x.sock");
    let listener = weft_rpc::bind_local(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let (_trigger, watcher) = weft_drain::channel();
    let server = GrpcServer::new("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS, ROLES)
        .unwrap()
        .build();
    tokio::spawn(server.serve_local(listener, watcher));
    assert!(
        health(weft_rpc::channel_local(path.clone()).unwrap())
            .await
            .is_ok()
    );
    // A second server on a socket that is served is refused; on a left-over one it is not.
    assert!(weft_rpc::bind_local(&path).is_err());
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(weft_rpc::bind_local(&stale).is_ok());
}
