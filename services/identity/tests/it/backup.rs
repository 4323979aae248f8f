//! Backup, restore onto an empty database, and members that go on.

use crate::{
    rig::{NOW, Rig, config, pattern, td},
    rotation::{serve, talk},
};
use std::time::Duration;
use tempfile::TempDir;
use tonic::Code;
use weft_identity::{Config, Kind, RestoreError, restore};
use weft_proto::weft::identity::v1::{
    BackupRequest, ListAuditRequest, RevokeRequest, RotateRequest, RotateTarget, admin_client::AdminClient,
};

const PASSPHRASE: &str = "correct horse battery";

async fn backup(rig: &Rig) -> Vec<u8> {
    let request = BackupRequest {
        passphrase: PASSPHRASE.into(),
    };
    AdminClient::new(rig.local())
        .backup(request)
        .await
        .unwrap()
        .into_inner()
        .backup
}

#[tokio::test]
async fn members_go_on_with_a_restored_authority() {
    let rig = Rig::new().await;
    let address = rig.handle.address();
    let root = rig.handle.root_sha256();
    let (n1, _d1) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let revoked = td().workload("shop", "bad").unwrap();
    let request = RevokeRequest {
        target: revoked.to_string(),
        reason: "test".into(),
    };
    AdminClient::new(rig.local()).revoke(request).await.unwrap();
    let saved = backup(&rig).await;
    // What is not in it: a certificate by an issuer that came later.
    let rotate = RotateRequest {
        target: RotateTarget::Issuer.into(),
    };
    AdminClient::new(rig.local()).rotate(rotate).await.unwrap();
    let (n2, _d2) = rig.join(Kind::Node, "n2", &[]).await;
    let mut version = n1.trust.subscribe();
    version.mark_unchanged();
    let held = n1.svid.get().unwrap().identity().serial.clone();
    let (_gone, clock) = rig.stop().await;

    // Another machine: nothing but the backup and its passphrase.
    let dir = TempDir::new().unwrap();
    let settings = Config {
        listen: address,
        ..config(&dir)
    };
    let wrong = restore(&settings, &saved, "not the passphrase", NOW)
        .await
        .unwrap_err();
    assert!(matches!(wrong, RestoreError::Passphrase), "{wrong}");
    assert_eq!(
        restore(&settings, &saved, PASSPHRASE, NOW).await.unwrap(),
        "cluster.local"
    );
    let again = restore(&settings, &saved, PASSPHRASE, NOW).await.unwrap_err();
    assert!(matches!(again, RestoreError::NotEmpty(_)), "{again}");
    let rig = Rig::configured(settings, dir, clock).await;
    assert_eq!(rig.handle.root_sha256(), root);
    // The members' streams come back, to a bundle that is newer than any before.
    tokio::time::timeout(Duration::from_secs(60), version.changed())
        .await
        .unwrap()
        .unwrap();
    assert!(n1.trust.version() > 1_000_000);
    let mut peer = n1.svid.get().unwrap().identity().clone();
    peer.id = revoked;
    assert!(n1.trust.is_revoked(&peer));
    // Both go on talking, also the one that the backup knows nothing of.
    talk(&n1, serve(&n2).await, 1).await.unwrap();
    talk(&n2, serve(&n1).await, 1).await.unwrap();
    // They renew as ever, who joined later too late to be in the backup has to join again.
    rig.clock.set(n1.svid.get().unwrap().renew_at_spread(1.0) + 60);
    let renewed = async {
        while n1.svid.get().unwrap().identity().serial == held {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed)
        .await
        .unwrap();
    let refused = async {
        loop {
            let audit = rig.audit().await;
            if audit
                .iter()
                .any(|e| e.outcome == "refuse" && e.reason.contains("no member"))
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused)
        .await
        .unwrap();
    assert!(n2.svid.get().is_some());
}

#[tokio::test]
async fn a_backup_gives_nothing_away() {
    let rig = Rig::new().await;
    let saved = backup(&rig).await;
    let root = rig.handle.credentials().1.bundle().roots[0].to_vec();
    let holds = |needle: &[u8]| saved.windows(needle.len()).any(|w| w == needle);
    assert!(holds(b"weft-identity-backup-v1") && !holds(&root[..32]) && !holds(b"cluster.local"));
    let short = BackupRequest {
        passphrase: "short".into(),
    };
    let status = AdminClient::new(rig.local()).backup(short).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        rig.audit().await.iter().filter(|e| e.action == "backup").count(),
        2
    );
}

#[tokio::test]
async fn the_record_is_asked_by_what_it_is_about() {
    let rig = Rig::new().await;
    let (n1, drain) = rig.join(Kind::Node, "n1", &[]).await;
    drain.drain(Duration::from_secs(5)).await;
    rig.join(Kind::Service, "policy", &[]).await;
    let ask = async |request: ListAuditRequest| {
        let reply = AdminClient::new(rig.local()).list_audit(request).await.unwrap();
        reply.into_inner().entries
    };
    let by_id = ask(ListAuditRequest {
        spiffe_id: n1.id.to_string(),
        outcome: "issue".into(),
        alive: true,
        ..Default::default()
    })
    .await;
    assert_eq!(by_id.len(), 1);
    assert_eq!(
        (by_id[0].action.as_str(), by_id[0].attested.as_str()),
        ("join", "join-token")
    );
    let not_after = n1.svid.get().unwrap().identity().not_after;
    assert_eq!(
        u64::try_from(by_id[0].not_after.unwrap().seconds).unwrap(),
        not_after
    );
    let by_serial = ask(ListAuditRequest {
        serial: by_id[0].serial.to_uppercase(),
        ..Default::default()
    })
    .await;
    assert_eq!(by_serial, by_id);
    let refused = ask(ListAuditRequest {
        outcome: "refuse".into(),
        ..Default::default()
    })
    .await;
    assert_eq!(refused, []);
    rig.clock.set(not_after + 1);
    let alive = ask(ListAuditRequest {
        alive: true,
        spiffe_id: n1.id.to_string(),
        ..Default::default()
    })
    .await;
    assert_eq!(alive, []);
}
