//! Every reason there is, on the wire: what brings it about is refused with it, counted and in the
//! record, and the same with one thing changed is answered. A reason that is provoked nowhere does not
//! compile.

use crate::{
    attest::attest,
    attest_jwt::{rig_with, with},
    attest_kubernetes::{join_as_node, rig_of},
    cluster::{Cluster, Mood},
    hierarchy::Operators,
    issuer::{Key, claims},
    postgres::Postgres,
    rig::{NOW, Rig, config, pattern, td},
    workloads::{registered, sign, workload},
    world::{CART, World, csr},
};
use jsonwebtoken::Algorithm;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::{num::NonZeroU32, path::Path, time::Duration};
use tempfile::TempDir;
use tonic::{Code, Status};
use weft_identity::{CaConfig, Config, DOMAIN, Kind, LimitsConfig, Reason};
use weft_model::SvidForm;
use weft_proto::{
    dapr::sentry::v1::{SignCertificateRequest, ca_client::CaClient},
    weft::identity::v1::{
        AckBundleRequest, JoinRequest, RenewRequest, RevokeRequest, RotateRequest, RotateTarget,
        SignJwtRequest, SvidUse, WatchBundleRequest, admin_client::AdminClient, attest_request::Evidence,
        bootstrap_client::BootstrapClient, certificates_client::CertificatesClient,
        trust_client::TrustClient,
    },
};
use weft_rpc::{RPC_DOMAIN, StatusExt as _};
use weft_tls::{ManualClock, Revoked};

/// Where a reason is brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A service with its own file.
    File,
    /// One that asks Kubernetes.
    Cluster,
    /// One that takes the JWTs of an issuer.
    Issuer,
    /// One whose PostgreSQL the test changes under it.
    Server,
    /// One with other settings.
    Settings,
}

fn place(reason: Reason) -> Place {
    use Reason as R;
    match reason {
        R::FieldInvalid
        | R::CsrTooLarge
        | R::CsrMalformed
        | R::CsrKeyType
        | R::CsrNames
        | R::CsrAuthority
        | R::CsrSignature
        | R::CallerRevoked
        | R::IdentityRevoked
        | R::WorkloadUnknown
        | R::WorkloadElsewhere
        | R::HostingNotPermitted
        | R::NotNameable
        | R::RegistryContradicts
        | R::RegistryNotReady
        | R::JoinTokenUnknown
        | R::JoinTokenUsed
        | R::JoinTokenExpired
        | R::WorkloadsDoNotJoin
        | R::OtherTrustDomain
        | R::AttestationOff
        | R::RotationUnderWay
        | R::NotRevoked
        | R::StreamUnknown => Place::File,
        R::AttestorAway
        | R::TokenMalformed
        | R::TokenInvalid
        | R::TokenExpired
        | R::TokenAudience
        | R::TokenUnbound
        | R::PodGone
        | R::PodReplaced
        | R::PodElsewhere
        | R::OtherIdentity
        | R::PodNotOnNode => Place::Cluster,
        R::TokenNotYetValid | R::TokenAlgorithm | R::TokenKey | R::TokenSubject | R::TokenReplayed => {
            Place::Issuer
        }
        R::NotAMember
        | R::JwtKeyNotReady
        | R::AuthorityBusy
        | R::RevocationsFull
        | R::IssuerReplaced
        | R::DatabaseUnavailable
        | R::Internal => Place::Server,
        R::RateLimited | R::AuthoritySupplied => Place::Settings,
    }
}

fn all(of: Place) -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(move |r| place(*r) == of)
}

