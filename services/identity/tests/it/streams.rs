//! The two streams: the registry that the service follows, and the bundle that members follow.

use crate::rig::{Rig, cell, config, pattern, td};
use futures::{StreamExt, stream::BoxStream};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tonic::{Request, Response, Status};
use weft_drain::Trigger;
use weft_identity::{Config, Env, Kind};
use weft_proto::weft::{
    identity::v1::{
        AckBundleRequest, AckBundleResponse, SignWorkloadRequest, SvidUse, TrustBundle, WatchBundleRequest,
        WatchBundleResponse, WatchNodesRequest, WatchNodesResponse,
        certificates_client::CertificatesClient,
        members_client::MembersClient,
        trust_server::{Trust, TrustServer},
    },
    policy::v1::{
        DeregisterRequest, DeregisterResponse, RegisterRequest, RegisterResponse, WatchRequest,
        WatchResponse, Workload,
        registry_server::{Registry, RegistryServer},
    },
};
use weft_rpc::{Admit, GrpcServer, MethodRoles, caller};
use weft_tls::{ClientAuth, SvidCell, new_key_and_csr, server_config};

fn workload(name: &str) -> Workload {
    Workload {
        id: name.into(),
        node: "n1".into(),
        namespace: "shop".into(),
        app_id: name.into(),
        ..Default::default()
    }
}

/// The policy service's registry, as far as the protocol says.
struct FakeRegistry {
    first: Vec<Workload>,
    then: watch::Receiver<Option<Workload>>,
}

#[tonic::async_trait]
impl Registry for FakeRegistry {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn deregister(
        &self,
        _: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(
            caller(&request)?.spiffe_id(),
            Some(&td().service("identity").unwrap())
        );
        let snapshot = WatchResponse {
            snapshot: true,
            upserts: self.first.clone(),
            removed_ids: vec![],
        };
        let changes = futures::stream::unfold(self.then.clone(), |mut then| async {
            then.changed().await.ok()?;
            let upserts = then.borrow_and_update().clone().into_iter().collect();
            Some((
                WatchResponse {
                    snapshot: false,
                    upserts,
                    removed_ids: vec![],
                },
                then,
            ))
        });
        let stream = futures::stream::once(async { snapshot }).chain(changes).map(Ok);
        Ok(Response::new(stream.boxed()))
    }
}

const REGISTRY_ROLES: MethodRoles =
    MethodRoles(&[("/weft.policy.v1.Registry/Watch", &[Admit::Service("identity")])]);

/// Serves on an address that may have been used before; ends when the trigger is dropped or used.
async fn serve(
    address: SocketAddr,
    server: GrpcServer,
    svid: &SvidCell,
    trust: &weft_tls::Trust,
) -> (SocketAddr, Trigger) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = server_config(Arc::new(svid.clone()), trust, ClientAuth::Required, &[b"h2"]).unwrap();
    let (trigger, drain) = weft_drain::channel();
    tokio::spawn(
        server
            .build()
            .serve_tls(listener, Arc::new(tls), trust.clone(), drain),
    );
    (address, trigger)
}

async fn sign(rig: &Rig, node: &SvidCell, id: &str) -> Result<(), Status> {
    let made = new_key_and_csr().unwrap();
    let request = SignWorkloadRequest {
        workload_id: id.into(),
        csr_der: made.csr_der,
        r#use: SvidUse::Workload.into(),
    };
    let reply = CertificatesClient::new(rig.channel(Some(node)))
        .sign_workload(request)
        .await?;
    cell(reply.into_inner().svid.unwrap().chain_der, &made.key);
    Ok(())
}

