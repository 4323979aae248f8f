//! Servers that drivers are run against: each started for one test, on a port of its own, and gone with it.

use crate::SOON;
use std::{process::Stdio, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

/// One that goes away and comes back with what it has acknowledged.
pub trait Server {
    /// Kills it.
    fn stop(&mut self) -> impl Future<Output = ()>;
    /// Starts it again where it was.
    fn again(&mut self) -> impl Future<Output = ()>;
}

/// A port that nobody listens on.
pub async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Until somebody listens there.
pub(crate) async fn listens(port: u16) {
    let wait = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait)
        .await
        .expect("the server does not listen");
}

/// Debian's `redis-server`. It keeps everything it acknowledged, also when it is killed.
pub struct Redis {
    port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Redis {
    /// With keyspace events.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self {
            port: free_port().await,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            folder: tempfile::tempdir().unwrap(),
            process: None,
        };
        server.again().await;
        server
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of its own, to look behind the driver.
    pub async fn client(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}

impl Server for Redis {
    async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    async fn again(&mut self) {
        let mut command = Command::new("redis-server");
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ])
            .args([
                "--notify-keyspace-events",
                "KEA",
                "--port",
                &self.port.to_string(),
                "--dir",
            ])
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let started = command.spawn();
        self.process = Some(started.expect("redis-server: `cargo xtask setup` installs it"));
        listens(self.port).await;
    }
}
