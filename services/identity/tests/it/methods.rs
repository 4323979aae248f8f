//! Every method, called by every role.

use crate::rig::{Rig, cell, pattern, td};
use std::time::Duration;
use tonic::{Code, Status, transport::Channel};
use weft_identity::{Kind, ROLES};
use weft_proto::dapr::sentry::v1::{
    SignCertificateRequest, ca_client::CaClient, sign_certificate_request::TokenValidator,
};
use weft_proto::weft::{
    identity::v1::{
        AckBundleRequest, AttestRequest, BackupRequest, CreateJoinTokenRequest, GetAuthorityRequest,
        JoinRequest, ListAuditRequest, ListRevocationsRequest, ReinstateRequest, RenewRequest, RevokeRequest,
        RotateRequest, RotateTarget, SignAdminRequest, SignIngressRequest, SignJwtRequest,
        SignWorkloadRequest, SvidUse, WatchBundleRequest, WatchNodesRequest, admin_client::AdminClient,
        bootstrap_client::BootstrapClient, certificates_client::CertificatesClient,
        members_client::MembersClient, trust_client::TrustClient,
    },
    policy::v1::{WatchResponse, Workload},
};
use weft_tls::{SvidCell, new_key_and_csr};

/// Calls a method with a request that has nothing wrong with it but, maybe, its sender.
async fn call(rig: &Rig, channel: Channel, method: &str) -> Result<(), Status> {
    let csr_der = new_key_and_csr().unwrap().csr_der;
    let done = |_| ();
    match method.rsplit('/').next().unwrap() {
        "Join" => {
            let token = rig.token(Kind::Node, "joiner", &[]).await.reveal().to_string();
            BootstrapClient::new(channel)
                .join(JoinRequest { token, csr_der })
                .await
                .map(|_| ())
        }
        "Attest" => {
            let request = AttestRequest {
                csr_der,
                spiffe_id: td().workload("shop", "guest").unwrap().to_string(),
                evidence: None,
            };
            BootstrapClient::new(channel).attest(request).await.map(|_| ())
        }
        "SignCertificate" => {
            let block = pem::Pem::new("CERTIFICATE REQUEST", csr_der);
            let request = SignCertificateRequest {
                id: "cart".into(),
                namespace: "shop".into(),
                certificate_signing_request: pem::encode(&block).into(),
                token_validator: TokenValidator::Insecure.into(),
                ..Default::default()
            };
            CaClient::new(channel).sign_certificate(request).await.map(|_| ())
        }
        "Renew" => CertificatesClient::new(channel)
            .renew(RenewRequest { csr_der })
            .await
            .map(|_| ()),
        "SignWorkload" => {
            let request = SignWorkloadRequest {
                workload_id: "n1/shop/cart/1".into(),
                csr_der,
                r#use: SvidUse::Workload.into(),
            };
            CertificatesClient::new(channel)
                .sign_workload(request)
                .await
                .map(|_| ())
        }
        "SignIngress" => CertificatesClient::new(channel)
            .sign_ingress(SignIngressRequest { csr_der })
            .await
            .map(|_| ()),
        "SignJwt" => {
            let request = SignJwtRequest {
                workload_id: "n1/shop/cart/1".into(),
                audience: vec!["bank".into()],
            };
            CertificatesClient::new(channel)
                .sign_jwt(request)
                .await
                .map(|_| ())
        }
        "WatchBundle" => {
            let mut stream = TrustClient::new(channel)
                .watch_bundle(WatchBundleRequest { held_version: 0 })
                .await?
                .into_inner();
            let first = stream.message().await?.unwrap();
            assert_eq!(first.bundle.unwrap().version, 1);
            Ok(())
        }
        "WatchNodes" => {
            let mut stream = MembersClient::new(channel)
                .watch_nodes(WatchNodesRequest {})
                .await?
                .into_inner();
            let first = stream.message().await?.unwrap();
            assert!(first.snapshot && first.upserts.iter().any(|n| n.name == "n1"));
            Ok(())
        }
        "AckBundle" => {
            let mut trust = TrustClient::new(channel);
            let mut stream = match trust.watch_bundle(WatchBundleRequest { held_version: 0 }).await {
                Ok(stream) => stream.into_inner(),
                // Then the acknowledgement itself must be refused as well.
                Err(_) => {
                    let request = AckBundleRequest::default();
                    return trust.ack_bundle(request).await.map(|_| ());
                }
            };
            let watch_id = stream.message().await?.unwrap().watch_id;
            let request = AckBundleRequest { watch_id, version: 1 };
            trust.ack_bundle(request).await.map(|_| ())
        }
        "GetAuthority" => AdminClient::new(channel)
            .get_authority(GetAuthorityRequest {})
            .await
            .map(|_| ()),
        "Revoke" => {
            let request = RevokeRequest {
                target: td().workload("shop", "gone").unwrap().to_string(),
                reason: "test".into(),
            };
            AdminClient::new(channel).revoke(request).await.map(|_| ())
        }
        "Reinstate" => {
            let spiffe_id = td().workload("shop", "gone").unwrap().to_string();
            // For those who may.
            let request = RevokeRequest {
                target: spiffe_id.clone(),
                reason: "test".into(),
            };
            AdminClient::new(rig.local()).revoke(request).await.unwrap();
            let request = ReinstateRequest { spiffe_id };
            AdminClient::new(channel).reinstate(request).await.map(|_| ())
        }
        "Backup" => {
            let request = BackupRequest {
                passphrase: "correct horse battery".into(),
            };
            AdminClient::new(channel).backup(request).await.map(|_| ())
        }
        "ListRevocations" => AdminClient::new(channel)
            .list_revocations(ListRevocationsRequest {})
            .await
            .map(|_| ()),
        "Rotate" => {
            let request = RotateRequest {
                target: RotateTarget::Issuer.into(),
            };
            AdminClient::new(channel).rotate(request).await.map(|_| ())
        }
        "CreateJoinToken" => {
            let request = CreateJoinTokenRequest {
                kind: "node".into(),
                name: "n9".into(),
                ..Default::default()
            };
            AdminClient::new(channel)
                .create_join_token(request)
                .await
                .map(|_| ())
        }
        "SignAdmin" => {
            let request = SignAdminRequest {
                name: "ops".into(),
                csr_der,
                ttl_seconds: 60,
            };
            AdminClient::new(channel).sign_admin(request).await.map(|_| ())
        }
        "ListAudit" => AdminClient::new(channel)
            .list_audit(ListAuditRequest::default())
            .await
            .map(|_| ()),
        other => panic!("{other} is not called here: add it"),
    }
    .map(done)
}

