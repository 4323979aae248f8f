//! Root on machines that lack what the kernel should give: no cgroup v2, no namespaces, no BPF. Each is
//! a process in a mount namespace of its own, or without the capability: needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::{io, os::unix::process::CommandExt, process::Command};
use weft_process_tests::{Ended, Home, Serving, binary, run};

/// Unmounts cgroup v2 wherever it is; with its own loopback, so that no port is in use.
const NO_CGROUP2: &str = "grep ' cgroup2 ' /proc/self/mounts | while read -r _ at _; do umount -l \"$at\"; done; \
                          ip link set lo up && exec \"$@\"";

fn without_cgroup2(command: &Command) -> Command {
    wrapped(
        &["unshare", "--mount", "--net", "sh", "-c", NO_CGROUP2, "sh"],
        command,
    )
}

fn without_capability(name: &str, command: &Command) -> Command {
    let without = format!("-{name}");
    wrapped(
        &["setpriv", "--bounding-set", &without, "--inh-caps", &without],
        command,
    )
}

fn wrapped(around: &[&str], command: &Command) -> Command {
    let mut inside = Command::new(around[0]);
    inside.args(&around[1..]);
    inside.arg(command.get_program()).args(command.get_args());
    inside.env_clear();
    for (key, value) in command.get_envs() {
        inside.env(key, value.unwrap());
    }
    inside
}

fn demo(home: &Home) -> Command {
    let mut command = home.bare("weft-demo");
    command
        .arg("--bin-dir")
        .arg(binary("weft-demo").parent().unwrap());
    command
}

/// It plays what works, and says what it left out and why.
#[track_caller]
fn plays_the_rest(ended: &Ended, why: &str) {
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let left_out = ended.stdout.lines().find(|l| l.contains("skip")).unwrap();
    assert!(
        left_out.contains("two nodes") && left_out.contains(why),
        "{left_out}"
    );
    let checked = ended.stdout.lines().filter(|l| l.trim_start().starts_with("ok "));
    assert!(checked.count() >= 2, "{ended:#?}");
    assert!(ended.stdout.contains(" 0 failed, 1 skipped"), "{ended:#?}");
}

#[test]
fn the_demo_plays_what_works_without_cgroup_v2() {
    let home = Home::new();
    let ended = run(&mut without_cgroup2(&demo(&home)));
    plays_the_rest(&ended, "no cgroup v2");
}

#[test]
fn the_demo_plays_what_works_without_namespaces() {
    let home = Home::new();
    let ended = run(&mut without_capability("sys_admin", &demo(&home)));
    plays_the_rest(&ended, "not permitted");
}

/// Namespaces and cgroups are there, the kernel takes no programs.
#[test]
fn the_demo_plays_what_works_without_bpf() {
    let home = Home::new();
    let mut command = demo(&home);
    // SAFETY: between fork and exec only system calls are made, with data of this function.
    unsafe { command.pre_exec(refuse_bpf) };
    plays_the_rest(&run(&mut command), "did not accept");
}

/// Answers bpf(2) with EPERM from here on, in this process and all that it starts.
fn refuse_bpf() -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        // The number of the call is the first word of what a filter sees.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_bpf as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refused),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program points to a filter that lives until the call returns.
    match unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The node serves pods, says what it cannot do, and refuses processes with the reason.
#[test]
fn a_node_without_cgroup_v2_says_so_everywhere() {
    let home = Home::new();
    let mut dev = home.bare("weft");
    dev.args(["dev", "--ephemeral-ports", "--node-name", "bare", "--state-dir"])
        .arg(home.at("state"))
        .arg("--run-dir")
        .arg(home.at("run"));
    let mut dev = Serving::start(&mut without_cgroup2(&dev));
    dev.heard("that processes have no caller", |line| {
        (line.contains("process-attribution") && line.contains("no cgroup v2")).then_some(())
    });
    let status = |home: &Home| {
        let mut command = home.bare("weft");
        command.args(["status", "-o", "json", "--run-dir"]);
        run(command.arg(home.at("run")))
    };
    let begun = std::time::Instant::now();
    let status: Value = loop {
        let ended = status(&home);
        if ended.code == Some(0) {
            break serde_json::from_str(&ended.stdout).unwrap();
        }
        assert!(begun.elapsed() < weft_process_tests::SOON, "{ended:#?}");
        assert!(dev.runs());
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let capability = |name: &str| {
        let all = status["capabilities"].as_array().unwrap();
        all.iter()
            .find(|c| c["name"] == name)
            .unwrap_or_else(|| panic!("{status:#}"))
    };
    for missing in ["cgroup2", "process-attribution", "kernel-policy"] {
        let found = capability(missing);
        assert_ne!(found["active"], true, "{missing}");
        assert!(!found["reason"].as_str().unwrap().is_empty(), "{missing}");
    }
    assert!(
        capability("process-attribution")["reason"]
            .as_str()
            .unwrap()
            .contains("mount -t cgroup2")
    );
    assert_eq!(capability("pod-listeners")["active"], true);

    let mut app = home.bare("weft");
    app.args(["run", "--app-id", "a", "--run-dir"])
        .arg(home.at("run"));
    let refused = run(app.args(["--", "true"]));
    refused.says("weft", 1, &["processes cannot be placed", "mount -t cgroup2"]);

    assert_eq!(dev.terminate().code, Some(0));
}