/// Refused for this reason, as programs, metrics and the record know it; its twin is not.
async fn shown(rig: &Rig, reason: Reason, outcome: Result<(), Status>, twin: Result<(), Status>) {
    let status = outcome.expect_err(reason.as_str());
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("{reason:?}: no ErrorInfo in {status}"));
    let domain = if reason == Reason::RateLimited {
        RPC_DOMAIN
    } else {
        DOMAIN
    };
    assert_eq!(
        (&*info.reason, &*info.domain),
        (reason.as_str(), domain),
        "{status}"
    );
    assert!(rig.refused(reason.as_str()) >= 1, "{reason:?} is not counted");
    // Of what failed the record knows more than the caller.
    let failed = matches!(
        reason,
        Reason::DatabaseUnavailable | Reason::Internal | Reason::IssuerReplaced
    );
    let told = async {
        loop {
            let audit = rig.try_audit().await.unwrap_or_default();
            let entry = audit.into_iter().find(|e| {
                let says = match reason {
                    _ if failed => e.reason.starts_with("nothing was given out"),
                    Reason::RateLimited => e.reason.contains("too often"),
                    _ => e.reason == status.message(),
                };
                e.outcome == "refuse" && says
            });
            if let Some(entry) = entry {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), told).await;
    let told = told.unwrap_or_else(|_| panic!("{reason:?} is not in the record: {status}"));
    assert!(!told.caller.is_empty() && told.serial.is_empty(), "{told:?}");
    twin.unwrap_or_else(|status| panic!("{reason:?}: its twin is refused: {status}"));
}

