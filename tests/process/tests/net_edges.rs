//! What needs root to be staged: a full disk, on a file system of a mount namespace of its own, and the
//! namespaces of containers.
#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::Signal;
use std::{fs, path::Path, process::Command, time::Duration};
use weft_process_tests::{Ended, Home, Mesh, Serving, binary, run};

/// The command, in a mount namespace in which `folder` is on a disk of so many KiB that is filled up to
/// the last block, except for what it held before. The mount is gone with the process.
fn on_disk(command: &Command, folder: &Path, kib: u32, fill: bool) -> Command {
    let folder = folder.to_str().unwrap();
    let fill = if fill {
        "cat /dev/zero > \"$1/filler\" 2>/dev/null;"
    } else {
        ""
    };
    let script = format!(
        "cp -a \"$1\" \"$1.copy\" && mount -t tmpfs -o size={kib}k,mode=700 none \"$1\" && \
         cp -a \"$1.copy/.\" \"$1/\" && rm -r \"$1.copy\" && {{ {fill} shift; exec \"$@\"; }}"
    );
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "sh", "-c", &script, "sh", folder]);
    inside.arg(command.get_program()).args(command.get_args());
    inside.env_clear();
    for (key, value) in command.get_envs() {
        inside.env(key, value.unwrap());
    }
    inside
}

fn full(command: &Command, folder: &Path) -> Ended {
    fs::create_dir_all(folder).unwrap();
    run(&mut on_disk(command, folder, 4096, true))
}

#[test]
fn a_full_disk_is_told_at_the_first_start() {
    let home = Home::new();
    let folder = home.at("weft-identity");
    let ended = full(&home.command("weft-identity"), &folder);
    ended.says(
        "weft-identity",
        1,
        &[folder.to_str().unwrap(), "disk is full", "free space"],
    );
}

/// With the certificate of an earlier start, on a disk without room for the database.
#[test]
fn a_full_disk_is_told_by_members() {
    let mut mesh = Mesh::whole();
    for (name, database) in [("weft-policy", "policy.db"), ("weft-placement", "placement.db")] {
        mesh.stop(name);
        let folder = mesh.home.at(name);
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                fs::remove_file(path).unwrap();
            }
        }
        let command = mesh.command(name);
        let ended = full(&command, &folder);
        ended.says(name, 1, &[database, "disk is full", "free space"]);
    }
}

/// A member without room to store what it joined with has used its token up; that it says what is
/// full is all the more needed.
#[test]
fn a_full_disk_is_told_when_joining() {
    let mesh = Mesh::new();
    for name in ["weft-policy", "weft-placement", "weft-agent"] {
        let token = mesh.token(name);
        let mut command = mesh.command(name);
        command.arg("--join-token-file").arg(token);
        let folder = mesh.home.at(name);
        let ended = full(&command, &folder);
        ended.says(
            name,
            1,
            &[folder.to_str().unwrap(), "No space left", "free space"],
        );
    }
}

/// A disk that is full later stops nobody: what was good is served on, and again after a restart.
#[test]
fn a_disk_that_fills_up_stops_nobody() {
    let home = Home::new();
    let folder = home.at("weft-identity");
    fs::create_dir(&folder).unwrap();
    let mut command = home.command("weft-identity");
    command.env("WEFT_LOG", "info");
    let mut process = Serving::start(&mut on_disk(&command, &folder, 4096, false));
    process.logged("identity service ready", "address");
    // In its mount namespace.
    let filler = format!("/proc/{}/root{}/filler", process.pid(), folder.display());
    let _ = fs::write(&filler, vec![0; 8 << 20]);
    let create = || {
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
        run(create.arg("--run-dir").arg(home.at("run")))
    };
    create().says("weft", 1, &["certificate authority", "database"]);
    assert!(process.runs());
    fs::remove_file(&filler).unwrap();
    let again = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        create().code == Some(0)
    });
    assert!(again, "it does not get over a disk that was full");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code, Some(0));
}

/// A privileged container on a machine that has cgroup v2 alone sees its own part of it, unless it joins the
/// machine's processes.
#[test]
fn in_a_container_with_the_machines_processes_it_sees_the_machines_cgroups() {
    // Whoever opens the pipe for writing waits for its reader, which has been through `main` by then.
    const SCRIPT: &str = r#"
        mkfifo "$2"
        unshare --cgroup sleep 60 & other=$!
        $3 "$1" --config "$2" --check-config >/dev/null & node=$!
        exec 3>"$2"
        until [ "$(cat /proc/$other/comm)" = sleep ]; do :; done
        readlink /proc/1/ns/cgroup /proc/$node/ns/cgroup /proc/$other/ns/cgroup
        exec 3>&-
        wait $node; kill $other"#;
    let home = Home::new();
    let look = |pipe: &str, unshare: &[&str], within: &str| {
        let mut script = Command::new("unshare");
        script
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(unshare)
            .args(["sh", "-euc", SCRIPT, "sh"])
            .arg(binary("weft-node"))
            .arg(home.at(pipe))
            .arg(within);
        let ended = run(&mut script);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let lines: Vec<String> = ended.stdout.lines().map(str::to_owned).collect();
        <[String; 3]>::try_from(lines).unwrap()
    };
    // The machine's processes, and a cgroup namespace of its own, as the one beside it.
    let [first, node, other] = look("shared", &[], "unshare --cgroup");
    assert_eq!(node, first);
    assert_ne!(other, first);
    // A container of which all is its own: the first process is the container's.
    let [inside, node, _] = look("own", &["--cgroup"], "");
    assert_eq!(node, inside);
    assert_ne!(inside, first);
}
