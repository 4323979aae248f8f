//! Every refusal as programs read it: its code, its reason, the field or the thing it is about, and
//! when to ask again. Beside each stands what is allowed and differs in one thing. Nothing is signed
//! for what is refused, and the record says why.

use crate::{
    rig::{Rig, cell, pattern, td},
    workloads::{registered, workload},
};
use std::{path::Path, time::Duration};
use tonic::{Code, Request, Status, transport::Channel};
use weft_drain::Trigger;
use weft_enroll::Member;
use weft_identity::{DOMAIN, Kind, Reason};
use weft_proto::{
    dapr::sentry::v1::{SignCertificateRequest, ca_client::CaClient},
    weft::identity::v1::{
        AckBundleRequest, AckBundleResponse, AttestRequest, BackupRequest, CreateJoinTokenRequest,
        HostPattern, JoinRequest, ReinstateRequest, RenewRequest, RevokeRequest, RotateRequest, RotateTarget,
        SignAdminRequest, SignJwtRequest, SignWorkloadRequest, SvidUse, WatchBundleRequest,
        admin_client::AdminClient, bootstrap_client::BootstrapClient,
        certificates_client::CertificatesClient, trust_client::TrustClient,
    },
};
use weft_rpc::{ErrorDetails, RPC_DOMAIN, StatusExt as _};
use weft_tls::new_key_and_csr;

const CART: &str = "n1/shop/cart/1";

/// A mesh with two nodes, and what tests ask of it.
struct World {
    rig: Rig,
    n1: Member,
    _drains: [Trigger; 3],
    policy: Member,
}

/// What a refusal is about.
#[derive(Debug, PartialEq)]
enum About<'a> {
    Field(&'a str),
    Resource(&'a str, &'a str),
    Precondition(&'a str, &'a str),
    Retry,
    Nothing,
}

fn details<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    reason: &str,
    domain: &str,
) -> ErrorDetails {
    let status = outcome.expect_err(reason);
    assert_eq!(status.code(), code, "{reason}: {status}");
    let details = status.check_error_details().unwrap();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("{reason}: no ErrorInfo in {status}"));
    assert_eq!((&*info.reason, &*info.domain), (reason, domain), "{status}");
    details
}

fn about(details: &ErrorDetails) -> About<'_> {
    if let Some(bad) = details.bad_request() {
        return About::Field(&bad.field_violations[0].field);
    }
    if let Some(it) = details.resource_info() {
        return About::Resource(&it.resource_type, &it.resource_name);
    }
    if let Some(it) = details.precondition_failure() {
        return About::Precondition(&it.violations[0].r#type, &it.violations[0].subject);
    }
    if details.retry_info().is_some_and(|r| r.retry_delay.is_some()) {
        return About::Retry;
    }
    About::Nothing
}

/// Refused so, about that.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: Reason, what: About<'_>) {
    let details = details(outcome, code, reason.as_str(), DOMAIN);
    assert_eq!(about(&details), what, "{reason:?}");
}

fn field<T: std::fmt::Debug>(outcome: Result<T, Status>, name: &str) {
    refused(
        outcome,
        Code::InvalidArgument,
        Reason::FieldInvalid,
        About::Field(name),
    );
}

fn csr() -> Vec<u8> {
    new_key_and_csr().unwrap().csr_der
}

impl World {
    async fn new() -> Self {
        let rig = Rig::insecure().await;
        let (n1, d1) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
        let (_n2, d2) = rig.join(Kind::Node, "n2", &[]).await;
        let (policy, d3) = rig.join(Kind::Service, "policy", &[]).await;
        let _drains = [d1, d2, d3];
        Self {
            rig,
            n1,
            _drains,
            policy,
        }
    }

    fn register(&self) {
        let mut nameless = workload("n1", "shop", "cart");
        nameless.id = "nameless".into();
        nameless.app_id = "a.b".into();
        nameless.spiffe_id = String::new();
        let mut lie = workload("n1", "shop", "cart");
        lie.id = "lie".into();
        lie.spiffe_id = "spiffe://cluster.local/weft/admin/ops".into();
        let all = vec![
            workload("n1", "shop", "cart"),
            workload("n1", "bank", "vault"),
            workload("n2", "shop", "pay"),
            nameless,
            lie,
        ];
        registered(&self.rig, all);
    }

    fn node(&self) -> Channel {
        self.rig.channel(Some(&self.n1.svid))
    }

