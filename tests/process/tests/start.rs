//! Starts that can not work: each ends with one line that names the thing and the remedy.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::Signal;
use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
};
use weft_process_tests::{Home, PROCESSES, SERVICES, Serving, binary, free_address, run, run_as_nobody};

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = Home::new();
    for name in PROCESSES {
        let ended = run(home.command(name).args(["--metrics-listen", &address]));
        ended.says(name, 1, &[&address, "in use", "--metrics-listen"]);
    }
    for name in ["weft-identity", "weft-policy", "weft-placement"] {
        // Before anything is asked of others, so without a token and without an identity service.
        let ended = run(home.command(name).args(["--listen", &address]));
        ended.says(name, 1, &[&address, "in use", "--listen"]);
    }
}

#[test]
fn a_socket_in_use_is_named() {
    let home = Home::new();
    fs::create_dir(home.at("run")).unwrap();
    let _taken = UnixListener::bind(home.at("run/identity.sock")).unwrap();
    let ended = run(&mut home.command("weft-identity"));
    ended.says("weft-identity", 1, &["identity.sock", "another process"]);
}

#[test]
fn without_a_token_the_command_that_makes_one_is_told() {
    let home = Home::new();
    for (name, command) in [
        ("weft-policy", "join-token create --kind service --name policy"),
        (
            "weft-placement",
            "join-token create --kind service --name placement",
        ),
        ("weft-agent", "join-token create --kind node --name n1"),
    ] {
        run(&mut home.command(name)).says(name, 1, &[command, "--join-token-file"]);
    }
}

#[test]
fn a_token_is_waited_for_and_kept_in_a_file_of_its_own() {
    let home = Home::new();
    let file = home.at("policy.token");
    let create = |more: &[&str]| {
        let mut create = home.bare("weft");
        create.args([
            "identity",
            "join-token",
            "create",
            "--kind",
            "service",
            "--name",
            "policy",
        ]);
        create
            .arg("--run-dir")
            .arg(home.at("run"))
            .arg("--out")
            .arg(&file)
            .args(more);
        create
    };
    run(&mut create(&[])).says("weft", 1, &["no certificate authority answers"]);
    assert!(!file.exists(), "a file without a token is left behind");
    // Asked before there is anybody to ask.
    let waiting = Serving::start(&mut create(&["--wait", "60"]));
    let _identity = Serving::start(&mut home.command("weft-identity"));
    let made = waiting.ended();
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), ""), "{made:?}");
    let token = fs::read_to_string(&file).unwrap();
    assert!(token.starts_with("weft1."), "{token:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    run(&mut create(&[])).says("weft", 1, &["policy.token", "--keep"]);
    assert_eq!(run(&mut create(&["--keep"])).code, Some(0));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        token,
        "the token was replaced"
    );

    // Root makes it for a service of another user; whoever is not root can not give files away.
    let file_of = |owner: &str| {
        fs::remove_file(&file).unwrap();
        run(&mut create(&["--wait", "60", "--owner", owner]))
    };
    let other = file_of("54321:54322");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(other.code, Some(0), "{other:?}");
        let made = fs::metadata(&file).unwrap();
        assert_eq!(
            (made.uid(), made.gid(), made.permissions().mode() & 0o777),
            (54321, 54322, 0o600)
        );
    } else {
        other.says("weft", 1, &["policy.token", "54321"]);
        assert!(!file.exists());
        fs::write(&file, "").unwrap();
    }
    file_of("weft").says("weft", 2, &["--owner", "\"weft\" is no number"]);
}

#[test]
fn a_token_file_that_can_not_be_used_is_named() {
    let home = Home::new();
    let garbage = home.file("garbage.token", "weft1.garbage\n");
    let long = home.file("long.token", &"x".repeat(10_000));
    for name in ["weft-policy", "weft-placement", "weft-agent"] {
        let with = |file: &Path| run(home.command(name).arg("--join-token-file").arg(file));
        with(&home.at("absent.token")).says(name, 1, &["absent.token", "No such file"]);
        with(&garbage).says(name, 1, &["garbage.token", "weft identity join-token create"]);
        with(&long).says(name, 1, &["long.token", "at most 4096"]);
    }
}

