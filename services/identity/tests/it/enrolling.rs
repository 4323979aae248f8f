//! Becoming and staying a member.

use crate::rig::{NOW, Rig, TOKEN_TTL, config, pattern, td};
use std::{os::unix::fs::PermissionsExt, time::Duration};
use weft_enroll::{EnrollError, JoinToken, TokenSource};
use weft_identity::{Config, Kind};

async fn drained(trigger: weft_drain::Trigger) {
    trigger.drain(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_token_makes_a_member_once() {
    let rig = Rig::new().await;
    let token = rig.token(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    let id = td().node("n1").unwrap();
    let (trigger, drain) = weft_drain::channel();
    let member = rig
        .enrollment(id.clone(), "n1")
        .token(TokenSource::Given(token.clone()))
        .enroll(drain)
        .await
        .unwrap();
    assert_eq!(*member.svid.get().unwrap().id(), id);
    assert_eq!(member.trust.version(), 1);
    for file in ["svid.pem", "bundle.pem"] {
        let mode = std::fs::metadata(rig.member_folder("n1").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }

    // The same token again, from another folder.
    let (_other, drain) = weft_drain::channel();
    let again = rig
        .enrollment(id.clone(), "other")
        .token(TokenSource::Given(token))
        .enroll(drain)
        .await;
    let text = again.unwrap_err().to_string();
    assert!(text.contains("was used already"), "{text}");
    assert!(
        text.contains("weft identity join-token create --kind node --name n1"),
        "{text}"
    );

    let audit = rig.audit().await;
    let refused = audit.iter().find(|e| e.outcome == "refuse").unwrap();
    assert_eq!(refused.action, "join");
    assert!(refused.caller.starts_with("join-token:") && refused.reason.contains("used already"));
    let issued = audit
        .iter()
        .find(|e| e.outcome == "issue" && e.action == "join")
        .unwrap();
    assert_eq!(issued.spiffe_id, id.as_str());
    assert_eq!(issued.serial, member.svid.get().unwrap().identity().serial);

    // A second start needs neither token nor service.
    drained(trigger).await;
    let (dir, clock) = rig.stop().await;
    let (_trigger, drain) = weft_drain::channel();
    let back = weft_enroll::Enrollment::new(id, dir.path().join("members/n1"), "127.0.0.1:1".into())
        .clock(clock.shared())
        .enroll(drain)
        .await
        .unwrap();
    assert_eq!(
        back.svid.get().unwrap().identity(),
        member.svid.get().unwrap().identity()
    );
}

#[tokio::test]
async fn a_server_under_another_root_is_refused() {
    let (rig, other) = (Rig::new().await, Rig::new().await);
    let strange = other.token(Kind::Node, "n1", &[]).await;
    let id = td().node("n1").unwrap();
    let (_trigger, drain) = weft_drain::channel();
    let error = rig
        .enrollment(id.clone(), "n1")
        .token(TokenSource::Given(strange.clone()))
        .enroll(drain)
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::WrongServer { .. }), "{error}");
    assert!(
        error.to_string().contains("not the one the join token pins"),
        "{error}"
    );
    // Its secret was not sent: the service that made it would still take it.
    assert!(rig.audit().await.iter().all(|e| e.action != "join"));
    let (_trigger, drain) = weft_drain::channel();
    other
        .enrollment(id, "n1")
        .token(TokenSource::Given(strange))
        .enroll(drain)
        .await
        .unwrap();
}

#[tokio::test]
async fn tokens_that_are_over_or_forged_are_refused() {
    let rig = Rig::new().await;
    let id = td().service("policy").unwrap();
    let try_with = async |token: JoinToken| {
        let (_trigger, drain) = weft_drain::channel();
        let done = rig
            .enrollment(id.clone(), "p")
            .token(TokenSource::Given(token))
            .enroll(drain)
            .await;
        done.map(|_| ()).map_err(|e| e.to_string())
    };
    let forged = JoinToken::new(rig.handle.root_sha256(), [7; 8], [7; 32]);
    assert!(try_with(forged).await.unwrap_err().contains("is unknown"));
    // The right id with another secret is answered like an unknown one.
    let real = rig.token(Kind::Service, "policy", &[]).await;
    let mut real_id = [0; 8];
    hex::decode_to_slice(real.id(), &mut real_id).unwrap();
    let guessed = JoinToken::new(rig.handle.root_sha256(), real_id, [7; 32]);
    assert!(try_with(guessed).await.unwrap_err().contains("is unknown"));

    rig.clock.advance(TOKEN_TTL - Duration::from_secs(1));
    try_with(real).await.unwrap();
    let late = rig.token(Kind::Service, "policy", &[]).await;
    rig.clock.advance(TOKEN_TTL);
    std::fs::remove_dir_all(rig.member_folder("p")).unwrap();
    assert!(try_with(late).await.unwrap_err().contains("has expired"));
}

#[tokio::test]
async fn a_token_for_another_name_is_told() {
    let rig = Rig::new().await;
    let token = rig.token(Kind::Node, "n2", &[]).await;
    let (_trigger, drain) = weft_drain::channel();
    let enrollment = rig
        .enrollment(td().node("n1").unwrap(), "n1")
        .token(TokenSource::Given(token));
    let error = enrollment.enroll(drain).await.unwrap_err();
    assert!(matches!(error, EnrollError::TokenForOther { .. }), "{error}");
    assert!(!rig.member_folder("n1").join("svid.pem").exists());
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life() {
    let rig = Rig::new().await;
    let (member, trigger) = rig.join(Kind::Node, "n1", &[]).await;
    let first = member.svid.get().unwrap().identity().clone();
    assert_eq!((first.not_before, first.not_after), (NOW - 900, NOW + 86_400));
    let mut changed = member.svid.subscribe();
    changed.mark_unchanged();

    // A little before the earliest moment: nothing happens, however often the clock is looked at.
    let life = first.not_after - first.not_before;
    rig.clock.set(first.not_before + life * 44 / 100);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), changed.changed())
            .await
            .is_err()
    );
    // After the latest.
    rig.clock.set(first.not_before + life * 56 / 100);
    tokio::time::timeout(Duration::from_secs(20), changed.changed())
        .await
        .unwrap()
        .unwrap();
    let second = member.svid.get().unwrap().identity().clone();
    assert_ne!(second.serial, first.serial);
    assert!(second.not_after > first.not_after);
    assert!(
        rig.audit()
            .await
            .iter()
            .any(|e| e.action == "renew" && e.serial == second.serial)
    );

    // What was renewed is what the next start finds.
    drained(trigger).await;
    let (_trigger, drain) = weft_drain::channel();
    let back = rig
        .enrollment(member.id.clone(), "node-n1")
        .enroll(drain)
        .await
        .unwrap();
    assert_eq!(back.svid.get().unwrap().identity().serial, second.serial);
}

