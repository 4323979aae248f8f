//! Requests of Dapr's sidecars that are nearly right, from their bytes to the signed certificate.
//! Whatever is signed must name exactly what was asked for, and hold exactly the key that the request
//! proves; whatever is refused is refused with a reason, and counts as no issuance.

use super::*;
use crate::{config::Config, counts::Counts};
use prost::Message;
use rcgen::PublicKeyData;
use std::path::Path;
use weft_fuzz::Corpus;
use weft_tls::{ManualClock, PeerIdentity};
use x509_parser::prelude::FromDer;

const NOW: u64 = 1_800_000_000;

struct Service {
    core: Core,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Service {
    /// One that believes whoever asks, so that nothing but the request itself is in question.
    fn new() -> Self {
        let dir = tempfile::TempDir::new().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let config = Config {
            state_dir: dir.path().join("state"),
            run_dir: None,
            ..Config::default()
        };
        let clock = ManualClock::at(NOW).shared();
        let core = runtime.block_on(async {
            let core = Core::open(&config, clock, Counts::default(), true)
                .await
                .expect("a service");
            core.advance().await.expect("keys");
            core
        });
        Self {
            core,
            runtime,
            _dir: dir,
        }
    }

    fn sign(&self, request: &SignCertificateRequest) -> Decision<Signed> {
        self.runtime
            .block_on(self.core.sign_certificate(&Caller::Anonymous, request))
    }

    fn holds(&self, sign: impl Fn(&SignCertificateRequest) -> Decision<Signed>, bytes: &[u8]) {
        let Ok(request) = SignCertificateRequest::decode(bytes) else {
            return;
        };
        let signed = match sign(&request) {
            Ok(signed) => signed,
            Err(refused) => {
                assert!(refused.is_decision(), "{refused} ({:?})", refused.reason());
                return;
            }
        };
        let leaf = PeerIdentity::from_leaf(&signed.issued.chain[0]).expect("an SVID");
        let wanted = format!("spiffe://cluster.local/ns/{}/{}", request.namespace, request.id);
        assert_eq!(leaf.id.as_str(), wanted);
        assert!(leaf.not_after <= NOW + 86_400 && leaf.node.is_none(), "{leaf:?}");
        assert!(
            request.id.len() <= MAX_APP_ID && !request.id.contains('.'),
            "{:?}",
            request.id
        );
        let proven =
            csr::public_key(&der(&request.certificate_signing_request).expect("PEM")).expect("a request");
        let (_, cert) =
            x509_parser::certificate::X509Certificate::from_der(&signed.issued.chain[0]).expect("DER");
        assert_eq!(cert.public_key().raw, proven.subject_public_key_info());
        assert!(!cert.is_ca(), "it signs others");
        let tokens = if request.jwt_audiences.is_empty() {
            0
        } else {
            signed.per_audience.len()
        };
        assert_eq!(
            (signed.per_audience.len(), signed.jwt.is_some()),
            (tokens, tokens > 0)
        );
    }
}

/// Requests with each certificate request of the other corpus, and some that are otherwise wrong.
fn corpus() -> Corpus {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let good = SignCertificateRequest::decode(
        &*std::fs::read(folder.join("sign-certificate/plain.bin")).expect("a request"),
    );
    let good = good.expect("a request");
    let requests = Corpus::read(&folder.join("csr"));
    let requests = requests.seeds().iter().map(|der| {
        let block = pem::Pem::new("CERTIFICATE REQUEST", der.clone());
        let request = SignCertificateRequest {
            certificate_signing_request: pem::encode(&block).into(),
            ..good.clone()
        };
        request.encode_to_vec()
    });
    Corpus::read(&folder.join("sign-certificate"))
        .and(requests)
        .words([
            "cart",
            "shop",
            "public",
            "cluster.local",
            "..",
            "/",
            "%2f",
            "-----BEGIN CERTIFICATE-----\n",
            "\x30\x01",
            " ",
        ])
}

#[test]
fn fuzz_sign_certificate() {
    let service = Service::new();
    weft_fuzz::target!(corpus(), |bytes: &[u8]| service.holds(|r| service.sign(r), bytes));
}

#[test]
fn the_target_notices_when_another_name_is_signed() {
    let service = Service::new();
    // Cuts what is too long, rather than refusing it.
    let cuts = |request: &SignCertificateRequest| {
        let request = SignCertificateRequest {
            id: request.id.chars().take(MAX_APP_ID).collect(),
            ..request.clone()
        };
        service.sign(&request)
    };
    assert!(weft_fuzz::finds!(20_000, corpus(), |bytes: &[u8]| service.holds(cuts, bytes)));
}
