//! A database that goes away in the middle: nothing is given out, and the record says so afterwards.

use crate::{
    postgres::Postgres,
    rig::{NOW, Rig, config, pattern, td},
    workloads::{registered, sign, workload},
};
use sqlx::{Connection, Executor, PgConnection};
use std::time::Duration;
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_enroll::JoinToken;
use weft_identity::{Config, Kind};
use weft_proto::weft::identity::v1::{
    AuditEntry, JoinRequest, JoinResponse, SvidUse, bootstrap_client::BootstrapClient,
};
use weft_tls::{ManualClock, new_key_and_csr};

async fn join(rig: &Rig, token: &JoinToken) -> Result<JoinResponse, Status> {
    let request = JoinRequest {
        token: token.reveal().to_string(),
        csr_der: new_key_and_csr().unwrap().csr_der,
    };
    let reply = BootstrapClient::new(rig.channel(None)).join(request).await;
    reply.map(tonic::Response::into_inner)
}

/// Waits until somebody waits for a lock of another.
pub async fn somebody_waits(postgres: &Postgres) {
    let mut watcher = PgConnection::connect(&postgres.url()).await.unwrap();
    let waits = async {
        loop {
            let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE NOT granted")
                .fetch_one(&mut watcher)
                .await
                .unwrap();
            if waiting > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits)
        .await
        .unwrap();
}

/// The record of one method, as soon as the service can read it again.
async fn recorded(rig: &Rig, action: &str, outcome: &str) -> Vec<AuditEntry> {
    let found = async {
        loop {
            let found: Vec<_> = rig
                .try_audit()
                .await
                .unwrap_or_default()
                .into_iter()
                .filter(|e| e.action == action && e.outcome == outcome)
                .collect();
            if !found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_gives_nothing_out_and_the_record_says_why() {
    let mut postgres = Postgres::start();
    let dir = TempDir::new().unwrap();
    let settings = Config {
        database_url: Some(postgres.url()),
        ..config(&dir)
    };
    std::fs::create_dir_all(&settings.state_dir).unwrap();
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    registered(&rig, vec![workload("n1", "shop", "cart")]);
    let token = rig.token(Kind::Node, "n2", &[]).await;
    let ask = async || sign(&rig, &n1.svid, "n1/shop/cart/1", SvidUse::Workload).await;

    // Both have signed and wait for their place in the record when the server is killed.
    let mut holder = PgConnection::connect(&postgres.url()).await.unwrap();
    holder
        .execute("BEGIN; LOCK TABLE audit IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let (joined, signed, ()) = tokio::join!(join(&rig, &token), ask(), async {
        somebody_waits(&postgres).await;
        postgres.kill();
    });
    for status in [joined.map(|_| ()).unwrap_err(), signed.map(|_| ()).unwrap_err()] {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("can not use its database"), "{status}");
        let details = String::from_utf8_lossy(status.details()).into_owned();
        assert!(details.contains("DATABASE_UNAVAILABLE"), "{details}");
        assert!(
            !status.message().contains("postgres"),
            "the operator's, not the caller's"
        );
    }

    postgres.up();
    for action in ["join", "sign-workload"] {
        let refused = recorded(&rig, action, "refuse").await;
        let entry = &refused[0];
        assert!(
            entry.reason.starts_with("nothing was given out") && entry.reason.contains("database"),
            "{}",
            entry.reason
        );
        assert_eq!(entry.serial, "", "{action}");
    }
    // The token was not used up, and the node is as good as before.
    assert_eq!(
        rig.audit()
            .await
            .iter()
            .filter(|e| e.action == "sign-workload" && e.outcome == "issue")
            .count(),
        0
    );
    join(&rig, &token).await.unwrap();
    let given = ask().await.unwrap();
    assert_eq!(
        recorded(&rig, "sign-workload", "issue").await[0].serial,
        given.serial
    );
    let joins = recorded(&rig, "join", "issue").await;
    let n2 = td().node("n2").unwrap();
    assert_eq!(joins.iter().filter(|e| e.spiffe_id == n2.as_str()).count(), 1);
}
