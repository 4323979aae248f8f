//! One database on a PostgreSQL server, one replica or several.

use crate::{
    postgres::Postgres,
    rig::{NOW, Rig, config, td},
};
use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use weft_enroll::{Enrollment, Member, TokenSource};
use weft_identity::{CaConfig, Config, Kind};
use weft_proto::weft::identity::v1::{
    Authority, CreateJoinTokenRequest, GetAuthorityRequest, GetAuthorityResponse, ListAuditRequest,
    RenewRequest, RevokeRequest, RotateRequest, RotateTarget, WatchNodesRequest, admin_client::AdminClient,
    certificates_client::CertificatesClient, members_client::MembersClient,
};
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

/// A replica as a process of its own.
struct Process {
    child: std::process::Child,
    address: String,
    dir: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn admin(dir: &TempDir) -> AdminClient<tonic::transport::Channel> {
    AdminClient::new(weft_rpc::channel_local(dir.path().join("run/identity.sock")).unwrap())
}

impl Process {
    async fn start(postgres: &Postgres, shared: &TempDir) -> Self {
        let dir = TempDir::new().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let file = dir.path().join("identity.yaml");
        let kek = shared.path().join("kek");
        std::fs::write(&file, format!("ca:\n  key_encryption_key: {}\n", kek.display())).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weft-identity"))
            .env_clear()
            .env("HOME", dir.path())
            .env("WEFT_IDENTITY_DATABASE_URL", postgres.url())
            .args([
                "--metrics-listen",
                "127.0.0.1:0",
                "--listen",
                &address,
                "--config",
            ])
            .arg(&file)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, address, dir };
        let up = async {
            while admin(&process.dir)
                .get_authority(GetAuthorityRequest {})
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), up).await.unwrap();
        process
    }

    async fn shown(&self) -> GetAuthorityResponse {
        let reply = admin(&self.dir).get_authority(GetAuthorityRequest {}).await;
        reply.unwrap().into_inner()
    }

    async fn join(&self, name: &str, folder: &TempDir, drain: weft_drain::Watcher) -> Member {
        let request = CreateJoinTokenRequest {
            kind: "node".into(),
            name: name.into(),
            ..Default::default()
        };
        let token = admin(&self.dir)
            .create_join_token(request)
            .await
            .unwrap()
            .into_inner()
            .token;
        Enrollment::new(
            td().node(name).unwrap(),
            folder.path().join(name),
            self.address.clone(),
        )
        .token(TokenSource::text(&token).unwrap())
        .enroll(drain)
        .await
        .unwrap()
    }
}

