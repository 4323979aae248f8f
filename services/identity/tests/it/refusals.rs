//! Every refusal as programs read it: its code, its reason, the field or the thing it is about, and
//! when to ask again. Beside each stands what is allowed and differs in one thing. Nothing is signed
//! for what is refused, and the record says why.

use crate::{
    rig::td,
    world::{About, CART, World, about, csr, details, field, refused},
};
use std::{path::Path, time::Duration};
use tonic::{Code, Request, Status};
use weft_identity::Reason;
use weft_proto::weft::identity::v1::{
    AckBundleRequest, AckBundleResponse, BackupRequest, JoinRequest, RotateRequest, RotateTarget,
    SignAdminRequest, SvidUse, WatchBundleRequest, admin_client::AdminClient,
    bootstrap_client::BootstrapClient, trust_client::TrustClient,
};
use weft_rpc::RPC_DOMAIN;

#[tokio::test]
async fn what_a_node_may_not_have_says_why() {
    let world = World::new().await;
    let away = world.ask(CART).await;
    refused(away, Code::Unavailable, Reason::RegistryNotReady, About::Retry);
    world.register();
    world.ask(CART).await.unwrap();
    let denied = Code::PermissionDenied;
    let about = |kind, name| About::Resource(kind, name);

    let id = "n1/shop/cart/2";
    let unknown = world.ask(id).await;
    refused(
        unknown,
        Code::NotFound,
        Reason::WorkloadUnknown,
        about("workload", id),
    );
    let id = "n2/shop/pay/1";
    refused(
        world.ask(id).await,
        denied,
        Reason::WorkloadElsewhere,
        about("workload", id),
    );
    refused(
        world.jwt(id, &["bank"]).await,
        denied,
        Reason::WorkloadElsewhere,
        about("workload", id),
    );
    let vault = world.ask("n1/bank/vault/1").await;
    let id = "spiffe://cluster.local/ns/bank/vault";
    refused(vault, denied, Reason::HostingNotPermitted, about("identity", id));
    refused(
        world.ask("nameless").await,
        denied,
        Reason::NotNameable,
        About::Nothing,
    );
    refused(
        world.ask("lie").await,
        denied,
        Reason::RegistryContradicts,
        About::Nothing,
    );
    field(world.sign(CART, csr(), SvidUse::Unspecified).await, "use");
    field(world.jwt(CART, &[]).await, "audience");
    field(world.jwt(CART, &["bank", ""]).await, "audience");
    world.jwt(CART, &["bank"]).await.unwrap();

    let cart = td().workload("shop", "cart").unwrap().to_string();
    refused(
        world.reinstate(&cart).await,
        Code::NotFound,
        Reason::NotRevoked,
        about("identity", &cart),
    );
    world.revoke(&cart, "its key was copied").await.unwrap();
    refused(
        world.ask(CART).await,
        denied,
        Reason::IdentityRevoked,
        about("identity", &cart),
    );
    refused(
        world.jwt(CART, &["bank"]).await,
        denied,
        Reason::IdentityRevoked,
        about("identity", &cart),
    );
    world.reinstate(&cart).await.unwrap();
    world.ask(CART).await.unwrap();

    let reasons: Vec<_> = world
        .rig
        .audit()
        .await
        .into_iter()
        .map(|e| (e.outcome, e.reason))
        .collect();
    for text in [
        "not registered",
        "runs on node",
        "may not host",
        "can not be named",
        "registry names",
        "is revoked",
    ] {
        let told = reasons
            .iter()
            .any(|(outcome, reason)| outcome == "refuse" && reason.contains(text));
        assert!(told, "{text:?} is not in the record");
    }
}

