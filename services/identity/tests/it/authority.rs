//! The authority over time: restarts, rotation, and what stands in its way.

use crate::rig::{NOW, Rig, config, td};
use std::time::Duration;
use tempfile::TempDir;
use weft_identity::{Config, Env, Kind, StartError};
use weft_proto::weft::identity::v1::{
    Authority, GetAuthorityRequest, GetAuthorityResponse, RotateRequest, RotateTarget,
    admin_client::AdminClient,
};
use weft_tls::ManualClock;

const DAY: u64 = 24 * 3600;

async fn start_error(config: Config, clock: &ManualClock) -> StartError {
    let (_trigger, drain) = weft_drain::channel();
    let error = weft_identity::start_with(config, Env::new(drain).clock(clock.shared()))
        .await
        .unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

#[tokio::test]
async fn a_restart_keeps_the_authority() {
    let rig = Rig::new().await;
    let root = rig.handle.root_sha256();
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let (old, drain) = rig.join(Kind::Service, "policy", &[]).await;
    drain.drain(Duration::from_secs(5)).await;
    let (dir, clock) = rig.stop().await;

    let rig = Rig::with(dir, clock).await;
    assert_eq!(rig.handle.root_sha256(), root);
    assert_eq!(rig.handle.credentials().1.version(), 1);
    // A certificate and a token from before are as good as before.
    let mut bundle =
        weft_proto::weft::identity::v1::trust_client::TrustClient::new(rig.channel(Some(&old.svid)));
    bundle
        .watch_bundle(weft_proto::weft::identity::v1::WatchBundleRequest::default())
        .await
        .unwrap();
    let (_trigger, drain) = weft_drain::channel();
    let id = td().node("n1").unwrap();
    rig.enrollment(id, "n1")
        .token(weft_enroll::TokenSource::Given(token))
        .enroll(drain)
        .await
        .unwrap();
}

#[tokio::test]
async fn its_own_certificate_is_renewed_and_shown_to_new_connections() {
    let rig = Rig::new().await;
    let (svid, trust) = rig.handle.credentials();
    let first = svid.get().unwrap();
    // Newcomers compare the last of the chain with their token.
    assert_eq!(
        weft_tls::root_sha256(first.chain().last().unwrap()),
        rig.handle.root_sha256()
    );
    assert_eq!(trust.bundle().roots[0], *first.chain().last().unwrap());
    let mut changed = svid.subscribe();
    changed.mark_unchanged();
    rig.clock.set(first.renew_at() - 1);
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), changed.changed())
            .await
            .is_err()
    );
    rig.clock.set(first.renew_at());
    tokio::time::timeout(Duration::from_secs(20), changed.changed())
        .await
        .unwrap()
        .unwrap();
    let second = svid.get().unwrap();
    assert_ne!(second.identity().serial, first.identity().serial);
    // Past the end of the first one, the service is reached all the same.
    rig.clock.set(first.identity().not_after + 1);
    rig.join(Kind::Service, "policy", &[]).await;
}

#[tokio::test]
async fn a_new_issuer_comes_before_the_old_one_ends() {
    let rig = Rig::new().await;
    let (old, drain) = rig.join(Kind::Service, "policy", &[]).await;
    drain.drain(Duration::from_secs(5)).await;
    let issuer = |s: &weft_tls::SvidCell| s.get().unwrap().chain()[1].clone();
    let (own, _) = rig.handle.credentials();
    let first = issuer(&own);
    assert_eq!(first, issuer(&old.svid));
    let mut changed = own.subscribe();
    changed.mark_unchanged();
    rig.clock.set(NOW + 183 * DAY);
    tokio::time::timeout(Duration::from_secs(20), changed.changed())
        .await
        .unwrap()
        .unwrap();
    assert_ne!(issuer(&own), first);
    // Same root, so everybody still trusts it; and it is there after a restart.
    let second = issuer(&own);
    let (dir, clock) = rig.stop().await;
    // Far past the end of both, a new one is made at start.
    let rig = Rig::with(dir, clock.clone()).await;
    assert_eq!(issuer(&rig.handle.credentials().0), second);
    let (dir, clock) = rig.stop().await;
    clock.set(NOW + 1000 * DAY);
    let rig = Rig::with(dir, clock).await;
    assert_ne!(issuer(&rig.handle.credentials().0), second);
}

#[tokio::test]
async fn a_clock_before_the_root_stops_the_start() {
    let (dir, clock) = Rig::new().await.stop().await;
    clock.set(NOW - DAY);
    let error = start_error(config(&dir), &clock).await;
    assert!(error.to_string().contains("set the machine's clock"), "{error}");
    clock.set(NOW);
    Rig::with(dir, clock).await;
}

#[tokio::test]
async fn another_trust_domain_or_key_file_stops_the_start() {
    let (dir, clock) = Rig::new().await.stop().await;
    let other = Config {
        trust_domain: "other.example".into(),
        ..config(&dir)
    };
    let error = start_error(other, &clock).await;
    assert!(matches!(error, StartError::TrustDomain { .. }), "{error}");

    let key_file = dir.path().join("state/key-encryption-key");
    let kept = std::fs::read(&key_file).unwrap();
    std::fs::remove_file(&key_file).unwrap();
    let error = start_error(config(&dir), &clock).await;
    assert!(error.to_string().contains("is missing"), "{error}");
    assert!(!key_file.exists(), "a new key would open nothing");
    let strange = TempDir::new().unwrap();
    let (strange, _) = Rig::with(strange, clock.clone()).await.stop().await;
    std::fs::copy(strange.path().join("state/key-encryption-key"), &key_file).unwrap();
    let error = start_error(config(&dir), &clock).await;
    assert!(error.to_string().contains("does not open"), "{error}");
    std::fs::write(&key_file, kept).unwrap();
    Rig::with(dir, clock).await;
}

