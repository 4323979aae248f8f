//! The five methods over a real socket. The process that asks is this one; which workload its
//! cgroup belongs to is the test's word.
#![allow(clippy::unwrap_used)]

use parking_lot::Mutex;
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use weft_model::TrustDomain;
use weft_proto::spiffe::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use weft_tls::{Bundle, SystemClock, Trust};
use weft_workload_api::{Jwks, Source, Workload, X509, serve};

type Client = SpiffeWorkloadApiClient<Channel>;
const WITHIN: Duration = Duration::from_secs(20);

/// One workload, found by any cgroup while it is there.
struct Fake {
    workload: Mutex<Option<Workload>>,
    asked: Mutex<Vec<Vec<u64>>>,
    x509: watch::Sender<Option<Arc<X509>>>,
    jwks: watch::Sender<Arc<Jwks>>,
    audiences: Mutex<Vec<Vec<String>>>,
}

impl Source for Fake {
    fn find(&self, cgroups: &[u64]) -> Option<Workload> {
        self.asked.lock().push(cgroups.to_vec());
        self.workload.lock().clone()
    }
    fn x509(&self, _: &Workload) -> watch::Receiver<Option<Arc<X509>>> {
        self.x509.subscribe()
    }
    async fn jwt(&self, _: &Workload, audience: Vec<String>) -> Result<String, Status> {
        self.audiences.lock().push(audience);
        Ok("a.b.c".into())
    }
    fn jwks(&self) -> watch::Receiver<Arc<Jwks>> {
        self.jwks.subscribe()
    }
}

struct Rig {
    source: Arc<Fake>,
    trust: Trust,
    client: Client,
    gone: CancellationToken,
    drain: weft_drain::Trigger,
    _dir: tempfile::TempDir,
}

fn root(name: &str) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn bundle(version: u64, roots: &[&[u8]]) -> Bundle {
    Bundle {
        trust_domain: TrustDomain::default(),
        version,
        roots: roots.iter().map(|root| root.to_vec().into()).collect(),
        jwks: Vec::new(),
    }
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    line.unwrap().split(' ').nth(1).unwrap().into()
}

async fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("workload.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let gone = CancellationToken::new();
    let source = Arc::new(Fake {
        workload: Mutex::new(Some(Workload {
            id: "n1/default/cart/1".into(),
            spiffe_id: "spiffe://cluster.local/ns/default/cart".parse().unwrap(),
            gone: gone.clone(),
        })),
        asked: Mutex::default(),
        x509: watch::Sender::new(None),
        jwks: watch::Sender::new(Arc::new(Jwks::empty())),
        audiences: Mutex::default(),
    });
    let trust = Trust::new(TrustDomain::default(), SystemClock::shared());
    trust.set(bundle(1, &[&root("first")])).unwrap();
    let (drain, watcher) = weft_drain::channel();
    tokio::spawn(serve(listener, source.clone(), trust.clone(), cgroup2(), watcher));
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .unwrap();
    Rig {
        source,
        trust,
        client: Client::new(channel),
        gone,
        drain,
        _dir: dir,
    }
}

fn spiffe<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

fn x509(chain: &[&[u8]], key: &[u8]) -> Option<Arc<X509>> {
    Some(Arc::new(X509 {
        chain: chain.iter().map(|one| one.to_vec().into()).collect(),
        key: key.to_vec().into(),
    }))
}

