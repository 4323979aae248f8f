//! State that can not be used: locked, damaged, of somebody else, or of another time.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, net::SocketAddr, path::Path, time::Duration};
use weft_drain::Trigger;
use weft_enroll::{Enrollment, TokenSource};
use weft_identity::{Env, HostPattern, Kind};
use weft_model::{SpiffeId, TrustDomain};
use weft_process_tests::{Home, Mesh, run};
use weft_tls::{ManualClock, SystemClock};

const DAY: u64 = 24 * 3600;

fn id(name: &str) -> SpiffeId {
    let domain = TrustDomain::default();
    match name {
        "weft-agent" => domain.node("n1").unwrap(),
        _ => domain.service(name.trim_start_matches("weft-")).unwrap(),
    }
}

/// Where a process keeps its key and certificate.
fn member_folder(home: &Home, name: &str) -> std::path::PathBuf {
    home.at(name).join(if name == "weft-policy" {
        "member"
    } else {
        "identity"
    })
}

#[test]
fn a_database_in_use_is_told_with_who_to_stop() {
    let mut mesh = Mesh::new();
    for (name, database) in [
        ("weft-identity", "identity.db"),
        ("weft-policy", "policy.db"),
        ("weft-placement", "placement.db"),
    ] {
        if name != "weft-identity" {
            mesh.start(name);
        }
        let mut second = mesh.command(name);
        if name == "weft-identity" {
            second.arg("--run-dir").arg(mesh.home.at("run2"));
        }
        let ended = run(&mut second);
        ended.says(
            name,
            1,
            &[database, "is locked", "stop the process", "another state folder"],
        );
        // The first one is not disturbed.
        assert!(mesh.processes.get_mut(name).unwrap().runs());
        assert_eq!(mesh.get(name, "/healthz").0, 200);
    }
    for name in ["weft-policy", "weft-placement", "weft-identity"] {
        mesh.stop(name);
    }
}

#[test]
fn a_damaged_database_is_told_and_left_alone() {
    let mut mesh = Mesh::new();
    for name in ["weft-policy", "weft-placement"] {
        mesh.start(name);
        mesh.stop(name);
    }
    for (name, database) in [
        ("weft-policy", "policy.db"),
        ("weft-placement", "placement.db"),
        ("weft-identity", "identity.db"),
    ] {
        if name == "weft-identity" {
            mesh.stop(name);
        }
        let path = mesh.home.at(name).join(database);
        let good = fs::read(&path).unwrap();
        let refused = |bytes: &[u8], words: &[&str]| {
            fs::write(&path, bytes).unwrap();
            run(&mut mesh.command(name)).says(name, 1, words);
            assert!(path.exists());
        };
        refused(
            b"this is a letter, no database at all",
            &[database, "no SQLite database", "backup"],
        );
        // A page in the middle is overwritten: the file's head is still good.
        let mut cut = good.clone();
        cut[4096..8192].fill(0xa5);
        refused(&cut, &[database, "backup"]);
        fs::write(&path, &good).unwrap();
    }
    // With what was there before all of them start again.
    for name in ["weft-identity", "weft-policy", "weft-placement"] {
        mesh.start(name);
    }
    for name in ["weft-placement", "weft-policy", "weft-identity"] {
        mesh.stop(name);
    }
}

#[test]
fn a_lost_key_of_the_authority_is_told() {
    let mut mesh = Mesh::new();
    mesh.stop("weft-identity");
    let key = mesh.home.at("weft-identity/key-encryption-key");
    let good = fs::read(&key).unwrap();
    for bad in [&b"short"[..], b""] {
        fs::write(&key, bad).unwrap();
        let ended = run(&mut mesh.command("weft-identity"));
        ended.says("weft-identity", 1, &["key-encryption-key"]);
    }
    fs::write(&key, good).unwrap();
    let aside = mesh.home.at("aside");
    fs::rename(&key, &aside).unwrap();
    let ended = run(&mut mesh.command("weft-identity"));
    ended.says("weft-identity", 1, &["key-encryption-key"]);
    fs::rename(&aside, &key).unwrap();
    mesh.start("weft-identity");
}

