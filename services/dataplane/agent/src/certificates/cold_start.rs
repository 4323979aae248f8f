//! Many workloads that start at once: their node asks for a few certificates at a time.
#![allow(clippy::unwrap_used)]

use super::{AT_ONCE, Certificates};
use crate::upstream::Upstream;
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use weft_model::TrustDomain;
use weft_proto::weft::identity::v1::{
    RenewRequest, RenewResponse, SignIngressRequest, SignIngressResponse, SignJwtRequest, SignJwtResponse,
    SignWorkloadRequest, SignWorkloadResponse,
    certificates_server::{self, CertificatesServer},
};
use weft_tls::{SvidCell, SystemClock, Trust};

const WORKLOADS: usize = 120;

/// Takes its time, counts who asks, and has nothing to give.
#[derive(Debug, Default)]
struct Slow {
    present: AtomicUsize,
    most: AtomicUsize,
    seen: Mutex<HashSet<String>>,
}

/// The service as tonic wants it.
struct Served(Arc<Slow>);

#[tonic::async_trait]
impl certificates_server::Certificates for Served {
    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unavailable("not here"))
    }

    async fn sign_workload(
        &self,
        request: Request<SignWorkloadRequest>,
    ) -> Result<Response<SignWorkloadResponse>, Status> {
        let present = self.0.present.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(present, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.present.fetch_sub(1, Ordering::SeqCst);
        self.0.seen.lock().insert(request.into_inner().workload_id);
        Err(Status::unavailable("nothing to give"))
    }

    async fn sign_ingress(
        &self,
        _: Request<SignIngressRequest>,
    ) -> Result<Response<SignIngressResponse>, Status> {
        Err(Status::unavailable("not here"))
    }

    async fn sign_jwt(&self, _: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        Err(Status::unavailable("not here"))
    }
}

#[tokio::test]
async fn workloads_that_start_together_take_turns() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("identity.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let slow = Arc::new(Slow::default());
    let server = Server::builder().add_service(CertificatesServer::new(Served(slow.clone())));
    tokio::spawn(server.serve_with_incoming(incoming));

    let certificates = Certificates::new(
        weft_rpc::channel_local(socket).unwrap(),
        Upstream::new("identity", "here"),
        Trust::new(TrustDomain::default(), SystemClock::shared()),
        "n1",
        dir.path(),
    );
    let mut tasks = JoinSet::new();
    for n in 0..WORKLOADS {
        let certificates = certificates.clone();
        tasks.spawn(async move {
            let (cell, refused) = (SvidCell::new(), watch::Sender::new(None));
            let id = format!("spiffe://cluster.local/ns/default/app-{n}");
            certificates.keep(&format!("n1/{n}"), &id, &cell, &refused).await;
        });
    }
    // Each gets its turn, also while others try again.
    let all = async {
        while slow.seen.lock().len() < WORKLOADS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!(slow.most.load(Ordering::SeqCst), AT_ONCE);
}