#[tokio::test]
async fn the_registry_is_followed_and_its_last_good_copy_kept() {
    let mut rig = Rig::new().await;
    let (policy, _policy_drain) = rig.join(Kind::Service, "policy", &[]).await;
    let (n1, _n1_drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let registry = |first: Vec<Workload>, then| {
        GrpcServer::new("weft.policy.v1", weft_proto::WEFT_DESCRIPTORS, REGISTRY_ROLES)
            .unwrap()
            .add_service(RegistryServer::new(FakeRegistry { first, then }))
    };
    let (changes, then) = watch::channel(None);
    let server = registry(vec![workload("cart")], then);
    let (address, first) = serve(([127, 0, 0, 1], 0).into(), server, &policy.svid, &policy.trust).await;
    let (_follow, drain) = weft_drain::channel();
    rig.handle.follow_policy(address.to_string(), drain);

    // The snapshot, then a change.
    sign(&rig, &n1.svid, "cart").await.unwrap();
    changes.send_replace(Some(workload("pay")));
    sign(&rig, &n1.svid, "pay").await.unwrap();
    assert!(sign(&rig, &n1.svid, "stock").await.is_err());

    // Without the policy service the copy stays.
    drop(changes);
    first.drain(Duration::from_secs(5)).await;
    sign(&rig, &n1.svid, "pay").await.unwrap();

    // It comes back with another registry, which replaces the copy.
    let (_changes, then) = watch::channel(None);
    let server = registry(vec![workload("stock")], then);
    let (_, _second) = serve(address, server, &policy.svid, &policy.trust).await;
    let there = async { while sign(&rig, &n1.svid, "stock").await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(30), there)
        .await
        .unwrap();
    assert!(sign(&rig, &n1.svid, "cart").await.is_err());
}

#[tokio::test]
async fn a_registry_by_somebody_else_is_not_followed() {
    let rig = Rig::new().await;
    let (placement, _drain) = rig.join(Kind::Service, "placement", &[]).await;
    let (n1, _n1_drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let (_changes, then) = watch::channel(None);
    let server = GrpcServer::new("weft.policy.v1", weft_proto::WEFT_DESCRIPTORS, REGISTRY_ROLES)
        .unwrap()
        .add_service(RegistryServer::new(FakeRegistry {
            first: vec![workload("cart")],
            then,
        }));
    // The right service at the configured address, under another name.
    let (address, _served) = serve(
        ([127, 0, 0, 1], 0).into(),
        server,
        &placement.svid,
        &placement.trust,
    )
    .await;
    let (dir, clock) = rig.stop().await;
    let settings = Config {
        policy_addr: Some(address.to_string()),
        ..config(&dir)
    };
    let (_trigger, drain) = weft_drain::channel();
    let handle = weft_identity::start_with(settings, Env::new(drain).clock(clock.shared()))
        .await
        .unwrap();
    let (_, trust) = handle.credentials();
    let expect = weft_tls::Expect::Id(td().service("identity").unwrap());
    let channel = weft_rpc::channel(&handle.address().to_string(), Some(&n1.svid), &trust, expect).unwrap();
    let request = SignWorkloadRequest {
        workload_id: "cart".into(),
        csr_der: new_key_and_csr().unwrap().csr_der,
        r#use: SvidUse::Workload.into(),
    };
    let status = CertificatesClient::new(channel)
        .sign_workload(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}

/// Sends the given bundles, then nothing.
struct FakeTrust(Vec<TrustBundle>);

#[tonic::async_trait]
impl Trust for FakeTrust {
    type WatchBundleStream = BoxStream<'static, Result<WatchBundleResponse, Status>>;

    async fn watch_bundle(
        &self,
        _: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let bundles = self.0.clone().into_iter().map(|b| {
            Ok(WatchBundleResponse {
                bundle: Some(b),
                ..Default::default()
            })
        });
        Ok(Response::new(
            futures::stream::iter(bundles)
                .chain(futures::stream::pending())
                .boxed(),
        ))
    }

    async fn ack_bundle(&self, _: Request<AckBundleRequest>) -> Result<Response<AckBundleResponse>, Status> {
        Ok(Response::new(AckBundleResponse {}))
    }
}

const TRUST_ROLES: MethodRoles = MethodRoles(&[
    ("/weft.identity.v1.Trust/WatchBundle", &[Admit::Node]),
    ("/weft.identity.v1.Trust/AckBundle", &[Admit::Node]),
]);

#[tokio::test]
async fn members_follow_the_bundle_and_never_go_back() {
    let (rig, other) = (Rig::new().await, Rig::new().await);
    let (_, drain) = rig.join(Kind::Node, "n1", &[]).await;
    drain.drain(Duration::from_secs(5)).await;
    let (svid, trust) = rig.handle.credentials();
    let root = |r: &Rig| r.handle.credentials().1.bundle().roots[0].to_vec();
    let bundle = |trust_domain: &str, version, roots_der| TrustBundle {
        trust_domain: trust_domain.into(),
        version,
        roots_der,
        jwks_json: Vec::new(),
    };
    let both = vec![root(&rig), root(&other)];
    let sent = vec![
        bundle("cluster.local", 1, vec![root(&rig)]),
        bundle("cluster.local", 3, both.clone()),
        // Behind; then damaged; then of another trust domain: all left out.
        bundle("cluster.local", 2, vec![root(&rig)]),
        bundle("cluster.local", 4, vec![vec![1, 2, 3]]),
        bundle("elsewhere", 5, vec![root(&other)]),
    ];
    let server = GrpcServer::new("weft.identity.v1", weft_proto::WEFT_DESCRIPTORS, TRUST_ROLES)
        .unwrap()
        .add_service(TrustServer::new(FakeTrust(sent)));
    let (address, _served) = serve(([127, 0, 0, 1], 0).into(), server, &svid, &trust).await;
    let (trigger, drain) = weft_drain::channel();
    let again = || {
        weft_enroll::Enrollment::new(
            td().node("n1").unwrap(),
            rig.member_folder("node-n1"),
            address.to_string(),
        )
        .clock(rig.clock.shared())
    };
    let member = again().enroll(drain).await.unwrap();
    let mut changed = member.trust.subscribe();
    let seen = changed.wait_for(|version| *version == 3);
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .unwrap()
        .unwrap();
    // The damaged one ends the stream; after the next one nothing has changed.
    assert!(
        tokio::time::timeout(Duration::from_secs(2), changed.changed())
            .await
            .is_err()
    );
    let held: Vec<Vec<u8>> = member.trust.bundle().roots.iter().map(|r| r.to_vec()).collect();
    assert_eq!(held, both);
    trigger.drain(Duration::from_secs(5)).await;
    // It was stored.
    let (_trigger, drain) = weft_drain::channel();
    assert_eq!(again().enroll(drain).await.unwrap().trust.version(), 3);
}

#[tokio::test]
async fn one_of_many_joins_with_the_same_token_wins() {
    let rig = Arc::new(Rig::new().await);
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let mut joins = tokio::task::JoinSet::new();
    for i in 0..8 {
        let (rig, token) = (rig.clone(), token.clone());
        joins.spawn(async move {
            let (_trigger, drain) = weft_drain::channel();
            let enrollment = rig.enrollment(td().node("n1").unwrap(), &format!("racer-{i}"));
            enrollment
                .token(weft_enroll::TokenSource::Given(token))
                .enroll(drain)
                .await
                .map(|_| ())
        });
    }
    let results = joins.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for lost in results.into_iter().filter_map(Result::err) {
        assert!(lost.to_string().contains("used already"), "{lost}");
    }
    let audit = rig.audit().await;
    let of = |outcome: &str| {
        audit
            .iter()
            .filter(|e| e.action == "join" && e.outcome == outcome)
            .count()
    };
    assert_eq!((of("issue"), of("refuse")), (1, 7));
}

#[tokio::test]
async fn two_starts_with_one_folder_join_once() {
    let rig = Rig::new().await;
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let start = || async {
        let (trigger, drain) = weft_drain::channel();
        let enrollment = rig
            .enrollment(td().node("n1").unwrap(), "shared")
            .patience(Duration::from_secs(20));
        let member = enrollment
            .token(weft_enroll::TokenSource::Given(token.clone()))
            .enroll(drain)
            .await;
        (member.unwrap().svid.get().unwrap().identity().clone(), trigger)
    };
    // As when a new agent takes over from the old one: both run, with one certificate.
    let ((first, _t1), (second, _t2)) = tokio::join!(start(), start());
    assert_eq!(first, second);
}

#[tokio::test]
async fn nodes_are_told_as_they_join_with_what_they_may_host() {
    let rig = Rig::new().await;
    let (policy, _policy_drain) = rig.join(Kind::Service, "policy", &[]).await;
    let (_n1, _n1_drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let mut news = MembersClient::new(rig.channel(Some(&policy.svid)))
        .watch_nodes(WatchNodesRequest {})
        .await
        .unwrap()
        .into_inner();
    let told = |response: &WatchNodesResponse| {
        let patterns = |n: &weft_proto::weft::identity::v1::MemberNode| {
            let each = n.may_host.iter().map(|p| format!("{}/{}", p.namespace, p.app_id));
            format!("{} {}", n.name, each.collect::<Vec<_>>().join(" "))
        };
        response.upserts.iter().map(patterns).collect::<Vec<_>>()
    };
    let first = news.message().await.unwrap().unwrap();
    assert!(first.snapshot);
    assert_eq!(told(&first), ["n1 shop/*"]);
    // A new node, and one that joins again with another token. A service is no node.
    let (_placement, _placement_drain) = rig.join(Kind::Service, "placement", &[]).await;
    let (_n2, _n2_drain) = rig.join(Kind::Node, "n2", &[]).await;
    let next = news.message().await.unwrap().unwrap();
    assert!(!next.snapshot);
    assert_eq!(told(&next), ["n2 "]);
    std::fs::remove_dir_all(rig.member_folder("node-n1")).unwrap();
    let (_again, _again_drain) = rig.join(Kind::Node, "n1", &[pattern("bank", "pay")]).await;
    assert_eq!(told(&news.message().await.unwrap().unwrap()), ["n1 bank/pay"]);
}