#[test]
fn a_damaged_certificate_is_told() {
    let mut mesh = Mesh::whole();
    for name in ["weft-agent", "weft-placement", "weft-policy"] {
        mesh.stop(name);
        let folder = member_folder(&mesh.home, name);
        for file in ["svid.pem", "bundle.pem"] {
            let path = folder.join(file);
            let good = fs::read(&path).unwrap();
            fs::write(&path, &good[..good.len() / 2]).unwrap();
            let ended = run(&mut mesh.command(name));
            ended.says(name, 1, &[path.to_str().unwrap(), "damaged", "token"]);
            fs::write(&path, good).unwrap();
        }
        mesh.start(name);
        mesh.stop(name);
    }
}

#[test]
fn the_certificate_of_somebody_else_is_told() {
    let mut mesh = Mesh::new();
    mesh.start("weft-policy");
    mesh.stop("weft-policy");
    fs::create_dir(mesh.home.at("weft-placement")).unwrap();
    fs::rename(
        member_folder(&mesh.home, "weft-policy"),
        member_folder(&mesh.home, "weft-placement"),
    )
    .unwrap();
    let ended = run(&mut mesh.command("weft-placement"));
    ended.says(
        "weft-placement",
        1,
        &["service/policy", "service/placement", "another folder"],
    );
}

/// An authority inside this test, at a time of the test's choice.
struct Authority {
    clock: ManualClock,
    handle: weft_identity::Handle,
    _trigger: Trigger,
    drain: weft_drain::Watcher,
}

impl Authority {
    async fn at(folder: &Path, unix_seconds: u64) -> Self {
        let clock = ManualClock::at(unix_seconds);
        let (trigger, drain) = weft_drain::channel();
        let config = weft_identity::Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            state_dir: folder.to_owned(),
            run_dir: None,
            ..weft_identity::Config::default()
        };
        let env = Env::new(drain.clone()).clock(clock.shared());
        let handle = weft_identity::start_with(config, env).await.unwrap();
        Self {
            clock,
            handle,
            _trigger: trigger,
            drain,
        }
    }

    /// Leaves key and certificate in `folder`, as a process that joined then would have.
    async fn join(&self, name: &str, folder: std::path::PathBuf) {
        let (kind, short) = match name {
            "weft-agent" => (Kind::Node, "n1"),
            _ => (Kind::Service, name.trim_start_matches("weft-")),
        };
        let hour = Duration::from_secs(3600);
        let patterns: Vec<HostPattern> = Vec::new();
        let token = self
            .handle
            .create_join_token(kind, short, patterns, hour)
            .await
            .unwrap();
        let address = self.handle.address().to_string();
        Enrollment::new(id(name), folder, address)
            .token(TokenSource::Given(token))
            .clock(self.clock.shared())
            .enroll(self.drain.clone())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_told() {
    let now = SystemClock::shared().unix_seconds();
    for (then, words) in [
        (now + 30 * DAY, ["is valid only in", "set the machine's clock"]),
        (now - 30 * DAY, ["expired", "make a new join token with"]),
    ] {
        let home = Home::new();
        let authority = Authority::at(&home.at("authority"), then).await;
        for name in ["weft-policy", "weft-placement", "weft-agent"] {
            let folder = member_folder(&home, name);
            fs::create_dir_all(folder.parent().unwrap()).unwrap();
            authority.join(name, folder.clone()).await;
            let ended = run(&mut home.command(name));
            ended.says(name, 1, &words);
            ended.says(name, 1, &[folder.to_str().unwrap(), &id(name).to_string()]);
        }
    }
    // The authority's own.
    let home = Home::new();
    drop(Authority::at(&home.at("weft-identity"), now + 365 * DAY).await);
    let mut late = home.command("weft-identity");
    let ended = tokio::task::spawn_blocking(move || run(&mut late)).await.unwrap();
    ended.says("weft-identity", 1, &["the clock says", "set the machine's clock"]);
}