/// A workload's certificate as its node is given it.
async fn workload(rig: &Rig, node: &SvidCell) -> SvidCell {
    let made = new_key_and_csr().unwrap();
    let request = SignWorkloadRequest {
        workload_id: "n1/shop/cart/1".into(),
        csr_der: made.csr_der,
        r#use: SvidUse::Workload.into(),
    };
    let reply = CertificatesClient::new(rig.channel(Some(node)))
        .sign_workload(request)
        .await
        .unwrap();
    cell(reply.into_inner().svid.unwrap().chain_der, &made.key)
}

/// Each node has the name for its own gateways, with which it opens tunnels and calls no API.
#[tokio::test]
async fn a_node_is_named_as_the_ingress_that_it_is() {
    let rig = Rig::new().await;
    let (node, _drain) = rig.join(Kind::Node, "n1", &[]).await;
    let made = new_key_and_csr().unwrap();
    let request = SignIngressRequest {
        csr_der: made.csr_der,
    };
    let reply = CertificatesClient::new(rig.channel(Some(&node.svid)))
        .sign_ingress(request)
        .await
        .unwrap();
    let ingress = cell(reply.into_inner().svid.unwrap().chain_der, &made.key);
    let identity = ingress.get().unwrap().identity().clone();
    assert_eq!(identity.id.as_str(), "spiffe://cluster.local/weft/ingress/n1");
    assert_eq!(identity.node.as_deref(), Some("n1"));
    let refused = |channel| async move {
        let made = new_key_and_csr().unwrap();
        let request = SignIngressRequest {
            csr_der: made.csr_der,
        };
        CertificatesClient::new(channel)
            .sign_ingress(request)
            .await
            .unwrap_err()
            .code()
    };
    assert_eq!(
        refused(rig.channel(Some(&ingress))).await,
        tonic::Code::PermissionDenied
    );
    let (service, _service_drain) = rig.join(Kind::Service, "policy", &[]).await;
    assert_eq!(
        refused(rig.channel(Some(&service.svid))).await,
        tonic::Code::PermissionDenied
    );
}

