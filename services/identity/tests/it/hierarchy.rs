//! The authority by choice: kinds of keys, the operator's own, keys from elsewhere, old databases.

use crate::rig::{NOW, Rig, config, td};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use tempfile::TempDir;
use weft_identity::{CaConfig, Config, Env, KeyType, Kind, StartError};
use weft_proto::weft::identity::v1::{
    GetAuthorityRequest, GetAuthorityResponse, RotateRequest, RotateTarget, admin_client::AdminClient,
};
use weft_tls::ManualClock;

async fn start_error(config: Config, clock: &ManualClock) -> StartError {
    let (_trigger, drain) = weft_drain::channel();
    let error = weft_identity::start_with(config, Env::new(drain).clock(clock.shared()))
        .await
        .unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

fn with(dir: &TempDir, ca: CaConfig) -> Config {
    Config { ca, ..config(dir) }
}

async fn shown(rig: &Rig) -> GetAuthorityResponse {
    AdminClient::new(rig.local())
        .get_authority(GetAuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn keys_are_of_the_chosen_kind_and_a_change_comes_with_the_next() {
    let dir = TempDir::new().unwrap();
    let ed25519 = CaConfig {
        key_type: KeyType::Ed25519,
        ..CaConfig::default()
    };
    let rig = Rig::configured(with(&dir, ed25519), dir, ManualClock::at(NOW)).await;
    rig.join(Kind::Service, "policy", &[]).await;
    let authority = shown(&rig).await;
    assert_eq!(
        (authority.roots[0].key.as_str(), authority.issuers[0].key.as_str()),
        ("Ed25519", "Ed25519")
    );
    assert_eq!(authority.phase, "none");
    let (dir, clock) = rig.stop().await;
    let rig = Rig::with(dir, clock).await;
    rig.join(Kind::Service, "placement", &[]).await;
    let rotate = RotateRequest {
        target: RotateTarget::Issuer.into(),
    };
    AdminClient::new(rig.local()).rotate(rotate).await.unwrap();
    let authority = shown(&rig).await;
    let kinds: Vec<_> = authority
        .issuers
        .iter()
        .map(|i| (i.key.as_str(), i.state.as_str()))
        .collect();
    assert_eq!(kinds, [("Ed25519", "retired"), ("ECDSA P-256", "active")]);
    assert!(!authority.issuers[0].has_key && authority.issuers[1].has_key);
    rig.join(Kind::Service, "other", &[]).await;
}

/// A root with an issuer as an operator makes them, by another tool's conventions.
pub struct Operators {
    root: rcgen::Certificate,
    root_key: rcgen::KeyPair,
}

impl Operators {
    pub fn new(name: &str) -> Self {
        let root_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let params = authority(name);
        Self {
            root: params.self_signed(&root_key).unwrap(),
            root_key,
        }
    }

    pub fn write_issuer(&self, folder: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(self.root.der(), &self.root_key).unwrap();
        let cert = authority(name).signed_by(&key, &issuer).unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("ca.crt"), self.root.pem()).unwrap();
        fs::write(folder.join("issuer.key"), key.serialize_pem()).unwrap();
        fs::write(folder.join("issuer.crt"), cert.pem()).unwrap();
    }
}

fn authority(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let at =
        |seconds: u64| time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap();
    params.not_before = at(NOW - 3600);
    params.not_after = at(NOW + 100 * 24 * 3600);
    params
}

#[tokio::test]
async fn the_operators_authority_is_used_and_replaced_without_a_restart() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("bundle");
    let first = Operators::new("first");
    first.write_issuer(&place, "first issuer");
    let ca = CaConfig {
        supplied: Some(place.clone()),
        ..CaConfig::default()
    };
    let rig = Rig::configured(with(&dir, ca), dir, ManualClock::at(NOW)).await;
    assert_eq!(rig.handle.root_sha256(), weft_tls::root_sha256(first.root.der()));
    let (member, _drain) = rig.join(Kind::Node, "n1", &[]).await;
    let authority = shown(&rig).await;
    assert_eq!(
        (authority.roots[0].has_key, authority.roots[0].key.as_str()),
        (false, "ECDSA P-384")
    );
    // Neither can be made here.
    for (target, reason) in [
        (RotateTarget::Root, "supplied"),
        (RotateTarget::Issuer, "keeps the root's key"),
    ] {
        let request = RotateRequest {
            target: target.into(),
        };
        let status = AdminClient::new(rig.local()).rotate(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains(reason), "{status}");
    }

    // Another root in the same place: members learn it, then it signs.
    let second = Operators::new("second");
    second.write_issuer(&place, "second issuer");
    let signed_by_second = async {
        while rig.handle.root_sha256() != weft_tls::root_sha256(second.root.der()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), signed_by_second)
        .await
        .unwrap();
    let held: Vec<_> = member.trust.bundle().roots;
    assert_eq!(held, [first.root.der().clone(), second.root.der().clone()]);
    let (later, _drain) = rig.join(Kind::Node, "n2", &[]).await;
    assert_ne!(
        later.svid.get().unwrap().chain()[1],
        member.svid.get().unwrap().chain()[1]
    );

    // What does not fit is told and changes nothing.
    fs::write(place.join("issuer.crt"), "nonsense").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    rig.join(Kind::Node, "n3", &[]).await;
    let ca = CaConfig {
        supplied: Some(place),
        ..CaConfig::default()
    };
    let (dir, clock) = rig.stop().await;
    let error = start_error(with(&dir, ca), &clock).await;
    assert!(error.to_string().contains("issuer.crt"), "{error}");
}

#[tokio::test]
async fn the_key_may_come_from_a_command() {
    let dir = TempDir::new().unwrap();
    let kms = dir.path().join("kms");
    fs::write(&kms, format!("#!/bin/sh\necho weft-kek-v1:{}\n", "5a".repeat(32))).unwrap();
    fs::set_permissions(&kms, fs::Permissions::from_mode(0o700)).unwrap();
    let ca = |argument: &str| CaConfig {
        key_encryption_key_command: vec!["sh".into(), kms.to_str().unwrap().into(), argument.into()],
        ..CaConfig::default()
    };
    let rig = Rig::configured(with(&dir, ca("a")), dir, ManualClock::at(NOW)).await;
    let root = rig.handle.root_sha256();
    let (dir, clock) = rig.stop().await;
    assert!(!dir.path().join("state/key-encryption-key").exists());
    let rig = Rig::configured(with(&dir, ca("b")), dir, clock).await;
    assert_eq!(rig.handle.root_sha256(), root);
    let (dir, clock) = rig.stop().await;
    fs::write(&kms, format!("#!/bin/sh\necho weft-kek-v1:{}\n", "5b".repeat(32))).unwrap();
    let error = start_error(with(&dir, ca("a")), &clock).await;
    assert!(error.to_string().contains("does not open the keys"), "{error}");
}

#[tokio::test]
async fn a_database_put_back_from_a_copy_is_refused() {
    let (dir, clock) = Rig::new().await.stop().await;
    let database = dir.path().join("state/identity.db");
    let copy = fs::read(&database).unwrap();
    clock.advance(Duration::from_secs(3600));
    let rig = Rig::with(dir, clock).await;
    rig.join(Kind::Service, "policy", &[]).await;
    let (dir, clock) = rig.stop().await;
    let newest = fs::read(&database).unwrap();
    fs::write(&database, &copy).unwrap();
    let error = start_error(config(&dir), &clock).await;
    assert!(
        matches!(error, StartError::OlderDatabase { seconds: 3600, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("by 3600 s"), "{error}");
    // The one that knows all of its certificates is taken.
    fs::write(&database, newest).unwrap();
    let rig = Rig::with(dir, clock).await;
    assert_eq!(rig.handle.trust_domain(), td());
}

#[tokio::test]
async fn a_damaged_own_certificate_is_told() {
    let (dir, clock) = Rig::new().await.stop().await;
    let path = dir.path().join("state/own-certificate.pem");
    fs::write(&path, "nonsense").unwrap();
    let error = start_error(config(&dir), &clock).await;
    assert!(matches!(error, StartError::OwnCertificate { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    Rig::with(dir, clock).await;
}