#[tokio::test]
async fn no_key_is_in_the_database_in_clear() {
    let rig = Rig::new().await;
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let (dir, _) = rig.stop().await;
    let database = std::fs::read(dir.path().join("state/identity.db")).unwrap();
    let holds = |needle: &[u8]| database.windows(needle.len()).any(|w| w == needle);
    // What is in clear is found by the same search.
    assert!(holds(token.id().as_bytes()));
    assert!(!holds(token.secret()));
    assert!(!holds(token.reveal().rsplit('.').next().unwrap().as_bytes()));
    // The PKCS#8 of a P-256 key holds the curve's OID right before the private key's structure;
    // certificates hold it before the public key.
    let pkcs8 = [
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d,
    ];
    let key = rcgen::KeyPair::generate().unwrap().serialize_der();
    assert!(
        key.windows(pkcs8.len()).any(|w| w == pkcs8),
        "the search would find a key"
    );
    let spki = [
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42,
    ];
    assert!(!holds(&pkcs8) && holds(&spki));
}

#[tokio::test]
async fn what_can_not_be_recorded_is_not_issued() {
    use sqlx::{Connection, Executor, SqliteConnection};
    use weft_proto::weft::identity::v1::{SignAdminRequest, admin_client::AdminClient};

    let rig = Rig::new().await;
    let mut admin = AdminClient::new(rig.local());
    let request = || SignAdminRequest {
        name: "ops".into(),
        csr_der: weft_tls::new_key_and_csr().unwrap().csr_der,
        ttl_seconds: 0,
    };
    let path = rig.dir.path().join("state/identity.db");
    let mut other = SqliteConnection::connect(path.to_str().unwrap()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let status = admin.sign_admin(request()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    // The path is for the log, not for callers.
    assert!(!status.message().contains(path.to_str().unwrap()), "{status}");
    other.execute("ROLLBACK").await.unwrap();
    admin.sign_admin(request()).await.unwrap();
    let issued = rig
        .audit()
        .await
        .into_iter()
        // The one that failed comes into the record as well, once it can be written.
        .filter(|e| e.action == "sign-admin" && e.outcome == "issue")
        .count();
    assert_eq!(issued, 1);
}

async fn rotated(rig: &Rig, target: RotateTarget) -> GetAuthorityResponse {
    let mut admin = AdminClient::new(rig.local());
    let target = target.into();
    admin.rotate(RotateRequest { target }).await.unwrap();
    let shown = async {
        loop {
            let shown = admin
                .get_authority(GetAuthorityRequest {})
                .await
                .unwrap()
                .into_inner();
            if shown.phase != "distributing" {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), shown)
        .await
        .unwrap()
}

#[tokio::test]
async fn each_issuer_says_under_which_roots_it_is() {
    let rig = Rig::new().await;
    let state = |of: &[Authority], state: &str| -> Authority {
        let all: Vec<_> = of.iter().filter(|a| a.state == state).collect();
        assert_eq!(all.len(), 1, "{state}: {of:?}");
        all[0].clone()
    };
    // By the root's own key, and by no other's.
    let is_under = |issuer: &Authority, root: &Authority| {
        let (_, issuer) = x509_parser::parse_x509_certificate(&issuer.certificate_der).unwrap();
        let (_, root) = x509_parser::parse_x509_certificate(&root.certificate_der).unwrap();
        issuer.verify_signature(Some(root.public_key())).is_ok()
    };
    let first = AdminClient::new(rig.local());
    let first = first
        .clone()
        .get_authority(GetAuthorityRequest {})
        .await
        .unwrap()
        .into_inner();
    let (old_root, old_issuer) = (state(&first.roots, "active"), state(&first.issuers, "active"));
    assert_eq!(old_issuer.root_sha256, old_root.sha256);
    assert_eq!(old_issuer.cross_root_sha256, "");
    assert!(is_under(&old_issuer, &old_root));
    assert_eq!(old_root.root_sha256, "", "a root is under none");

    let next = rotated(&rig, RotateTarget::Root).await;
    let (root, issuer) = (state(&next.roots, "active"), state(&next.issuers, "active"));
    assert_ne!(root.sha256, old_root.sha256);
    assert_eq!(
        (&issuer.root_sha256, &issuer.cross_root_sha256),
        (&root.sha256, &old_root.sha256)
    );
    assert!(is_under(&issuer, &root) && !is_under(&issuer, &old_root));
    let before = state(&next.issuers, "retired");
    assert_eq!(
        (&before.root_sha256, before.cross_root_sha256.as_str()),
        (&old_root.sha256, "")
    );

    // A new issuer under the same root: no other root beside it, once the old one is gone.
    let last = rotated(&rig, RotateTarget::Issuer).await;
    assert_eq!(state(&last.issuers, "active").root_sha256, root.sha256);
}