/// Renews all the time at one replica; the serial numbers it was given, and what went wrong.
async fn renew_always(member: Member, address: String, stop: Arc<AtomicBool>) -> (Vec<String>, Vec<String>) {
    let expect = weft_tls::Expect::Id(td().service("identity").unwrap());
    let channel = weft_rpc::channel(&address, Some(&member.svid), &member.trust, expect).unwrap();
    let (mut given, mut failed) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::SeqCst) {
        let csr_der = weft_tls::new_key_and_csr().unwrap().csr_der;
        match CertificatesClient::new(channel.clone())
            .renew(RenewRequest { csr_der })
            .await
        {
            Ok(reply) => given.push(reply.into_inner().svid.unwrap().serial),
            Err(status) => {
                failed.push(status.to_string());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    (given, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_dies_during_load_and_the_other_goes_on_also_with_the_rotation() {
    let (postgres, shared) = (Postgres::start(), TempDir::new().unwrap());
    let mut first = Process::start(&postgres, &shared).await;
    let second = Process::start(&postgres, &shared).await;
    let (folder, (_trigger, drain)) = (TempDir::new().unwrap(), weft_drain::channel());
    let n1 = second.join("n1", &folder, drain.clone()).await;
    let n2 = first.join("n2", &folder, drain.clone()).await;
    let root = second.shown().await.roots[0].sha256.clone();
    assert_eq!(first.shown().await.roots[0].sha256, root);
    assert_eq!(second.shown().await.replicas.len(), 2);

    let stop = Arc::new(AtomicBool::new(false));
    let load = |member: &Member, at: &Process| {
        let work = renew_always(member.clone(), at.address.clone(), stop.clone());
        tokio::spawn(work)
    };
    let survivors: Vec<_> = (0..4).map(|_| load(&n1, &second)).collect();
    let victims: Vec<_> = (0..4).map(|_| load(&n2, &first)).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A rotation has begun, by the replica that rotates, when that is killed.
    let rotate = RotateRequest {
        target: RotateTarget::Root.into(),
    };
    admin(&first.dir).rotate(rotate).await.unwrap();
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let taken_over = async {
        while second.shown().await.phase != "retiring" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), taken_over)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::SeqCst);
    let mut given = Vec::new();
    for task in survivors {
        let (serials, failed) = task.await.unwrap();
        assert_eq!(failed, Vec::<String>::new());
        assert!(!serials.is_empty());
        given.extend(serials);
    }
    for task in victims {
        let (serials, failed) = task.await.unwrap();
        assert!(
            !serials.is_empty() && !failed.is_empty(),
            "the kill was not during the load"
        );
        given.extend(serials);
    }
    // Whatever was answered is recorded, also by the one that died.
    let mut recorded = std::collections::HashSet::new();
    let mut request = ListAuditRequest {
        limit: 1000,
        ..Default::default()
    };
    loop {
        let page = admin(&second.dir)
            .list_audit(request.clone())
            .await
            .unwrap()
            .into_inner()
            .entries;
        let Some(oldest) = page.last() else { break };
        request.before_id = oldest.id;
        recorded.extend(page.into_iter().map(|e| e.serial));
    }
    assert!(given.iter().all(|serial| recorded.contains(serial)));
    println!("{} certificates", given.len());

    // Back again, it signs with the new issuer, and members of either know each other.
    let third = Process::start(&postgres, &shared).await;
    let shown = third.shown().await;
    let active = |list: &[Authority]| list.iter().find(|a| a.state == "active").unwrap().sha256.clone();
    assert_ne!(active(&shown.roots), root);
    assert_eq!(active(&shown.issuers), active(&second.shown().await.issuers));
    third.join("n3", &folder, drain).await;
}

#[tokio::test]
async fn a_server_that_goes_away_stops_nothing_for_ever() {
    let (mut postgres, shared) = (Postgres::start(), TempDir::new().unwrap());
    let dir = TempDir::new().unwrap();
    let settings = replica(&dir, &postgres, &shared);
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[]).await;
    let mut client = CertificatesClient::new(rig.channel(Some(&n1.svid)));
    let mut renew = async || {
        let csr_der = weft_tls::new_key_and_csr().unwrap().csr_der;
        client.renew(RenewRequest { csr_der }).await
    };
    renew().await.unwrap();
    postgres.kill();
    // Nothing is given out that can not be recorded, and the answer comes in time.
    let refused = tokio::time::timeout(Duration::from_secs(30), renew())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(!refused.message().contains("postgres://"), "{refused}");
    postgres.up();
    let again = async { while renew().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_one_replica_does_the_other_tells_its_members() {
    let (postgres, shared) = (Postgres::start(), TempDir::new().unwrap());
    let clock = ManualClock::at(NOW);
    let start = async || {
        let dir = TempDir::new().unwrap();
        Rig::configured(replica(&dir, &postgres, &shared), dir, clock.clone()).await
    };
    let (first, second) = (start().await, start().await);
    let (policy, _drain) = first.join(Kind::Service, "policy", &[]).await;
    let mut nodes = MembersClient::new(first.channel(Some(&policy.svid)))
        .watch_nodes(WatchNodesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(nodes.message().await.unwrap().unwrap().snapshot);
    let (n1, _d1) = second.join(Kind::Node, "n1", &[]).await;
    let told = tokio::time::timeout(Duration::from_secs(20), nodes.message())
        .await
        .unwrap();
    assert_eq!(told.unwrap().unwrap().upserts[0].name, "n1");
    // Revoked at one, known to the members of the other within two seconds.
    let request = RevokeRequest {
        target: n1.id.to_string(),
        reason: "test".into(),
    };
    AdminClient::new(second.local()).revoke(request).await.unwrap();
    let mut changes = policy.trust.revocations();
    let peer = n1.svid.get().unwrap().identity().clone();
    let known = async {
        while !policy.trust.is_revoked(&peer) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(2), known)
        .await
        .expect("not within two seconds");
}