/// Tries until it is refused so; what a test changed in the database is noticed by and by.
async fn until(reason: Reason, attempt: impl AsyncFn() -> Result<(), Status>) -> Result<(), Status> {
    let tries = async {
        loop {
            match attempt().await {
                Err(status)
                    if status
                        .get_details_error_info()
                        .is_some_and(|i| i.reason == reason.as_str()) =>
                {
                    return Err(status);
                }
                Err(status) => panic!("{reason:?}: {status}"),
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tries)
        .await
        .unwrap_or_else(|_| panic!("{reason:?} does not come"))
}

/// Tries until it is answered.
async fn until_answered(attempt: impl AsyncFn() -> Result<(), Status>) -> Result<(), Status> {
    let tries = async {
        while attempt().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), tries)
        .await
        .map_err(|_| Status::deadline_exceeded("never answered"))
}

fn corpus(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/csr");
    std::fs::read(folder.join(format!("{name}.der"))).unwrap()
}

#[tokio::test]
async fn of_a_service_with_its_own_file() {
    let world = World::new().await;
    let cart = td().workload("shop", "cart").unwrap().to_string();
    // Before there is a registry.
    let early = world.ask(CART).await;
    world.register();
    shown(&world.rig, Reason::RegistryNotReady, early, world.ask(CART).await).await;
    for reason in all(Place::File).filter(|r| *r != Reason::RegistryNotReady) {
        let (outcome, twin) = in_file(&world, reason, &cart).await;
        shown(&world.rig, reason, outcome, twin).await;
    }
}

type Pair = (Result<(), Status>, Result<(), Status>);

async fn in_file(world: &World, reason: Reason, cart: &str) -> Pair {
    use Reason as R;
    let with_csr = async |csr_der: Vec<u8>| {
        let good = if reason == R::CsrKeyType { "p384" } else { "p256" };
        (
            world.show("SignWorkload", csr_der).await,
            world.show("SignWorkload", corpus(good)).await,
        )
    };
    let ask = async |id: &str| (world.ask(id).await, world.ask(CART).await);
    match reason {
        R::FieldInvalid => (
            world.sign(CART, csr(), SvidUse::Unspecified).await,
            world.sign(CART, csr(), SvidUse::Workload).await,
        ),
        R::CsrTooLarge => with_csr([csr(), vec![0; 4096]].concat()).await,
        R::CsrMalformed => with_csr([csr(), vec![0]].concat()).await,
        R::CsrKeyType => with_csr(corpus("p521")).await,
        R::CsrNames => with_csr(corpus("p256-uri")).await,
        R::CsrAuthority => with_csr(corpus("p256-ca")).await,
        R::CsrSignature => {
            let (mut forged, other) = (csr(), csr());
            let key = |der: &[u8]| der.windows(2).position(|w| w == [0x00, 0x04]).unwrap();
            let (at, from) = (key(&forged), key(&other));
            forged[at..at + 66].copy_from_slice(&other[from..from + 66]);
            with_csr(forged).await
        }
        R::WorkloadUnknown => ask("n1/shop/cart/2").await,
        R::WorkloadElsewhere => ask("n2/shop/pay/1").await,
        R::HostingNotPermitted => ask("n1/bank/vault/1").await,
        R::NotNameable => ask("nameless").await,
        R::RegistryContradicts => ask("lie").await,
        R::IdentityRevoked => {
            world.revoke(cart, "its key was copied").await.unwrap();
            let outcome = world.ask(CART).await;
            world.reinstate(cart).await.unwrap();
            (outcome, world.ask(CART).await)
        }
        R::NotRevoked => {
            let outcome = world.reinstate("spiffe://cluster.local/ns/shop/other").await;
            world.revoke(cart, "again").await.unwrap();
            (outcome, world.reinstate(cart).await)
        }
        R::CallerRevoked => caller_revoked(&world.rig).await,
        R::JoinTokenUnknown => {
            let forged = weft_enroll::JoinToken::new(world.rig.handle.root_sha256(), [7; 8], [7; 32]);
            let good = world.token("node", "n7", &[], 0).await.unwrap();
            (
                world.join(forged.reveal().as_ref(), csr()).await,
                world.join(&good, csr()).await,
            )
        }
        R::JoinTokenUsed => {
            let token = world.token("node", "n8", &[], 0).await.unwrap();
            let first = world.join(&token, csr()).await;
            (world.join(&token, csr()).await, first)
        }
        R::JoinTokenExpired => {
            let short = world.token("node", "n8", &[], 60).await.unwrap();
            let long = world.token("node", "n8", &[], 62).await.unwrap();
            world.rig.clock.advance(Duration::from_secs(61));
            (world.join(&short, csr()).await, world.join(&long, csr()).await)
        }
        R::WorkloadsDoNotJoin => {
            let workload = world.workload_cell().await;
            let token = world.token("node", "n6", &[], 60).await.unwrap();
            let request = JoinRequest {
                token: token.clone(),
                csr_der: csr(),
            };
            let mut client = BootstrapClient::new(world.rig.channel(Some(&workload)));
            let outcome = client.join(request).await.map(drop);
            (outcome, world.join(&token, csr()).await)
        }
        R::OtherTrustDomain => {
            let ask = async |trust_domain: &str| {
                let block = pem::Pem::new("CERTIFICATE REQUEST", csr());
                let request = SignCertificateRequest {
                    id: "cart".into(),
                    namespace: "shop".into(),
                    trust_domain: trust_domain.into(),
                    certificate_signing_request: pem::encode(&block).into(),
                    ..Default::default()
                };
                let mut client = CaClient::new(world.rig.channel(None));
                client.sign_certificate(request).await.map(drop)
            };
            (ask("other.mesh").await, ask("cluster.local").await)
        }
        R::AttestationOff => {
            let rig = &world.rig;
            let off = attest(rig, None, Some(Evidence::Jwt("a.b.c".into())), cart).await;
            (off.map(drop), attest(rig, None, None, cart).await.map(drop))
        }
        R::RotationUnderWay => {
            let mut client = AdminClient::new(world.rig.local());
            let rotate = |target: RotateTarget| RotateRequest {
                target: target.into(),
            };
            let twin = client.rotate(rotate(RotateTarget::Issuer)).await.map(drop);
            // Somebody who watches and never says that it has the new root.
            let mut trust = TrustClient::new(world.rig.channel(Some(&world.policy.svid)));
            let held = trust.watch_bundle(WatchBundleRequest { held_version: 1 }).await;
            client.rotate(rotate(RotateTarget::Root)).await.unwrap();
            let outcome = client.rotate(rotate(RotateTarget::Issuer)).await.map(drop);
            drop(held);
            (outcome, twin)
        }
        R::StreamUnknown => {
            let mut trust = TrustClient::new(world.rig.channel(Some(&world.policy.svid)));
            let request = WatchBundleRequest { held_version: 0 };
            let mut stream = trust.watch_bundle(request).await.unwrap().into_inner();
            let watch_id = stream.message().await.unwrap().unwrap().watch_id;
            let ack = |watch_id| AckBundleRequest { watch_id, version: 1 };
            (
                trust.ack_bundle(ack(watch_id ^ 1)).await.map(drop),
                trust.ack_bundle(ack(watch_id)).await.map(drop),
            )
        }
        other => panic!("{other:?} is not brought about here"),
    }
}

/// What a handshake let through because its verifier did not know yet, the decision refuses.
async fn caller_revoked(rig: &Rig) -> Pair {
    let (member, _drain) = rig.join(Kind::Service, "placement", &[]).await;
    let renew = async || {
        let mut client = CertificatesClient::new(rig.channel(Some(&member.svid)));
        client.renew(RenewRequest { csr_der: csr() }).await.map(drop)
    };
    let twin = renew().await;
    let request = RevokeRequest {
        target: member.id.to_string(),
        reason: "its key was copied".into(),
    };
    AdminClient::new(rig.local()).revoke(request).await.unwrap();
    // The verifier of the service knows at once; here it forgets.
    let (_, trust) = rig.handle.credentials();
    let told = async {
        while trust.revoked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), told).await.unwrap();
    trust.set_revoked(Revoked::new());
    (renew().await, twin)
}

