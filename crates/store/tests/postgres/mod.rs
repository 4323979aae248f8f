//! A PostgreSQL server of the test's own: from Debian's package, as an unprivileged user, on a free
//! port, with everything in a temporary folder. Tests of the services take it from here.
// No test needs all of it.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// The running server; killed and removed when dropped.
pub struct Postgres {
    dir: TempDir,
    port: u16,
    server: Option<Child>,
}

fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let found = versions
        .expect("PostgreSQL is missing: run `cargo xtask setup`")
        .map(|entry| entry.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .max();
    found.expect("PostgreSQL's programs are missing: run `cargo xtask setup`")
}

fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

impl Postgres {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = unprivileged(&program("initdb"))
            .args([
                "--username=weft",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
                "-D",
            ])
            .arg(dir.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut postgres = Self {
            dir,
            port,
            server: None,
        };
        postgres.up();
        postgres
    }

    /// Starts the server on its data, again after [`Postgres::kill`].
    pub fn up(&mut self) {
        let server = unprivileged(&program("postgres"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(server);
        let deadline = Instant::now() + Duration::from_secs(60);
        let ready = || {
            unprivileged(&program("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status()
                .unwrap()
                .success()
        };
        while !ready() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server at once, with whatever is under way.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT is its immediate shutdown: the workers go with it, nothing is finished.
            let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
            server.wait().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("postgres://weft@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Runs one statement as the server's owner.
    pub fn execute(&self, sql: &str) -> String {
        let out = unprivileged(&program("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "weft",
                "-d",
                "postgres",
                "-At",
                "-c",
                sql,
                "-p",
            ])
            .arg(self.port.to_string())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
