//! Handshakes with certificates that look right and are not. Each differs in one thing from the
//! one that is taken.
#![allow(clippy::unwrap_used, missing_docs)]

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_model::TrustDomain;
use weft_tls::{
    Bundle, ClientAuth, Expect, ManualClock, Revoked, Svid, SvidCell, Trust, client_config,
    pinned_client_config, root_sha256, server_config,
};

const NOW: u64 = 1_800_000_000;

fn at(unix: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(unix as i64).unwrap()
}

fn params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris
        .iter()
        .map(|u| SanType::URI((*u).try_into().unwrap()))
        .collect();
    (params.not_before, params.not_after) = (at(NOW - 60), at(NOW + 3600));
    params
}

struct Ca {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(&[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    fn leaf(&self, params: &CertificateParams) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (
            vec![
                params.signed_by(&key, &self.issuer).unwrap().der().clone(),
                self.root.clone(),
            ],
            key,
        )
    }

    fn trust(&self) -> Trust {
        let trust = Trust::new(TrustDomain::default(), ManualClock::at(NOW).shared());
        let roots = vec![self.root.clone()];
        trust
            .set(Bundle {
                trust_domain: TrustDomain::default(),
                version: 1,
                roots,
                jwks: Vec::new(),
            })
            .unwrap();
        trust
    }
}

fn cell((chain, key): (Vec<CertificateDer<'static>>, KeyPair)) -> SvidCell {
    let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let cell = SvidCell::new();
    cell.set(Svid::new(chain, &key).unwrap());
    cell
}

const SERVER: &str = "spiffe://cluster.local/weft/service/policy";
const CLIENT: &str = "spiffe://cluster.local/weft/node/n1";

/// Whether both sides get through, told by a byte each way.
async fn meet(server: rustls::ServerConfig, client: rustls::ClientConfig) -> bool {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut io = TlsAcceptor::from(Arc::new(server)).accept(a).await?;
        io.write_u8(1).await?;
        io.flush().await
    };
    let call = async {
        let name = ServerName::try_from("weft.invalid").unwrap();
        TlsConnector::from(Arc::new(client))
            .connect(name, b)
            .await?
            .read_u8()
            .await
    };
    let (served, called) = tokio::join!(serve, call);
    served.is_ok() && called.is_ok()
}

async fn caller_gets_in(ca: &Ca, caller: SvidCell) -> bool {
    let own = Arc::new(cell(ca.leaf(&params(&[SERVER]))));
    let server = server_config(own, &ca.trust(), ClientAuth::Required, &[]).unwrap();
    let client = client_config(Some(&caller), &ca.trust(), Expect::Member, &[]).unwrap();
    meet(server, client).await
}

#[tokio::test]
async fn only_a_leaf_of_the_root_in_its_time_and_domain_gets_in() {
    let ca = Ca::new();
    let good = params(&[CLIENT]);
    assert!(caller_gets_in(&ca, cell(ca.leaf(&good))).await);

    let with = |f: fn(&mut CertificateParams)| {
        let mut forged = params(&[CLIENT]);
        f(&mut forged);
        forged
    };
    let forgeries = [
        ("expired", with(|p| p.not_after = at(NOW - 1))),
        ("of the future", with(|p| p.not_before = at(NOW + 60))),
        ("of another domain", params(&["spiffe://other/weft/node/n1"])),
        (
            "a CA certificate",
            with(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        (
            "for servers only",
            with(|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
        ),
    ];
    for (what, forged) in forgeries {
        assert!(
            !caller_gets_in(&ca, cell(ca.leaf(&forged))).await,
            "a certificate {what} got in"
        );
    }
    assert!(
        !caller_gets_in(&ca, cell(Ca::new().leaf(&good))).await,
        "another root's certificate got in"
    );

    // A member signs another name with its own key, and sends its own certificate along.
    let (chain, key) = ca.leaf(&params(&["spiffe://cluster.local/ns/default/cart"]));
    let member = Issuer::new(params(&["spiffe://cluster.local/ns/default/cart"]), key);
    let own = KeyPair::generate().unwrap();
    let forged = good.signed_by(&own, &member).unwrap().der().clone();
    let forged = [vec![forged], chain].concat();
    assert!(
        !caller_gets_in(&ca, cell((forged, own))).await,
        "a member acted as CA"
    );
}

#[test]
fn a_certificate_with_no_or_two_names_is_none() {
    let ca = Ca::new();
    for uris in [&[][..], &[CLIENT, SERVER]] {
        let (chain, key) = ca.leaf(&params(uris));
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        assert!(Svid::new(chain, &key).is_err(), "{uris:?}");
    }
    // Somebody else's key.
    let (chain, _) = ca.leaf(&params(&[CLIENT]));
    let key: PrivateKeyDer<'static> =
        PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der()).into();
    assert!(Svid::new(chain, &key).is_err());
}

#[tokio::test]
async fn without_a_certificate_only_where_it_is_optional() {
    let ca = Ca::new();
    for (auth, admitted) in [(ClientAuth::Optional, true), (ClientAuth::Required, false)] {
        let own = Arc::new(cell(ca.leaf(&params(&[SERVER]))));
        let server = server_config(own, &ca.trust(), auth, &[]).unwrap();
        let client = client_config(None, &ca.trust(), Expect::Member, &[]).unwrap();
        assert_eq!(meet(server, client).await, admitted, "{auth:?}");
    }
}

#[tokio::test]
async fn showing_the_pinned_root_is_not_having_its_key() {
    let (ca, evil) = (Ca::new(), Ca::new());
    let pin = root_sha256(&ca.root);
    let client = || {
        let clock = ManualClock::at(NOW).shared();
        pinned_client_config(pin, SERVER.parse().unwrap(), clock, &[]).unwrap()
    };
    let server = |chain_and_key, trust: Trust| {
        server_config(Arc::new(cell(chain_and_key)), &trust, ClientAuth::Optional, &[]).unwrap()
    };
    assert!(meet(server(ca.leaf(&params(&[SERVER])), ca.trust()), client()).await);
    // The right root in the chain, the leaf signed by another.
    let (mut chain, key) = evil.leaf(&params(&[SERVER]));
    chain.push(ca.root.clone());
    assert!(
        !meet(server((chain, key), evil.trust()), client()).await,
        "an impostor was taken"
    );
    // The right root's own certificate, of another name.
    assert!(
        !meet(server(ca.leaf(&params(&[CLIENT])), ca.trust()), client()).await,
        "a node was taken"
    );
}

#[tokio::test]
async fn what_is_revoked_gets_in_no_more_on_either_side() {
    let ca = Ca::new();
    let (server, client) = (
        cell(ca.leaf(&params(&[SERVER]))),
        cell(ca.leaf(&params(&[CLIENT]))),
    );
    // Each side has its own list.
    let meet_under = async |of_server: &Revoked, of_client: &Revoked| {
        let (server_trust, client_trust) = (ca.trust(), ca.trust());
        server_trust.set_revoked(of_server.clone());
        client_trust.set_revoked(of_client.clone());
        let own = Arc::new(server.clone());
        let serve = server_config(own, &server_trust, ClientAuth::Required, &[]).unwrap();
        let call = client_config(Some(&client), &client_trust, Expect::Member, &[]).unwrap();
        meet(serve, call).await
    };
    let none = Revoked::new();
    let mut by_serial = Revoked::new();
    by_serial.serial(&client.get().unwrap().identity().serial);
    let mut by_name = Revoked::new();
    by_name.identity(SERVER.parse().unwrap(), u64::MAX);
    assert!(meet_under(&none, &none).await);
    assert!(!meet_under(&by_serial, &none).await, "a revoked caller got in");
    assert!(!meet_under(&none, &by_name).await, "a revoked server was taken");
    // Each is about the other side.
    assert!(meet_under(&by_name, &by_serial).await);
}

#[test]
fn a_bundle_that_was_replaced_does_not_come_back() {
    let (old, new) = (Ca::new(), Ca::new());
    let trust = Trust::new(TrustDomain::default(), ManualClock::at(NOW).shared());
    let bundle = |version, ca: &Ca| Bundle {
        trust_domain: TrustDomain::default(),
        version,
        roots: vec![ca.root.clone()],
        jwks: Vec::new(),
    };
    trust.set(bundle(3, &old)).unwrap();
    trust.set(bundle(4, &new)).unwrap();
    let refused = trust.set(bundle(3, &old)).unwrap_err().to_string();
    assert!(refused.contains("version 3 is older"), "{refused}");
    assert_eq!(trust.bundle(), bundle(4, &new));
    // The present one again is nothing new, and no mistake.
    trust.set(bundle(4, &new)).unwrap();
}