#[tokio::test]
async fn of_a_service_that_asks_kubernetes() {
    let cluster = Cluster::start().await;
    cluster.pod("shop", "cart-1", "runner", "n1", Some("cart"));
    cluster.pod("shop", "pay-1", "runner", "n2", Some("pay"));
    cluster.pod("weft-system", "agent-1", "weft-agent", "n1", None);
    let rig = rig_of(&cluster, SvidForm::AppId).await;
    let (node, _drain) = join_as_node(&cluster, &rig, "agent-1", "n1").await;
    registered(
        &rig,
        vec![workload("n1", "shop", "cart"), workload("n1", "shop", "pay")],
    );
    let show = async |token: &str, id: &str| {
        let evidence = Some(Evidence::KubernetesToken(token.to_owned()));
        attest(&rig, None, evidence, id).await.map(drop)
    };
    let good = cluster.token("shop", "cart-1", "runner");
    for reason in all(Place::Cluster) {
        use Reason as R;
        let twin = show(&good, "").await;
        let pod = |name: &str, uid: &str| Some((name.to_owned(), uid.to_owned()));
        let outcome = match reason {
            R::AttestorAway => {
                cluster.feel(Mood::Status(503));
                let outcome = show(&good, "").await;
                cluster.feel(Mood::Fine);
                outcome
            }
            R::TokenMalformed => show("", "").await,
            R::TokenInvalid => show("made.up.token", "").await,
            R::OtherIdentity => show(&good, "spiffe://cluster.local/ns/shop/pay").await,
            R::PodElsewhere => {
                let there = cluster.token("shop", "pay-1", "runner");
                let evidence = Some(Evidence::KubernetesToken(there));
                attest(&rig, Some(&node.svid), evidence, "").await.map(drop)
            }
            R::PodNotOnNode => sign(&rig, &node.svid, "n1/shop/pay/1", SvidUse::Workload)
                .await
                .map(drop),
            R::TokenExpired | R::TokenAudience | R::TokenUnbound | R::PodGone | R::PodReplaced => {
                let token = cluster.token_with("shop", "cart-1", "runner", |t| match reason {
                    R::TokenExpired => t.expired = true,
                    R::TokenAudience => t.audiences = vec!["elsewhere".into()],
                    R::TokenUnbound => t.pod = None,
                    R::PodGone => t.pod = pod("cart-2", "uid-cart-2"),
                    _ => t.pod = pod("cart-1", "uid-older"),
                });
                show(&token, "").await
            }
            other => panic!("{other:?} is not brought about here"),
        };
        let twin = match reason {
            R::PodNotOnNode => sign(&rig, &node.svid, CART, SvidUse::Workload).await.map(drop),
            _ => twin,
        };
        shown(&rig, reason, outcome, twin).await;
    }
}