#[tokio::test]
async fn each_role_may_call_its_methods_and_no_others() {
    let rig = Rig::insecure().await;
    let known = Workload {
        id: "n1/shop/cart/1".into(),
        node: "n1".into(),
        namespace: "shop".into(),
        app_id: "cart".into(),
        ..Default::default()
    };
    let snapshot = WatchResponse {
        snapshot: true,
        upserts: vec![known],
        removed_ids: vec![],
    };
    rig.handle.registry().apply(snapshot).unwrap();
    let (node, _node_drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let (service, _service_drain) = rig.join(Kind::Service, "policy", &[]).await;
    let admin = rig.admin("ops").await;
    let workload = workload(&rig, &node.svid).await;

    let roles: [(&str, Channel); 6] = [
        ("service", rig.channel(Some(&service.svid))),
        ("node", rig.channel(Some(&node.svid))),
        ("admin", rig.channel(Some(&admin))),
        ("workload", rig.channel(Some(&workload))),
        ("none", rig.channel(None)),
        ("local", rig.local()),
    ];
    let admitted: &[(&str, &[&str])] = &[
        (
            "/weft.identity.v1.Bootstrap/Join",
            &["service", "node", "admin", "none", "local"],
        ),
        (
            "/weft.identity.v1.Bootstrap/Attest",
            &["service", "node", "admin", "none", "local"],
        ),
        (
            "/dapr.proto.sentry.v1.CA/SignCertificate",
            &["service", "node", "admin", "none", "local"],
        ),
        ("/weft.identity.v1.Certificates/Renew", &["service", "node"]),
        ("/weft.identity.v1.Certificates/SignWorkload", &["node"]),
        ("/weft.identity.v1.Certificates/SignIngress", &["node"]),
        ("/weft.identity.v1.Certificates/SignJwt", &["node"]),
        (
            "/weft.identity.v1.Trust/WatchBundle",
            &["service", "node", "admin", "local"],
        ),
        // The service that joined here is policy.
        ("/weft.identity.v1.Members/WatchNodes", &["service"]),
        ("/weft.identity.v1.Trust/AckBundle", &["service", "node"]),
        ("/weft.identity.v1.Admin/CreateJoinToken", &["admin", "local"]),
        ("/weft.identity.v1.Admin/SignAdmin", &["admin", "local"]),
        ("/weft.identity.v1.Admin/ListAudit", &["admin", "local"]),
        ("/weft.identity.v1.Admin/GetAuthority", &["admin", "local"]),
        ("/weft.identity.v1.Admin/Rotate", &["admin", "local"]),
        ("/weft.identity.v1.Admin/Revoke", &["admin", "local"]),
        ("/weft.identity.v1.Admin/Reinstate", &["admin", "local"]),
        ("/weft.identity.v1.Admin/ListRevocations", &["admin", "local"]),
        ("/weft.identity.v1.Admin/Backup", &["local"]),
    ];
    let mut methods = weft_rpc::methods("weft.identity.v1", weft_proto::WEFT_DESCRIPTORS).unwrap();
    methods.extend(weft_rpc::methods("dapr.proto.sentry.v1", weft_proto::DAPR_DESCRIPTORS).unwrap());
    assert_eq!(methods.len(), ROLES.0.len());
    for method in &methods {
        let (_, wanted) = admitted.iter().find(|(m, _)| m == method).unwrap();
        for (role, channel) in &roles {
            let outcome = call(&rig, channel.clone(), method).await;
            let refused = outcome
                .as_ref()
                .is_err_and(|s| matches!(s.code(), Code::PermissionDenied | Code::Unauthenticated));
            if wanted.contains(role) {
                assert!(outcome.is_ok(), "{method} by {role}: {outcome:?}");
            } else {
                assert!(refused, "{method} by {role}: {outcome:?}");
            }
        }
    }
}

#[tokio::test]
async fn who_is_not_trusted_does_not_get_in() {
    let (rig, other) = (Rig::new().await, Rig::new().await);
    // An operator of another mesh with the same names.
    let stranger = other.admin("ops").await;
    let outcome = call(
        &rig,
        rig.channel(Some(&stranger)),
        "/weft.identity.v1.Admin/ListAudit",
    )
    .await;
    assert!(outcome.is_err());
    assert!(
        call(
            &other,
            other.channel(Some(&stranger)),
            "/weft.identity.v1.Admin/ListAudit"
        )
        .await
        .is_ok()
    );
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason() {
    let rig = Rig::new().await;
    let mut admin = AdminClient::new(rig.local());
    for (kind, name, pattern, reason) in [
        ("admin", "x", None, "kind"),
        ("node", "Bad_Name", None, "name"),
        ("service", "identity", None, "identity service joins nobody"),
        ("service", "policy", Some(("a", "b")), "hosts no workloads"),
        ("node", "n1", Some(("a/b", "c")), "host pattern"),
    ] {
        let may_host = pattern
            .map(
                |(namespace, app_id): (&str, &str)| weft_proto::weft::identity::v1::HostPattern {
                    namespace: namespace.into(),
                    app_id: app_id.into(),
                },
            )
            .into_iter()
            .collect();
        let request = CreateJoinTokenRequest {
            kind: kind.into(),
            name: name.into(),
            may_host,
            ttl_seconds: 0,
        };
        let status = admin.create_join_token(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{kind} {name}");
        assert!(
            status.message().contains(reason),
            "{kind} {name}: {}",
            status.message()
        );
    }
    let long = CreateJoinTokenRequest {
        kind: "node".into(),
        name: "n1".into(),
        ttl_seconds: 86_401,
        ..Default::default()
    };
    assert!(
        admin
            .create_join_token(long)
            .await
            .unwrap_err()
            .message()
            .contains("86400")
    );
    let garbage = SignAdminRequest {
        name: "ops".into(),
        csr_der: vec![0x30; 100],
        ttl_seconds: 0,
    };
    assert_eq!(
        admin.sign_admin(garbage).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let refusals = rig
        .audit()
        .await
        .into_iter()
        .filter(|e| e.outcome == "refuse")
        .count();
    assert_eq!(refusals, 7);
}

#[tokio::test]
async fn operators_certificates_are_short() {
    let rig = Rig::new().await;
    let admin = rig.admin("ops").await.get().unwrap();
    assert_eq!(*admin.id(), td().admin("ops").unwrap());
    assert_eq!(admin.identity().not_after, crate::rig::NOW + 3600);
}

#[tokio::test]
async fn an_operators_certificate_ends_with_the_one_it_was_asked_with() {
    let rig = Rig::new().await;
    let first = rig.admin("ops").await;
    rig.clock.advance(Duration::from_secs(3000));
    let ask = async |channel: Channel, ttl_seconds| {
        let made = new_key_and_csr().unwrap();
        let request = SignAdminRequest {
            name: "ops".into(),
            csr_der: made.csr_der,
            ttl_seconds,
        };
        let reply = AdminClient::new(channel).sign_admin(request).await.unwrap();
        let made = cell(reply.into_inner().svid.unwrap().chain_der, &made.key);
        made.get().unwrap().identity().not_after - crate::rig::NOW
    };
    assert_eq!(ask(rig.channel(Some(&first)), 3600).await, 3600);
    assert_eq!(ask(rig.channel(Some(&first)), 60).await, 3060);
    // The same on the local socket begins anew.
    assert_eq!(ask(rig.local(), 3600).await, 6600);
}