#[tokio::test]
async fn a_workload_gets_its_certificate_when_there_is_one_and_each_new_one() {
    let mut rig = rig().await;
    let mut stream = rig
        .client
        .fetch_x509svid(spiffe(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    // Nothing yet: the call waits, it does not fail.
    rig.source.x509.send_replace(x509(&[b"leaf", b"issuer"], b"key"));
    let first = timeout(WITHIN, stream.message()).await.unwrap().unwrap().unwrap();
    let svid = &first.svids[0];
    assert_eq!(svid.spiffe_id, "spiffe://cluster.local/ns/default/cart");
    assert_eq!(
        (&*svid.x509_svid, &*svid.x509_svid_key),
        (&b"leafissuer"[..], &b"key"[..])
    );
    assert_eq!(svid.bundle, rig.trust.bundle().roots[0].to_vec());

    rig.source.x509.send_replace(x509(&[b"leaf2"], b"key2"));
    let next = timeout(WITHIN, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.svids[0].x509_svid_key, b"key2");

    // A new root reaches it with the same certificate.
    let (old, new) = (rig.trust.bundle().roots[0].to_vec(), root("second"));
    rig.trust.set(bundle(2, &[&old, &new])).unwrap();
    let next = timeout(WITHIN, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.svids[0].bundle, [old, new].concat());

    rig.gone.cancel();
    let ended = timeout(WITHIN, stream.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
}

#[tokio::test]
async fn bundles_are_told_at_once_and_when_they_change() {
    let mut rig = rig().await;
    let mut x509 = rig
        .client
        .fetch_x509_bundles(spiffe(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let mut jwt = rig
        .client
        .fetch_jwt_bundles(spiffe(JwtBundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let first = timeout(WITHIN, x509.message()).await.unwrap().unwrap().unwrap();
    let expected = rig.trust.bundle().roots[0].to_vec();
    assert_eq!(
        first.bundles,
        HashMap::from([("spiffe://cluster.local".to_owned(), expected)])
    );
    let first = timeout(WITHIN, jwt.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.bundles["spiffe://cluster.local"], br#"{"keys":[]}"#);

    rig.trust.set(bundle(2, &[&root("other")])).unwrap();
    rig.source
        .jwks
        .send_replace(Arc::new(Jwks::parse(br#"{ "keys": [] }"#).unwrap()));
    let next = timeout(WITHIN, x509.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(
        next.bundles["spiffe://cluster.local"],
        rig.trust.bundle().roots[0].to_vec()
    );
    let next = timeout(WITHIN, jwt.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.bundles["spiffe://cluster.local"], br#"{ "keys": [] }"#);

    // Streams that have no end of their own do not hold up a drain.
    let drained = tokio::spawn(rig.drain.drain(WITHIN));
    let ended = timeout(WITHIN, x509.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    drop((x509, jwt, rig.client));
    assert_eq!(drained.await.unwrap(), weft_drain::Outcome::Drained);
}

#[tokio::test]
async fn tokens_are_for_the_caller_and_an_audience() {
    let mut rig = rig().await;
    let ask = |audience: &[&str], spiffe_id: &str| {
        spiffe(JwtsvidRequest {
            audience: audience.iter().map(ToString::to_string).collect(),
            spiffe_id: spiffe_id.into(),
        })
    };
    let own = "spiffe://cluster.local/ns/default/cart";
    for id in ["", own] {
        let answer = rig
            .client
            .fetch_jwtsvid(ask(&["shop"], id))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (&*answer.svids[0].spiffe_id, &*answer.svids[0].svid),
            (own, "a.b.c")
        );
    }
    let long = "a".repeat(1025);
    for (audience, id, code) in [
        (&[][..], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (&[&*long], "", Code::InvalidArgument),
        (&["a"; 17], "", Code::InvalidArgument),
        (
            &["shop"],
            "spiffe://cluster.local/ns/default/other",
            Code::PermissionDenied,
        ),
    ] {
        let refused = rig.client.fetch_jwtsvid(ask(audience, id)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!(rig.source.audiences.lock().len(), 2);
    let validate = |audience: &str, svid: &str| {
        spiffe(ValidateJwtsvidRequest {
            audience: audience.into(),
            svid: svid.into(),
        })
    };
    for (audience, svid) in [("", "a.b.c"), ("shop", ""), ("shop", "a.b.c")] {
        let refused = rig
            .client
            .validate_jwtsvid(validate(audience, svid))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn who_is_no_workload_or_no_client_of_this_api_gets_nothing() {
    let mut rig = rig().await;
    let refused = rig
        .client
        .fetch_x509_bundles(Request::new(X509BundlesRequest {}))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(
        rig.source.asked.lock().is_empty(),
        "nobody was looked up before the header was seen"
    );

    let workload = rig.source.workload.lock().take();
    let refused = rig
        .client
        .fetch_x509svid(spiffe(X509svidRequest {}))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // The twin differs in nothing but the workload being there.
    *rig.source.workload.lock() = workload;
    rig.client
        .fetch_x509svid(spiffe(X509svidRequest {}))
        .await
        .unwrap();
    // It was looked up by this process's cgroups, up to the root of the hierarchy.
    let asked = rig.source.asked.lock().clone();
    let root = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(cgroup2()).unwrap());
    assert!(
        asked.iter().all(|cgroups| cgroups.last() == Some(&root)),
        "{asked:?}"
    );
}
