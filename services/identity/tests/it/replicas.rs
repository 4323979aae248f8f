//! One database on a PostgreSQL server, one replica or several.

use crate::{
    postgres::Postgres,
    rig::{NOW, Rig, config, td},
};
use tempfile::TempDir;
use weft_identity::{CaConfig, Config, Kind};
use weft_tls::ManualClock;

/// A replica's configuration: all share the database and the key.
fn replica(dir: &TempDir, postgres: &Postgres, shared: &TempDir) -> Config {
    Config {
        database_url: Some(postgres.url()),
        ca: CaConfig {
            key_encryption_key: Some(shared.path().join("kek")),
            ..CaConfig::default()
        },
        ..config(dir)
    }
}

#[tokio::test]
async fn everything_works_on_a_server_as_on_a_file() {
    let (postgres, shared) = (Postgres::start(), TempDir::new().unwrap());
    let dir = TempDir::new().unwrap();
    let settings = replica(&dir, &postgres, &shared);
    std::fs::create_dir_all(&settings.state_dir).unwrap();
    let rig = Rig::configured(settings.clone(), dir, ManualClock::at(NOW)).await;
    let root = rig.handle.root_sha256();
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let enroll = |folder: &str| {
        let source = weft_enroll::TokenSource::Given(token.clone());
        rig.enrollment(td().node("n1").unwrap(), folder).token(source)
    };
    let (_trigger, drain) = weft_drain::channel();
    enroll("n1").enroll(drain.clone()).await.unwrap();
    let again = enroll("other").enroll(drain).await.unwrap_err();
    assert!(again.to_string().contains("used already"), "{again}");
    let actions: Vec<_> = rig
        .audit()
        .await
        .into_iter()
        .map(|e| (e.action, e.outcome))
        .collect();
    let expected = [
        ("join", "refuse"),
        ("join", "issue"),
        ("create-join-token", "issue"),
        ("own-certificate", "issue"),
    ];
    assert_eq!(actions, expected.map(|(a, o)| (a.to_owned(), o.to_owned())));
    let (dir, clock) = rig.stop().await;
    let rig = Rig::configured(settings, dir, clock).await;
    assert_eq!(rig.handle.root_sha256(), root);
    assert!(!rig.dir.path().join("state/identity.db").exists());
}