#[tokio::test]
async fn of_a_service_that_takes_an_issuers_tokens() {
    let (key, stranger) = (Key::new("k1", Algorithm::ES256), Key::new("k2", Algorithm::ES256));
    let rig = rig_with(&[&key], |jwt| jwt["algorithms"] = json!(["ES256"])).await;
    let cart = "spiffe://cluster.local/ns/shop/cart";
    let show = async |token: &str, id: &str| {
        let evidence = Some(Evidence::Jwt(token.to_owned()));
        attest(&rig, None, evidence, id).await.map(drop)
    };
    for reason in all(Place::Issuer) {
        use Reason as R;
        let good = key.sign(&claims(cart));
        let outcome = match reason {
            R::TokenNotYetValid => show(&key.sign(&with(json!({"nbf": NOW + 60}))), cart).await,
            R::TokenAlgorithm => show(&Key::new("k1", Algorithm::EdDSA).sign(&claims(cart)), cart).await,
            R::TokenKey => show(&stranger.sign(&claims(cart)), cart).await,
            R::TokenSubject => show(&good, "spiffe://cluster.local/ns/shop/pay").await,
            R::TokenReplayed => {
                let once = key.sign(&with(json!({"jti": "one"})));
                show(&once, cart).await.unwrap();
                show(&once, cart).await
            }
            other => panic!("{other:?} is not brought about here"),
        };
        let twin = show(&good, cart).await;
        shown(&rig, reason, outcome, twin).await;
    }
}

/// The database as somebody else would change it.
struct Hand(PgConnection);