#[tokio::test]
async fn a_renewal_is_tried_until_the_service_is_back() {
    let rig = Rig::new().await;
    let (member, _trigger) = rig.join(Kind::Service, "policy", &[]).await;
    let first = member.svid.get().unwrap().identity().clone();
    let mut changed = member.svid.subscribe();
    changed.mark_unchanged();
    let address = rig.handle.address();
    let (dir, clock) = rig.stop().await;
    clock.set(NOW + 60_000);
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), changed.changed())
            .await
            .is_err()
    );
    assert_eq!(
        member.svid.get().unwrap().identity(),
        &first,
        "the last good one stays"
    );

    let settings = Config {
        listen: address,
        ..config(&dir)
    };
    let _rig = Rig::configured(settings, dir, clock).await;
    tokio::time::timeout(Duration::from_secs(30), changed.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        member.svid.get().unwrap().identity().not_after,
        NOW + 60_000 + 86_400
    );
}

#[tokio::test]
async fn an_expired_certificate_needs_a_token() {
    let rig = Rig::new().await;
    let (member, trigger) = rig.join(Kind::Node, "n1", &[]).await;
    drained(trigger).await;
    let start = async |token: Option<JoinToken>| {
        let (_trigger, drain) = weft_drain::channel();
        let mut enrollment = rig.enrollment(member.id.clone(), "node-n1");
        if let Some(token) = token {
            enrollment = enrollment.token(TokenSource::Given(token));
        }
        enrollment
            .enroll(drain)
            .await
            .map(|m| m.svid.get().unwrap().identity().not_after)
    };
    rig.clock.set(NOW - 4000);
    assert!(matches!(
        start(None).await.unwrap_err(),
        EnrollError::ClockBehind { .. }
    ));
    rig.clock.set(NOW + 86_400 + 60);
    let error = start(None).await.unwrap_err();
    assert!(matches!(error, EnrollError::Expired { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("weft identity join-token create --kind node --name n1"),
        "{error}"
    );
    // The service has renewed its own certificate in the meantime (or joining would fail).
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let (svid, _) = rig.handle.credentials();
    let mut changed = svid.subscribe();
    while svid.get().unwrap().identity().not_after < NOW + 86_400 + 60 {
        tokio::time::timeout(Duration::from_secs(20), changed.changed())
            .await
            .unwrap()
            .unwrap();
    }
    assert!(start(Some(token)).await.unwrap() > NOW + 86_400 + 60);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let rig = Rig::new().await;
    let id = td().service("policy").unwrap();
    let (_trigger, drain) = weft_drain::channel();
    let error = rig
        .enrollment(id.clone(), "p")
        .enroll(drain.clone())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("--kind service --name policy"),
        "{error}"
    );
    let missing = TokenSource::File("/nonexistent/token".into());
    let error = rig
        .enrollment(id.clone(), "p")
        .token(missing)
        .enroll(drain.clone())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/token"), "{error}");
    let workload = td().workload("a", "b").unwrap();
    let error = rig
        .enrollment(workload, "w")
        .enroll(drain.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::NotAMember(_)));
    let token = rig.token(Kind::Service, "policy", &[]).await;
    let error = weft_enroll::Enrollment::new(id, rig.member_folder("p"), "127.0.0.1:1".into())
        .token(TokenSource::Given(token))
        .patience(Duration::from_millis(10))
        .enroll(drain)
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::Unreachable { .. }), "{error}");
}