#[test]
fn what_root_must_do_is_told() {
    let home = Home::new();
    run_as_nobody(&mut home.command("weft-node")).says("weft-node", 1, &["root", "sudo", "weft dev"]);
    run(home.bare("weft-agent").args([
        "--config",
        "/dev/null",
        "--metrics-listen",
        "127.0.0.1:0",
        "--log=off",
    ]))
    .says("weft-agent", 1, &["weft-node", "--rootless", "weft dev"]);
}

/// A folder of somebody else: for root there is none.
#[test]
fn a_state_folder_without_rights_is_named() {
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    for name in SERVICES {
        // Without root this test's own user is to be shut out.
        let folder = home.at(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o500)).unwrap();
        let ended = run_as_nobody(&mut home.command(name));
        ended.says(name, 1, &[folder.to_str().unwrap(), "Permission denied"]);
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_file_where_a_folder_should_be_is_named() {
    let home = Home::new();
    for name in SERVICES {
        let path = home.file(name, "");
        run(&mut home.command(name)).says(name, 1, &[path.to_str().unwrap(), "directory"]);
    }
}

#[test]
fn a_folder_of_manifests_that_is_not_there_is_named() {
    let home = Home::new();
    let ended = run(home
        .command("weft-policy")
        .arg("--resources")
        .arg(home.at("manifests")));
    ended.says("weft-policy", 1, &["manifests", "No such file", "--resources"]);
}

#[test]
fn the_command_says_who_does_not_answer() {
    let home = Home::new();
    let run_dir = home.at("run");
    for (arguments, words) in [
        (
            &["status"][..],
            &["agent.sock", "no such socket", "weft dev", "--run-dir"][..],
        ),
        (&["observe"], &["hubble.sock", "weft dev"]),
        (
            &["run", "--app-id", "a", "--", "true"],
            &["agent.sock", "weft dev"],
        ),
        (&["identity", "audit"], &["identity.sock", "weft-identity"]),
        (&["admin", "cert"], &["identity.sock", "weft-identity"]),
    ] {
        let ended = run(home.bare("weft").args(arguments).env("WEFT_RUN_DIR", &run_dir));
        ended.says("weft", 1, words);
    }
    // A socket that nobody listens on, and one of somebody else's.
    fs::create_dir(&run_dir).unwrap();
    drop(UnixListener::bind(run_dir.join("agent.sock")).unwrap());
    let ended = run(home.bare("weft").arg("status").env("WEFT_RUN_DIR", &run_dir));
    ended.says("weft", 1, &["agent.sock", "refused", "weft dev"]);
    let ended = run(home.bare("weft").args(["run", "--app-id", "a_.b", "--", "true"]));
    ended.says("weft", 2, &["a_.b", "--help"]);
}

/// A process that still waits for the identity service ends at once and in order.
#[test]
fn an_interrupted_start_is_no_failure() {
    let home = Home::new();
    let token = home.file(
        "form.token",
        "weft1.AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE.0202020202020202.\
         AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM\n",
    );
    let nobody = free_address();
    for name in ["weft-policy", "weft-placement", "weft-agent"] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut command = home.command(name);
            command
                .env("WEFT_LOG", "info")
                .arg("--join-token-file")
                .arg(&token);
            let flag = if name == "weft-agent" {
                "--identity"
            } else {
                "--identity-addr"
            };
            let process = Serving::start(command.args([flag, &nobody]));
            process.logged("join failed", "error");
            process.signal(signal);
            let ended = process.ended();
            assert_eq!(ended.code, Some(0), "{name} at {signal}: {ended:#?}");
        }
    }
}

/// The library's own check, so that a missing build is told and not taken for a failure of a binary.
#[test]
fn all_binaries_are_there() {
    for name in PROCESSES.into_iter().chain(["weft"]) {
        binary(name);
    }
}
