//! A running `weft dev` with folders of its own, and apps in it.
#![allow(dead_code)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

pub fn weft_exe() -> &'static str {
    env!("CARGO_BIN_EXE_weft")
}

/// The example app, beside the command under test.
fn app_exe() -> PathBuf {
    let path = Path::new(weft_exe()).with_file_name("weft-example-cart");
    assert!(
        path.exists(),
        "{} is not built; `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

/// Interrupted when dropped, killed when that does not help.
pub struct Running {
    child: Child,
    pub port: u16,
}

impl Running {
    fn interrupt(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        self.ended()
    }

    /// Waits for its end and returns its exit code; killed when it does not end.
    pub fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.interrupt();
        }
    }
}

pub struct Session {
    dev: Option<Running>,
    dir: TempDir,
}

impl Session {
    pub fn start(args: &[&str]) -> Self {
        let mut session = Self {
            dev: None,
            dir: tempfile::tempdir().unwrap(),
        };
        session.again(args);
        session
    }

    /// Starts it, again on the same folders, and waits until an agent answers.
    pub fn again(&mut self, args: &[&str]) {
        let log = File::create(self.dir.path().join("dev.log")).unwrap();
        let child = self
            .command(&["dev", "--ephemeral-ports", "--state-dir"])
            .arg(self.dir.path().join("state"))
            .args(args)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.dev = Some(Running { child, port: 0 });
        self.until("weft dev to be up", || self.log("dev").contains("is up"));
    }

    /// Ctrl-C; its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.dev.take().and_then(|mut dev| dev.interrupt())
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(weft_exe());
        command
            .args(args)
            .env("WEFT_RUN_DIR", self.dir.path().join("run"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed and returns what it printed.
    pub fn weft(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "weft {args:?}: {error}\n{}",
            self.log("dev")
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a command, whatever comes of it.
    pub fn try_weft(&self, args: &[&str]) -> std::process::Output {
        self.command(args).output().unwrap()
    }

    /// The example app under `weft run`, listening.
    pub fn app(&self, name: &str, args: &[&str]) -> Running {
        let port = free_port();
        let log = File::create(self.dir.path().join(format!("{name}.log"))).unwrap();
        let child = self
            .command(&["run", "--app-id", name, "--app-port", &port.to_string()])
            .args(args)
            .arg("--")
            .arg(app_exe())
            .args([name, &port.to_string()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let running = Running { child, port };
        self.until(name, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        running
    }

    pub fn until(&self, what: &str, mut there: impl FnMut() -> bool) {
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
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A plain GET; the whole response.
pub fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}