impl Hand {
    async fn does(&mut self, sql: &str) {
        self.0
            .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// With everybody told that something changed.
    async fn changes(&mut self, sql: &str) {
        self.does(&format!("{sql}; UPDATE trust SET generation = generation + 1"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_service_whose_database_is_changed_under_it() {
    let mut postgres = Postgres::start();
    let dir = TempDir::new().unwrap();
    let settings = Config {
        database_url: Some(postgres.url()),
        ..config(&dir)
    };
    std::fs::create_dir_all(&settings.state_dir).unwrap();
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
    registered(&rig, vec![workload("n1", "shop", "cart")]);
    let mut hand = Hand(PgConnection::connect(&postgres.url()).await.unwrap());
    let revoke = async || {
        let request = RevokeRequest {
            target: "spiffe://cluster.local/ns/shop/gone".into(),
            reason: "test".into(),
        };
        AdminClient::new(rig.local()).revoke(request).await.map(drop)
    };
    let join = async |token: &weft_enroll::JoinToken| {
        let request = JoinRequest {
            token: token.reveal().to_string(),
            csr_der: csr(),
        };
        let mut client = BootstrapClient::new(rig.channel(None));
        client.join(request).await.map(drop)
    };
    let ask = async || sign(&rig, &n1.svid, CART, SvidUse::Workload).await.map(drop);
    for reason in all(Place::Server).filter(|r| *r != Reason::DatabaseUnavailable) {
        use Reason as R;
        let (outcome, twin) = match reason {
            R::NotAMember => {
                let (n2, _drain) = rig.join(Kind::Node, "n2", &[]).await;
                let renew = async || {
                    let mut client = CertificatesClient::new(rig.channel(Some(&n2.svid)));
                    client.renew(RenewRequest { csr_der: csr() }).await.map(drop)
                };
                hand.does("CREATE TABLE kept AS SELECT * FROM members WHERE name = 'n2'")
                    .await;
                hand.does("DELETE FROM members WHERE name = 'n2'").await;
                let outcome = until(reason, renew).await;
                hand.does("INSERT INTO members SELECT * FROM kept").await;
                (outcome, renew().await)
            }
            R::JwtKeyNotReady => {
                let token = async || {
                    let request = SignJwtRequest {
                        workload_id: CART.into(),
                        audience: vec!["bank".into()],
                    };
                    let mut client = CertificatesClient::new(rig.channel(Some(&n1.svid)));
                    client.sign_jwt(request).await.map(drop)
                };
                // As in a database of an older version, while another replica is the one that rotates.
                let until_then = NOW + 1_000_000;
                hand.changes(&format!(
                    "DELETE FROM authorities WHERE kind = 'jwt'; UPDATE trust SET lease_holder = 'another', \
                     lease_until = {until_then}"
                ))
                .await;
                let outcome = until(reason, token).await;
                hand.does("UPDATE trust SET lease_until = 0").await;
                (outcome, until_answered(token).await)
            }
            R::AuthorityBusy => {
                hand.does(
                    "CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.generation > \
                     OLD.generation THEN RETURN NULL; END IF; RETURN NEW; END $$; CREATE TRIGGER busy BEFORE \
                     UPDATE ON trust FOR EACH ROW EXECUTE FUNCTION busy()",
                )
                .await;
                let outcome = revoke().await;
                hand.does("DROP TRIGGER busy ON trust").await;
                (outcome, revoke().await)
            }
            R::RevocationsFull => {
                hand.changes(&format!(
                    "INSERT INTO revocations SELECT 'serial', lpad(to_hex(i), 8, '0'), 0, 'r', {NOW}, {NOW} + 9999 \
                     FROM generate_series(1, 10000) i"
                ))
                .await;
                let outcome = until(reason, revoke).await;
                hand.changes("DELETE FROM revocations WHERE kind = 'serial'")
                    .await;
                (outcome, until_answered(revoke).await)
            }
            R::IssuerReplaced => {
                let token = rig.token(Kind::Node, "n3", &[]).await;
                hand.does("CREATE TABLE issuers AS SELECT * FROM authorities WHERE kind = 'issuer'")
                    .await;
                hand.does("DELETE FROM authorities WHERE kind = 'issuer'").await;
                let outcome = join(&token).await;
                hand.does("INSERT INTO authorities SELECT * FROM issuers").await;
                // It was not used up.
                (outcome, join(&token).await)
            }
            R::Internal => {
                let token = rig.token(Kind::Node, "n4", &[]).await;
                hand.does(
                    "ALTER TABLE join_tokens DROP CONSTRAINT join_tokens_kind_check; UPDATE join_tokens SET kind = \
                     'x' WHERE name = 'n4'",
                )
                .await;
                let outcome = join(&token).await;
                hand.does("UPDATE join_tokens SET kind = 'node' WHERE name = 'n4'")
                    .await;
                (outcome, join(&token).await)
            }
            other => panic!("{other:?} is not brought about here"),
        };
        shown(&rig, reason, outcome, twin).await;
    }
    // Last: what was open is broken afterwards.
    drop(hand);
    postgres.kill();
    let outcome = ask().await;
    postgres.up();
    let twin = until_answered(ask).await;
    shown(&rig, Reason::DatabaseUnavailable, outcome, twin).await;
}

#[tokio::test]
async fn of_services_with_other_settings() {
    for reason in all(Place::Settings) {
        let dir = TempDir::new().unwrap();
        match reason {
            Reason::RateLimited => {
                let limits = LimitsConfig {
                    stranger_burst: NonZeroU32::MIN,
                    stranger_per_second: NonZeroU32::MIN,
                    ..LimitsConfig::default()
                };
                let settings = Config {
                    limits,
                    ..config(&dir)
                };
                let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
                let tokens = [
                    rig.token(Kind::Node, "n1", &[]).await,
                    rig.token(Kind::Node, "n2", &[]).await,
                ];
                let join = async |token: &weft_enroll::JoinToken| {
                    let request = JoinRequest {
                        token: token.reveal().to_string(),
                        csr_der: csr(),
                    };
                    let mut client = BootstrapClient::new(rig.channel(None));
                    client.join(request).await.map(drop)
                };
                join(&tokens[0]).await.unwrap();
                let outcome = join(&tokens[1]).await;
                rig.clock.advance(Duration::from_secs(1));
                shown(&rig, reason, outcome, join(&tokens[1]).await).await;
            }
            Reason::AuthoritySupplied => {
                let place = dir.path().join("bundle");
                Operators::new("theirs").write_issuer(&place, "their issuer");
                let ca = CaConfig {
                    supplied: Some(place),
                    ..CaConfig::default()
                };
                let supplied = Config { ca, ..config(&dir) };
                let supplied = Rig::configured(supplied, dir, ManualClock::at(NOW)).await;
                let own = Rig::new().await;
                let rotate = async |rig: &Rig| {
                    let target = RotateTarget::Root.into();
                    let mut client = AdminClient::new(rig.local());
                    client.rotate(RotateRequest { target }).await.map(drop)
                };
                let outcome = rotate(&supplied).await;
                assert_eq!(outcome.as_ref().unwrap_err().code(), Code::FailedPrecondition);
                shown(&supplied, reason, outcome, rotate(&own).await).await;
            }
            other => panic!("{other:?} is not brought about here"),
        }
    }
}