#[tokio::test]
async fn what_operators_get_wrong_names_the_field() {
    let world = World::new().await;
    world.register();
    field(world.token("admin", "x", &[], 0).await, "kind");
    field(world.token("node", "Bad_Name", &[], 0).await, "name");
    field(world.token("node", &"n".repeat(128), &[], 0).await, "name");
    field(world.token("service", "identity", &[], 0).await, "name");
    field(
        world.token("service", "policy", &[("a", "b")], 0).await,
        "may_host",
    );
    field(world.token("node", "n9", &[("a/b", "c")], 0).await, "may_host");
    field(world.token("node", "n9", &[], 86_401).await, "ttl_seconds");
    world.token("node", "n9", &[("a", "c")], 86_400).await.unwrap();

    let admin = |name: &str| SignAdminRequest {
        name: name.into(),
        csr_der: csr(),
        ttl_seconds: 0,
    };
    let mut client = AdminClient::new(world.rig.local());
    field(client.sign_admin(admin("../x")).await, "name");
    client.sign_admin(admin("x")).await.unwrap();
    field(world.revoke("nothing", "x").await, "target");
    field(world.revoke("spiffe://elsewhere/ns/a/b", "x").await, "target");
    field(
        world
            .revoke("spiffe://cluster.local/weft/service/identity", "x")
            .await,
        "target",
    );
    field(world.revoke("0a0b", " ").await, "reason");
    world.revoke("0a0b", "lost").await.unwrap();
    let backup = |passphrase: &str| BackupRequest {
        passphrase: passphrase.into(),
    };
    field(client.backup(backup("short")).await, "passphrase");
    client.backup(backup("correct horse battery")).await.unwrap();
    let rotate = |target: RotateTarget| RotateRequest {
        target: target.into(),
    };
    field(client.rotate(rotate(RotateTarget::Unspecified)).await, "target");
    client.rotate(rotate(RotateTarget::Issuer)).await.unwrap();
    // Somebody who watches and never says that it has the new root.
    let mut trust = TrustClient::new(world.rig.channel(Some(&world.policy.svid)));
    let held = trust
        .watch_bundle(WatchBundleRequest { held_version: 1 })
        .await
        .unwrap();
    client.rotate(rotate(RotateTarget::Root)).await.unwrap();
    refused(
        client.rotate(rotate(RotateTarget::Issuer)).await,
        Code::FailedPrecondition,
        Reason::RotationUnderWay,
        About::Precondition("rotation", "root"),
    );
    drop(held);
    let ack = AckBundleRequest {
        watch_id: 77,
        version: 1,
    };
    refused(
        trust.ack_bundle(ack).await,
        Code::NotFound,
        Reason::StreamUnknown,
        About::Resource("stream", "77"),
    );
}

#[tokio::test]
async fn join_tokens_say_what_is_wrong_with_them() {
    let world = World::new().await;
    let denied = Code::PermissionDenied;
    let id = |token: &str| token.parse::<weft_enroll::JoinToken>().unwrap().id().to_owned();
    field(world.join("no token", csr()).await, "token");
    let forged = weft_enroll::JoinToken::new(world.rig.handle.root_sha256(), [7; 8], [7; 32]);
    let outcome = world.join(forged.reveal().as_ref(), csr()).await;
    refused(
        outcome,
        denied,
        Reason::JoinTokenUnknown,
        About::Resource("join-token", forged.id()),
    );

    let (used, late) = (
        world.token("node", "n4", &[], 60).await.unwrap(),
        world.token("node", "n5", &[], 60).await.unwrap(),
    );
    world.join(&used, csr()).await.unwrap();
    let outcome = world.join(&used, csr()).await;
    refused(
        outcome,
        denied,
        Reason::JoinTokenUsed,
        About::Resource("join-token", &id(&used)),
    );
    world.rig.clock.advance(Duration::from_secs(61));
    let outcome = world.join(&late, csr()).await;
    refused(
        outcome,
        denied,
        Reason::JoinTokenExpired,
        About::Resource("join-token", &id(&late)),
    );

    // Workloads do not join, whatever token they found.
    world.register();
    let cart = world.workload_cell().await;
    let token = world.token("node", "n6", &[], 60).await.unwrap();
    let request = JoinRequest {
        token: token.clone(),
        csr_der: csr(),
    };
    let outcome = BootstrapClient::new(world.rig.channel(Some(&cart)))
        .join(request)
        .await;
    refused(outcome, denied, Reason::WorkloadsDoNotJoin, About::Nothing);
    world.join(&token, csr()).await.unwrap();
}

