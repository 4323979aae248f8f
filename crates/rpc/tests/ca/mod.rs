//! A certificate authority for tests, and a server of its mesh.
#![allow(dead_code)]

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use tokio::net::TcpListener;
use weft_model::TrustDomain;
use weft_rpc::{Admit, GrpcServer, MethodRoles};
use weft_tls::{Bundle, ClientAuth, ManualClock, Svid, SvidCell, Trust, server_config};

pub const NOW: u64 = 1_800_000_000;
pub const ROLES: MethodRoles = MethodRoles(&[("/weft.placement.v1.Placement/Lookup", &[Admit::Node])]);

pub struct Ca {
    pub root: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub td: TrustDomain,
}

impl Ca {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = at(NOW - 100);
        params.not_after = at(NOW + 1_000_000);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: rcgen::Issuer::new(params, key),
            td: TrustDomain::default(),
        }
    }

    pub fn svid(&self, path: &str, seconds: u64) -> Svid {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(
            format!("spiffe://{}{path}", self.td).try_into().unwrap(),
        )];
        params.not_before = at(NOW - 60);
        params.not_after = at(NOW + seconds);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Svid::new(vec![leaf, self.root.clone()], &key).unwrap()
    }

    pub fn cell(&self, path: &str) -> SvidCell {
        let cell = SvidCell::new();
        cell.set(self.svid(path, 3600));
        cell
    }

    pub fn trust(&self, clock: &ManualClock) -> Trust {
        let trust = Trust::new(self.td.clone(), clock.shared());
        trust
            .set(Bundle {
                trust_domain: self.td.clone(),
                version: 1,
                roots: vec![self.root.clone()],
                jwks: Vec::new(),
            })
            .unwrap();
        trust
    }
}

fn at(unix: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(unix).unwrap()).unwrap()
}

pub struct Running {
    pub address: String,
    /// What the server verifies by.
    pub trust: Trust,
    pub trigger: weft_drain::Trigger,
    pub task: tokio::task::JoinHandle<Result<(), weft_rpc::RpcError>>,
}

impl Ca {
    pub async fn serve(&self, clock: &ManualClock, auth: ClientAuth) -> Running {
        self.serve_with(clock, auth, |server| server).await
    }

    pub async fn serve_with(
        &self,
        clock: &ManualClock,
        auth: ClientAuth,
        change: impl FnOnce(GrpcServer) -> GrpcServer,
    ) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cell = SvidCell::new();
        // Longer than any caller's.
        cell.set(self.svid("/weft/service/placement", 100_000));
        let trust = self.trust(clock);
        let tls = server_config(Arc::new(cell), &trust, auth, &[b"h2"]).unwrap();
        let (trigger, watcher) = weft_drain::channel();
        let server = GrpcServer::new("weft.placement.v1", weft_proto::WEFT_DESCRIPTORS, ROLES).unwrap();
        let server = change(server).build();
        let task = tokio::spawn(server.serve_tls(listener, Arc::new(tls), trust.clone(), watcher));
        Running {
            address,
            trust,
            trigger,
            task,
        }
    }
}
