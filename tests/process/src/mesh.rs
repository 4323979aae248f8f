//! The processes of one mesh on loopback, without root: each joins with a token from `weft`.

use crate::{Home, Serving, run};
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
};
use tonic::transport::Channel;
use weft_model::TrustDomain;
use weft_tls::{Bundle, Expect, Svid, SvidCell, SystemClock, Trust};

/// A mesh that comes up process by process.
#[derive(Debug)]
pub struct Mesh {
    /// By the binary's name.
    pub processes: HashMap<&'static str, Serving>,
    addresses: HashMap<&'static str, String>,
    metrics: HashMap<&'static str, String>,
    /// Its folders.
    pub home: Home,
    log: &'static str,
}

impl Mesh {
    /// With the certificate authority.
    pub fn new() -> Self {
        Self::prepared(Home::new(), "info")
    }

    /// The same in folders with settings in them; every process logs what `log` says.
    pub fn prepared(home: Home, log: &'static str) -> Self {
        let mut mesh = Self {
            processes: HashMap::new(),
            addresses: HashMap::new(),
            metrics: HashMap::new(),
            home,
            log,
        };
        mesh.start("weft-identity");
        mesh
    }

    /// With all its services.
    pub fn whole() -> Self {
        Self::new().completed()
    }

    /// Starts all the others.
    pub fn completed(mut self) -> Self {
        for name in ["weft-policy", "weft-placement", "weft-agent"] {
            self.start(name);
        }
        self
    }

    /// A join token in a file.
    pub fn token(&self, name: &str) -> PathBuf {
        let short = name.trim_start_matches("weft-");
        let mut create = self.home.bare("weft");
        create.args(["identity", "join-token", "create"]);
        if name == "weft-agent" {
            create.args(["--kind", "node", "--name", "n1", "--may-host", "default/*"]);
        } else {
            create.args(["--kind", "service", "--name", short]);
        }
        let ended = run(create.arg("--run-dir").arg(self.home.at("run")));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        self.home.file(&format!("{short}.token"), &ended.stdout)
    }

    /// The process with flags that let it find the others; not started.
    pub fn command(&self, name: &str) -> std::process::Command {
        let mut command = self.home.command(name);
        command.env("WEFT_LOG", self.log);
        let address = |name: &str| self.addresses.get(name).map_or("127.0.0.1:1", String::as_str);
        match name {
            "weft-identity" => &mut command,
            "weft-agent" => command
                .args(["--identity", address("weft-identity")])
                .args(["--policy", address("weft-policy")])
                .args(["--placement", address("weft-placement")]),
            _ => command.args(["--identity-addr", address("weft-identity")]),
        };
        if name == "weft-policy" {
            let folder = self.home.at("resources");
            std::fs::create_dir_all(&folder).unwrap();
            command.arg("--insecure-loopback").arg("--resources").arg(folder);
        }
        command
    }

    /// Starts a process, with a token when it has no certificate yet, and waits until it serves.
    pub fn start(&mut self, name: &'static str) {
        let mut command = self.command(name);
        if name != "weft-identity" && !self.home.at(name).exists() {
            command.arg("--join-token-file").arg(self.token(name));
        }
        let process = Serving::start(&mut command);
        self.metrics
            .insert(name, process.logged(&format!("{name} started"), "metrics"));
        let (message, field) = match name {
            "weft-identity" => ("identity service ready", "address"),
            "weft-policy" => ("policy service ready", "address"),
            "weft-placement" => ("placement serves", "address"),
            _ => ("agent serves", "admin"),
        };
        self.addresses.insert(name, process.logged(message, field));
        self.processes.insert(name, process);
    }

    /// Ends a process and checks that it ended in order.
    pub fn stop(&mut self, name: &str) {
        let ended = self.processes.remove(name).unwrap().terminate();
        assert_eq!(ended.code, Some(0), "{ended:#?}");
    }

    /// Where a process serves gRPC.
    pub fn address(&self, name: &str) -> &str {
        &self.addresses[name]
    }

    /// What `GET path` on the metrics port answers: status and body.
    pub fn get(&self, name: &str, path: &str) -> (u16, String) {
        get(&self.metrics[name], path)
    }

    /// An operator with a certificate from `weft admin cert`.
    pub fn operator(&self) -> Operator {
        let out = self.home.at("admin");
        let mut cert = self.home.bare("weft");
        cert.args(["admin", "cert", "--out"]).arg(&out);
        let ended = run(cert.arg("--run-dir").arg(self.home.at("run")));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let blocks = |name: &str| {
            let text = std::fs::read_to_string(out.join(name)).unwrap();
            let blocks = pem::parse_many(text).unwrap().into_iter();
            blocks.map(pem::Pem::into_contents).collect::<Vec<_>>()
        };
        let key = blocks("client-key.pem").remove(0);
        let chain = blocks("client.pem").into_iter().map(Into::into).collect();
        let svid = SvidCell::new();
        svid.set(Svid::new(chain, &key.try_into().unwrap()).unwrap());
        let trust_domain = TrustDomain::default();
        let trust = Trust::new(trust_domain.clone(), SystemClock::shared());
        let roots = blocks("ca.pem").into_iter().map(Into::into).collect();
        let bundle = Bundle {
            trust_domain,
            version: 1,
            roots,
            jwks: Vec::new(),
        };
        trust.set(bundle).unwrap();
        Operator { svid, trust }
    }
}

/// What `GET path` at an address answers: status and body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::SOON)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

/// Who may look at every service.
#[derive(Debug)]
pub struct Operator {
    svid: SvidCell,
    trust: Trust,
}

impl Operator {
    /// A channel to a process of the mesh, over mTLS.
    pub fn channel(&self, mesh: &Mesh, name: &str) -> Channel {
        let domain = TrustDomain::default();
        let id = match name {
            "weft-agent" => domain.node("n1"),
            _ => domain.service(name.trim_start_matches("weft-")),
        };
        let expect = Expect::Id(id.unwrap());
        weft_rpc::channel(mesh.address(name), Some(&self.svid), &self.trust, expect).unwrap()
    }
}
