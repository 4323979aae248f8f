//! The record of what no method decided on, of floods, and of orders that failed.

use crate::{
    postgres::Postgres,
    rig::{NOW, Rig, config},
    world::{World, csr},
};
use sqlx::{Connection, Executor, PgConnection};
use std::time::Duration;
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use weft_identity::Config;
use weft_proto::weft::identity::v1::{
    AckBundleRequest, AckBundleResponse, AuditEntry, BackupRequest, CreateJoinTokenRequest, ReinstateRequest,
    RevokeRequest, RotateRequest, RotateTarget, SignAdminRequest, admin_client::AdminClient,
};
use weft_tls::ManualClock;

/// Entries of an action, as soon as there are so many.
pub async fn entries(rig: &Rig, action: &str, count: usize) -> Vec<AuditEntry> {
    let mut found = Vec::new();
    let there = async {
        loop {
            found = rig.try_audit().await.unwrap_or_default();
            found.retain(|e| e.action == action && e.outcome == "refuse");
            if found.len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let there = tokio::time::timeout(Duration::from_secs(30), there).await;
    assert!(there.is_ok(), "{action}: {found:?}");
    found
}

#[tokio::test]
async fn calls_that_no_method_decides_on_are_recorded() {
    let world = World::new().await;
    world.register();
    let rig = &world.rig;
    let list = |channel| async {
        let request = Request::new(Default::default());
        AdminClient::new(channel).list_audit(request).await
    };
    let admin = "/weft.identity.v1.Admin/ListAudit";
    let before = rig.refused("ROLE_NOT_ADMITTED");
    list(world.node()).await.unwrap_err();
    list(rig.channel(Some(&world.workload_cell().await)))
        .await
        .unwrap_err();
    list(rig.channel(None)).await.unwrap_err();
    // The twins leave nothing behind.
    list(rig.local()).await.unwrap();
    world.join(&"x".repeat(70_000), csr()).await.unwrap_err();
    let raw = |path: &'static str| {
        let mut client = tonic::client::Grpc::new(rig.channel(None));
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
    let join = "/weft.identity.v1.Bootstrap/Join";
    raw(join).await.unwrap_err();
    let unknown = "/weft.identity.v1.Bootstrap/New";
    raw(unknown).await.unwrap_err();

    let found = entries(rig, "call", 6).await;
    assert_eq!(found.len(), 6, "{found:?}");
    let anonymous = "anonymous at 127.0.0.1";
    for (caller, what, why) in [
        ("spiffe://cluster.local/weft/node/n1", admin, "does not admit"),
        ("spiffe://cluster.local/ns/shop/cart", admin, "does not admit"),
        (anonymous, admin, "needs a client certificate"),
        (anonymous, join, "message length too large"),
        (anonymous, join, "failed to decode"),
        (anonymous, unknown, "is not a method"),
    ] {
        let one = found
            .iter()
            .filter(|e| e.caller == caller && e.spiffe_id == what && e.reason.contains(why));
        assert_eq!(one.count(), 1, "{caller} {what} {why}: {found:?}");
    }
    assert_eq!(rig.refused("ROLE_NOT_ADMITTED"), before + 2);
    assert_eq!(rig.refused("MESSAGE_TOO_LARGE"), 1);
}

#[tokio::test]
async fn a_flood_is_counted_and_leaves_room_for_others() {
    const RECORDED: usize = 120;
    let world = World::new().await;
    world.register();
    let rig = &world.rig;
    // A node that asks for what is another's, again and again, and one stranger.
    for _ in 0..RECORDED + 7 {
        world.ask("n2/shop/pay/1").await.unwrap_err();
    }
    world.join("no token", csr()).await.unwrap_err();
    let audit = rig.audit().await;
    let refused = |action: &str| {
        let of = audit
            .iter()
            .filter(|e| e.action == action && e.outcome == "refuse");
        of.count()
    };
    assert_eq!((refused("sign-workload"), refused("join")), (RECORDED, 1));
    assert_eq!(rig.refused("WORKLOAD_ELSEWHERE"), RECORDED as u64 + 7);
    assert_eq!(refused("left-out"), 0, "the minute is not over");
    rig.clock.advance(Duration::from_secs(60));
    let told = entries(rig, "left-out", 1).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].caller, "spiffe://cluster.local/weft/node/n1");
    assert!(
        told[0].reason.starts_with("7 more refusals"),
        "{}",
        told[0].reason
    );
    // One by one again.
    world.ask("n2/shop/pay/1").await.unwrap_err();
    assert_eq!(
        entries(rig, "sign-workload", RECORDED + 1).await.len(),
        RECORDED + 1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_fail_are_recorded_when_the_database_is_back() {
    let mut postgres = Postgres::start();
    let dir = TempDir::new().unwrap();
    let settings = Config {
        database_url: Some(postgres.url()),
        ..config(&dir)
    };
    std::fs::create_dir_all(&settings.state_dir).unwrap();
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let admin = || AdminClient::new(rig.local());
    let target = "spiffe://cluster.local/ns/shop/cart";
    let revocation = RevokeRequest {
        target: target.into(),
        reason: "test".into(),
    };
    let order = async |action: &str| -> Result<(), Status> {
        let rotate = |target: RotateTarget| RotateRequest {
            target: target.into(),
        };
        match action {
            "create-join-token" => {
                let request = CreateJoinTokenRequest {
                    kind: "node".into(),
                    name: "n9".into(),
                    ..Default::default()
                };
                admin().create_join_token(request).await.map(drop)
            }
            "sign-admin" => {
                let request = SignAdminRequest {
                    name: "ops".into(),
                    csr_der: csr(),
                    ttl_seconds: 60,
                };
                admin().sign_admin(request).await.map(drop)
            }
            "rotate-root" => admin().rotate(rotate(RotateTarget::Root)).await.map(drop),
            "rotate-issuer" => admin().rotate(rotate(RotateTarget::Issuer)).await.map(drop),
            "rotate-leaves" => admin().rotate(rotate(RotateTarget::Leaves)).await.map(drop),
            "revoke" => admin().revoke(revocation.clone()).await.map(drop),
            "reinstate" => {
                let spiffe_id = target.into();
                admin().reinstate(ReinstateRequest { spiffe_id }).await.map(drop)
            }
            "backup" => {
                let passphrase = "correct horse battery".into();
                admin().backup(BackupRequest { passphrase }).await.map(drop)
            }
            "get-authority" => admin()
                .get_authority(Request::new(Default::default()))
                .await
                .map(drop),
            _ => admin()
                .list_audit(Request::new(Default::default()))
                .await
                .map(drop),
        }
    };
    let actions = [
        "create-join-token",
        "sign-admin",
        "rotate-issuer",
        "rotate-leaves",
        "rotate-root",
        "revoke",
        "reinstate",
        "backup",
        "get-authority",
        "list-audit",
    ];
    // Something to reinstate.
    order("revoke").await.unwrap();
    postgres.kill();
    for action in actions {
        let status = order(action).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{action}: {status}");
    }
    postgres.up();
    for action in actions {
        let told = entries(&rig, action, 1).await;
        assert_eq!(told.len(), 1, "{action}: {told:?}");
        let entry = &told[0];
        assert!(entry.caller.starts_with("local:"), "{entry:?}");
        let failed = entry.reason.starts_with("nothing was given out: ")
            || entry.reason.starts_with("the order failed: ");
        assert!(failed && entry.reason.contains("database"), "{entry:?}");
        assert_eq!(entry.serial, "", "{entry:?}");
    }
    for action in actions {
        if action == "reinstate" {
            order("revoke").await.unwrap();
        }
        order(action).await.unwrap_or_else(|e| panic!("{action}: {e}"));
    }
    // An order that is recorded and then not carried out has both in the record.
    let mut holder = PgConnection::connect(&postgres.url()).await.unwrap();
    holder
        .execute("BEGIN; LOCK TABLE revocations IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let (revoked, ()) = tokio::join!(order("revoke"), async {
        crate::faults::somebody_waits(&postgres).await;
        postgres.kill();
    });
    assert_eq!(revoked.unwrap_err().code(), Code::Unavailable);
    postgres.up();
    let told = entries(&rig, "revoke", 2).await;
    assert!(told[0].reason.starts_with("the order failed: "), "{told:?}");
}