#[tokio::test]
async fn hostile_certificate_requests_get_nothing_from_any_method() {
    let world = World::new().await;
    world.register();
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus/csr")
            .join(format!("{name}.der"));
        std::fs::read(path).unwrap()
    };
    let good = csr();
    let mut other_key = good.clone();
    let at = other_key.windows(2).position(|w| w == [0x00, 0x04]).unwrap();
    let stranger = csr();
    let from = stranger.windows(2).position(|w| w == [0x00, 0x04]).unwrap();
    other_key[at..at + 66].copy_from_slice(&stranger[from..from + 66]);
    let hostile: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("nothing", Vec::new(), Reason::CsrMalformed),
        ("garbage", vec![0x30; 300], Reason::CsrMalformed),
        ("cut", good[..good.len() - 1].to_vec(), Reason::CsrMalformed),
        (
            "followed by more",
            [&good[..], &[0]].concat(),
            Reason::CsrMalformed,
        ),
        (
            "a certificate",
            world.rig.handle.credentials().1.bundle().roots[0].to_vec(),
            Reason::CsrMalformed,
        ),
        ("too large", [&good[..], &[0; 4096]].concat(), Reason::CsrTooLarge),
        ("another's key", other_key, Reason::CsrSignature),
        ("RSA 1024", file("rsa1024"), Reason::CsrKeyType),
        ("RSA 2048", file("rsa2048"), Reason::CsrKeyType),
        ("P-192", file("p192"), Reason::CsrKeyType),
        ("P-224", file("p224"), Reason::CsrKeyType),
        ("P-521", file("p521"), Reason::CsrKeyType),
        ("secp256k1", file("secp256k1"), Reason::CsrKeyType),
        ("a DNS name", file("p256-dns"), Reason::CsrNames),
        ("an operator's name", file("p256-uri"), Reason::CsrNames),
        ("a CA", file("p256-ca"), Reason::CsrAuthority),
        ("signs others", file("p256-signs"), Reason::CsrAuthority),
    ];
    for method in [
        "Renew",
        "SignWorkload",
        "SignAdmin",
        "Attest",
        "SignCertificate",
        "Join",
    ] {
        let name = match method {
            "SignCertificate" => "certificate_signing_request",
            _ => "csr_der",
        };
        for good in ["p256", "p256-subject", "p256-usage", "p384", "ed25519"] {
            world.show(method, file(good)).await.unwrap();
        }
        for (what, csr_der, reason) in &hostile {
            let before = world.rig.audit().await;
            let issued = |entries: &[weft_proto::weft::identity::v1::AuditEntry]| {
                let mine = entries
                    .iter()
                    .filter(|e| e.outcome == "issue" && !e.serial.is_empty());
                mine.count()
            };
            let outcome = world.show(method, csr_der.clone()).await;
            let text = outcome
                .as_ref()
                .err()
                .map(|s| s.message().to_owned())
                .unwrap_or_default();
            println!("{method}: {what}: {text}");
            refused(outcome, Code::InvalidArgument, *reason, About::Field(name));
            let after = world.rig.audit().await;
            // Its twin that a join token is then good for is issued, and nothing else.
            let twins = usize::from(method == "Join");
            assert_eq!(
                issued(&after),
                issued(&before) + twins,
                "{method}: {what} was signed"
            );
            let newest = after.iter().find(|e| e.outcome == "refuse").unwrap();
            assert_eq!(newest.reason, text, "{method}: {what}");
        }
    }
}

#[tokio::test]
async fn what_no_handler_sees_has_details_as_well() {
    let world = World::new().await;
    let admin = "/weft.identity.v1.Admin/ListAudit";
    let list = |channel| async {
        AdminClient::new(channel)
            .list_audit(Request::new(Default::default()))
            .await
    };
    let rpc = |outcome: Result<_, Status>, code, reason| details(outcome, code, reason, RPC_DOMAIN);
    let none = rpc(
        list(world.rig.channel(None)).await,
        Code::Unauthenticated,
        "CERTIFICATE_REQUIRED",
    );
    assert_eq!(about(&none), About::Resource("method", admin));
    let node = rpc(
        list(world.node()).await,
        Code::PermissionDenied,
        "ROLE_NOT_ADMITTED",
    );
    assert_eq!(about(&node), About::Resource("method", admin));
    list(world.rig.local()).await.unwrap();

    // A message that is larger than any good one, and one that is none.
    let outcome = world.join(&"x".repeat(70_000), csr()).await;
    details(outcome, Code::OutOfRange, "MESSAGE_TOO_LARGE", RPC_DOMAIN);
    // A number where a text belongs.
    let raw = |path: &'static str| {
        let mut client = tonic::client::Grpc::new(world.rig.channel(None));
        async move {
            client.ready().await.unwrap();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<AckBundleRequest, AckBundleResponse>::default();
            let message = AckBundleRequest {
                watch_id: 5,
                version: 0,
            };
            client.unary(Request::new(message), path, codec).await
        }
    };
    let broken = raw("/weft.identity.v1.Bootstrap/Join").await;
    details(broken, Code::Internal, "MESSAGE_MALFORMED", RPC_DOMAIN);
    let unknown = raw("/weft.identity.v1.Bootstrap/New").await;
    details(unknown, Code::Unimplemented, "METHOD_UNKNOWN", RPC_DOMAIN);
}
