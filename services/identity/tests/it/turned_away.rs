//! The record of connections that came to nothing, and of calls that were not finished in time.

use crate::{
    audit::entries,
    rig::{Rig, cell},
    world::{World, csr},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{pin::pin, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use weft_proto::weft::identity::v1::{
    AuditEntry, ListAuditRequest, RenewRequest, RenewResponse, RevokeRequest, admin_client::AdminClient,
    certificates_client::CertificatesClient,
};
use weft_rpc::{RPC_DOMAIN, StatusExt as _};
use weft_tls::SvidCell;

const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

/// A certificate of another authority that says the same.
fn foreign(path: &str) -> SvidCell {
    let root_key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = rcgen::Issuer::new(root, root_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::default();
    let name = format!("spiffe://cluster.local{path}");
    leaf.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
    let leaf = leaf.signed_by(&key, &root).unwrap().der().to_vec();
    let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    cell(vec![leaf], &key)
}

async fn ask(rig: &Rig, svid: &SvidCell) -> Result<(), Status> {
    let mut admin = AdminClient::new(rig.channel(Some(svid)));
    admin.list_audit(ListAuditRequest::default()).await.map(drop)
}

fn serial(svid: &SvidCell) -> String {
    svid.get().unwrap().identity().serial.clone()
}

/// Those that begin so.
fn of<'a>(all: &'a [AuditEntry], reason: &str) -> Vec<&'a AuditEntry> {
    all.iter().filter(|e| e.reason.starts_with(reason)).collect()
}

#[tokio::test]
async fn handshakes_that_are_refused_are_recorded_with_what_they_showed() {
    let rig = Rig::new().await;
    let (good, old) = (rig.admin("ops").await, rig.admin("old").await);
    ask(&rig, &good).await.unwrap();
    ask(&rig, &foreign("/weft/admin/ops")).await.unwrap_err();
    // Revoked: the good one's twin.
    let copied = rig.admin("ops").await;
    ask(&rig, &copied).await.unwrap();
    let order = RevokeRequest {
        target: serial(&copied),
        reason: "its key was copied".into(),
    };
    AdminClient::new(rig.local()).revoke(order).await.unwrap();
    let refused = async { while ask(&rig, &copied).await.is_ok() {} };
    timeout(PATIENCE, refused).await.expect("it is still taken");
    ask(&rig, &good).await.unwrap();
    // No TLS at all; and one that only looks in, which is nobody's refusal.
    let mut plain = TcpStream::connect(rig.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    drop(TcpStream::connect(rig.address()).await.unwrap());
    // Past the end of those from before.
    rig.clock.advance(25 * HOUR);
    let now = rig.admin("ops").await;
    let renewed = async { while ask(&rig, &now).await.is_err() {} };
    timeout(PATIENCE, renewed).await.expect("it is not taken");
    ask(&rig, &old).await.unwrap_err();

    let all = entries(&rig, "handshake", 4).await;
    assert_eq!(all.len(), 4, "{all:?}");
    let ops = "spiffe://cluster.local/weft/admin/ops";
    let revoked = format!("the certificate is revoked (serial {})", serial(&copied));
    let expired = format!("the certificate has expired (serial {})", serial(&old));
    for (named, reason) in [
        (ops, "the certificate is under none of the mesh's roots (serial "),
        (ops, &revoked),
        ("", "the TLS handshake failed: "),
        ("spiffe://cluster.local/weft/admin/old", &expired),
    ] {
        let one = of(&all, reason);
        assert_eq!(one.len(), 1, "{reason}: {all:?}");
        assert_eq!(
            (one[0].spiffe_id.as_str(), one[0].caller.as_str()),
            (named, "anonymous at 127.0.0.1")
        );
    }
    for reason in [
        "CERTIFICATE_UNKNOWN_ISSUER",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_EXPIRED",
    ] {
        assert!(rig.refused(reason) >= 1, "{reason}: {}", rig.metrics.text());
    }

    // Again and again: once in ten minutes, with how often.
    for _ in 0..5 {
        ask(&rig, &old).await.unwrap_err();
    }
    rig.clock.advance(Duration::from_secs(600));
    let all = entries(&rig, "handshake", 5).await;
    let again = of(&all, &expired);
    assert_eq!(again.len(), 2, "{all:?}");
    // Newest first. A call may try to connect more than once.
    let count = again[0].reason.split("; ").nth(1).unwrap();
    let count: u32 = count.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= 5, "{again:?}");
}

#[tokio::test]
async fn a_scanner_does_not_fill_the_record() {
    const RECORDED: usize = 30;
    let world = World::new().await;
    world.register();
    let rig = &world.rig;
    for n in 0..RECORDED + 6 {
        ask(rig, &foreign(&format!("/weft/admin/scan-{n}")))
            .await
            .unwrap_err();
    }
    // What is refused to others is recorded all the same, and who may is admitted.
    world.ask("n2/shop/pay/1").await.unwrap_err();
    ask(rig, &rig.admin("ops").await).await.unwrap();
    assert_eq!(entries(rig, "sign-workload", 1).await.len(), 1);
    let told = async {
        while rig.refused("CERTIFICATE_UNKNOWN_ISSUER") < RECORDED as u64 + 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, told).await.unwrap();
    assert_eq!(entries(rig, "handshake", RECORDED).await.len(), RECORDED);
    rig.clock.advance(Duration::from_secs(60));
    let left_out = entries(rig, "left-out", 1).await;
    assert_eq!((left_out.len(), left_out[0].caller.as_str()), (1, "connections"));
    let count: u32 = left_out[0].reason.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= 6, "{left_out:?}");
}

#[tokio::test]
async fn a_call_that_is_never_finished_ends_and_is_recorded() {
    let world = World::new().await;
    let rig = &world.rig;
    // Its twin is answered.
    let request = RenewRequest { csr_der: csr() };
    CertificatesClient::new(world.node())
        .renew(request)
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(world.node());
    client.ready().await.unwrap();
    let method = "/weft.identity.v1.Certificates/Renew";
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    // Its headers are sent, its message never comes.
    let nothing = Request::new(futures::stream::pending::<RenewRequest>());
    let codec = ProstCodec::<RenewRequest, RenewResponse>::default();
    let mut call = pin!(client.client_streaming(nothing, path, codec));
    let mut ended = None;
    for _ in 0..30 {
        // A little for what goes over sockets, and more than a minute for what waits.
        if let Ok(end) = timeout(Duration::from_millis(300), &mut call).await {
            ended = Some(end.map(drop).unwrap_err());
            break;
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
    }
    let status = ended.expect("it never ends");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("NOT_ANSWERED_IN_TIME", RPC_DOMAIN)
    );
    let all = entries(rig, "call", 1).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (
            all[0].caller.as_str(),
            all[0].spiffe_id.as_str(),
            all[0].reason.as_str()
        ),
        (
            "spiffe://cluster.local/weft/node/n1",
            method,
            "no answer within 60 s"
        )
    );
    assert_eq!(rig.refused("NOT_ANSWERED_IN_TIME"), 1);
}