    async fn sign(&self, id: &str, csr_der: Vec<u8>, r#use: SvidUse) -> Result<(), Status> {
        let request = SignWorkloadRequest {
            workload_id: id.into(),
            csr_der,
            r#use: r#use.into(),
        };
        CertificatesClient::new(self.node())
            .sign_workload(request)
            .await
            .map(drop)
    }

    async fn ask(&self, id: &str) -> Result<(), Status> {
        self.sign(id, csr(), SvidUse::Workload).await
    }

    async fn jwt(&self, id: &str, audience: &[&str]) -> Result<(), Status> {
        let request = SignJwtRequest {
            workload_id: id.into(),
            audience: audience.iter().map(ToString::to_string).collect(),
        };
        CertificatesClient::new(self.node())
            .sign_jwt(request)
            .await
            .map(drop)
    }

    async fn join(&self, token: &str, csr_der: Vec<u8>) -> Result<(), Status> {
        let token = token.to_owned();
        BootstrapClient::new(self.rig.channel(None))
            .join(JoinRequest { token, csr_der })
            .await
            .map(drop)
    }

    async fn token(
        &self,
        kind: &str,
        name: &str,
        hosts: &[(&str, &str)],
        ttl_seconds: u32,
    ) -> Result<String, Status> {
        let may_host = hosts.iter().map(|(namespace, app_id)| HostPattern {
            namespace: (*namespace).into(),
            app_id: (*app_id).into(),
        });
        let request = CreateJoinTokenRequest {
            kind: kind.into(),
            name: name.into(),
            may_host: may_host.collect(),
            ttl_seconds,
        };
        let made = AdminClient::new(self.rig.local())
            .create_join_token(request)
            .await?;
        Ok(made.into_inner().token)
    }

    async fn revoke(&self, target: &str, reason: &str) -> Result<(), Status> {
        let request = RevokeRequest {
            target: target.into(),
            reason: reason.into(),
        };
        AdminClient::new(self.rig.local()).revoke(request).await.map(drop)
    }

    async fn reinstate(&self, id: &str) -> Result<(), Status> {
        let request = ReinstateRequest { spiffe_id: id.into() };
        AdminClient::new(self.rig.local())
            .reinstate(request)
            .await
            .map(drop)
    }

    /// Shows a certificate request to each method that takes one.
    async fn show(&self, method: &str, csr_der: Vec<u8>) -> Result<(), Status> {
        match method {
            "Renew" => CertificatesClient::new(self.node())
                .renew(RenewRequest { csr_der })
                .await
                .map(drop),
            "SignWorkload" => self.sign(CART, csr_der, SvidUse::Tunnel).await,
            "Join" => {
                let token = self.token("node", "n3", &[], 0).await?;
                let shown = self.join(&token, csr_der).await;
                if shown.is_err() {
                    // It is not used up.
                    self.join(&token, csr()).await.unwrap();
                }
                shown
            }
            "SignAdmin" => {
                let request = SignAdminRequest {
                    name: "ops".into(),
                    csr_der,
                    ttl_seconds: 0,
                };
                AdminClient::new(self.rig.local())
                    .sign_admin(request)
                    .await
                    .map(drop)
            }
            "Attest" => {
                let request = AttestRequest {
                    evidence: None,
                    spiffe_id: td().workload("shop", "cart").unwrap().to_string(),
                    csr_der,
                };
                BootstrapClient::new(self.rig.channel(None))
                    .attest(request)
                    .await
                    .map(drop)
            }
            _ => {
                let block = pem::Pem::new("CERTIFICATE REQUEST", csr_der);
                let request = SignCertificateRequest {
                    id: "cart".into(),
                    namespace: "shop".into(),
                    certificate_signing_request: pem::encode(&block).into(),
                    ..Default::default()
                };
                CaClient::new(self.rig.channel(None))
                    .sign_certificate(request)
                    .await
                    .map(drop)
            }
        }
    }
}

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
    let made = new_key_and_csr().unwrap();
    let request = SignWorkloadRequest {
        workload_id: CART.into(),
        csr_der: made.csr_der,
        r#use: SvidUse::Workload.into(),
    };
    let reply = CertificatesClient::new(world.node())
        .sign_workload(request)
        .await
        .unwrap();
    let cart = cell(reply.into_inner().svid.unwrap().chain_der, &made.key);
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
