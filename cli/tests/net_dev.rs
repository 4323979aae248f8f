//! `weft dev` as root: the node is real, apps use plain localhost:3500, and the kernel says who calls.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use weft_testnet::{Namespace, Process, Spawn, Testnet};

const PATIENCE: Duration = Duration::from_secs(60);
const USER: &str = "61002:61002";

struct World {
    // Dropped first: processes before the network.
    processes: Vec<Process>,
    namespace: Namespace,
    net: Testnet,
}

fn exe(name: &str) -> std::path::PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built; `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

impl World {
    fn weft(&self, args: &[&str]) -> Command {
        let mut command = Command::new(exe("weft"));
        command.args(args).env("WEFT_RUN_DIR", self.net.dir().join("run"));
        command
    }

    fn start(&mut self, mut command: Command, log: &str) {
        let file = File::create(self.net.dir().join(log)).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let process = self.namespace.spawn(command, &Spawn::root()).unwrap();
        self.processes.push(process);
    }

    fn log(&self, log: &str) -> String {
        fs::read_to_string(self.net.dir().join(log)).unwrap_or_default()
    }

    fn until(&self, what: &str, mut there: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !there() {
            assert!(
                Instant::now() < end,
                "waited in vain for {what}:\n{}\n{}",
                self.log("dev"),
                self.log(what)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn get(&self, port: u16, path: &str) -> std::io::Result<String> {
        let mut stream = self
            .namespace
            .connect(("127.0.0.1", port))
            .map_err(std::io::Error::other)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }
}

#[test]
fn plain_localhost_3500_works_for_two_apps_and_for_nobody_else() {
    let net = Testnet::new().unwrap();
    let node = net.node("dev").unwrap();
    let name = format!("dev-{}", net.key());
    let mut world = World {
        processes: Vec::new(),
        namespace: node.namespace().clone(),
        net,
    };
    let mut dev = world.weft(&["dev", "--node-name", &name, "--state-dir"]);
    dev.arg(world.net.dir().join("state"));
    world.start(dev, "dev");
    world.until("dev", || world.log("dev").contains("is up"));
    for (app, port) in [("cart", "8081"), ("billing", "8082")] {
        let mut run = world.weft(&["run", "--app-id", app, "--app-port", port, "--user", USER, "--"]);
        // Where the app is built may be closed to its user; the kernel starts it from here all the same.
        let copy = world.net.dir().join(app);
        fs::copy(exe("weft-example-cart"), &copy).unwrap();
        run.arg(&copy).args([app, port]).env_remove("DAPR_HTTP_PORT");
        world.start(run, &format!("{app}.log"));
        let port: u16 = port.parse().unwrap();
        world.until(app, || world.namespace.connect(("127.0.0.1", port)).is_ok());
    }
    let reply = world.get(8081, "/call?app=billing&id=one").unwrap();
    assert!(
        reply.contains("\"caller\":\"cart\"") && reply.contains("\"id\":\"one\""),
        "{reply}"
    );
    let reply = world.get(8082, "/call?app=cart&id=two").unwrap();
    assert!(
        reply.contains("\"caller\":\"billing\"") && reply.contains("\"id\":\"two\""),
        "{reply}"
    );

    // The twin: the same address from a process that is no workload.
    let outsider = world.get(3500, "/v1.0/invoke/cart/method/echo?id=x");
    assert!(outsider.as_ref().map_or(true, String::is_empty), "{outsider:?}");

    let observe = world
        .weft(&["observe", "--from-pod", "cart", "-o", "json"])
        .output()
        .unwrap();
    let flows = String::from_utf8(observe.stdout).unwrap();
    assert!(
        flows.contains("\"cgroup\"") && flows.contains("billing"),
        "{flows}"
    );

    // Everything the node made is gone with it.
    let cgroup = weft_cgroup(&name);
    assert!(cgroup.exists());
    for process in world.processes.iter_mut().rev() {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = process.wait().unwrap();
        // The apps end by the signal that `weft run` passes on; `weft dev` in order.
        assert!(ended.success() || ended.code() == Some(143), "{ended}");
    }
    assert!(
        !cgroup.exists(),
        "{} is still there:\n{}",
        cgroup.display(),
        world.log("dev")
    );
}

fn weft_cgroup(node: &str) -> std::path::PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.split(' ').nth(2) == Some("cgroup2"))
        .unwrap();
    Path::new(line.split(' ').nth(1).unwrap()).join("weft").join(node)
}
