//! Clocks that are off by ten minutes, on either side, each with the twin that is too far off.

use crate::{
    rig::{NOW, Rig, config, pattern, td},
    workloads::{registered, sign, workload},
};
use std::time::Duration;
use tempfile::TempDir;
use tonic::Code;
use weft_enroll::{EnrollError, TokenSource};
use weft_identity::{CaConfig, Config, Kind};
use weft_proto::weft::identity::v1::{AckBundleRequest, SvidUse, trust_client::TrustClient};
use weft_tls::{Expect, ManualClock, PeerIdentity, Trust};

const TEN_MINUTES: u64 = 600;
const DAY: u64 = 86_400;
/// How far a certificate begins before it is made.
const BACKDATED: u64 = 900;

/// A service that runs by `NOW`, asked by a newcomer whose clock says something else.
async fn join_at(clock: u64) -> Result<(), EnrollError> {
    let rig = Rig::new().await;
    let token = rig.token(Kind::Node, "n1", &[]).await;
    let (_trigger, drain) = weft_drain::channel();
    rig.enrollment(td().node("n1").unwrap(), "n1")
        .clock(ManualClock::at(clock).shared())
        .token(TokenSource::Given(token))
        .enroll(drain)
        .await
        .map(|_| ())
}

#[tokio::test]
async fn a_newcomer_joins_with_a_clock_that_is_ten_minutes_off() {
    for clock in [NOW - TEN_MINUTES, NOW + TEN_MINUTES] {
        join_at(clock).await.unwrap();
    }
    for clock in [NOW - BACKDATED - 1, NOW + DAY + 1] {
        let error = join_at(clock).await.unwrap_err();
        assert!(matches!(error, EnrollError::WrongServer { .. }), "{error}");
        let told = error.to_string();
        assert!(
            told.contains("not valid yet") || told.contains("expired"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn members_verify_each_other_with_clocks_that_are_ten_minutes_off() {
    let rig = Rig::new().await;
    let (n1, _drain) = rig.join(Kind::Node, "n1", &[]).await;
    let (_, ours) = rig.handle.credentials();
    let call = async |clock: u64| {
        let trust = Trust::new(td(), ManualClock::at(clock).shared());
        trust.set(ours.bundle()).unwrap();
        let expect = Expect::Id(td().service("identity").unwrap());
        let channel = weft_rpc::channel(&rig.address(), Some(&n1.svid), &trust, expect).unwrap();
        let asked = TrustClient::new(channel)
            .ack_bundle(AckBundleRequest::default())
            .await;
        // It was understood, and says that there is no such stream.
        asked.unwrap_err().code() == Code::NotFound
    };
    for clock in [NOW - TEN_MINUTES, NOW + TEN_MINUTES] {
        assert!(call(clock).await, "{clock}");
    }
    for clock in [NOW - BACKDATED - 1, NOW + DAY + 1] {
        assert!(!call(clock).await, "{clock}");
    }
}

#[tokio::test]
async fn a_workloads_certificate_is_backdated_within_bounds() {
    for (lifetime, backdated) in [(DAY, BACKDATED), (7200, 720), (600, 60), (60, 6)] {
        let dir = TempDir::new().unwrap();
        let settings = Config {
            ca: CaConfig {
                workload_ttl_seconds: lifetime,
                ..CaConfig::default()
            },
            ..config(&dir)
        };
        let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
        let (n1, _drain) = rig.join(Kind::Node, "n1", &[pattern("shop", "*")]).await;
        registered(&rig, vec![workload("n1", "shop", "cart")]);
        let given = sign(&rig, &n1.svid, "n1/shop/cart/1", SvidUse::Workload)
            .await
            .unwrap();
        let leaf = PeerIdentity::from_leaf(&given.chain_der[0].clone().into()).unwrap();
        assert_eq!(
            (leaf.not_before, leaf.not_after),
            (NOW - backdated, NOW + lifetime),
            "of {lifetime} s"
        );
    }
}

#[tokio::test]
async fn a_join_token_is_judged_by_the_services_clock_alone() {
    let rig = Rig::new().await;
    let join = async |clock: u64, name: &str| {
        let token = rig.token(Kind::Node, name, &[]).await;
        rig.clock.advance(Duration::from_secs(599));
        let (_trigger, drain) = weft_drain::channel();
        let enrollment = rig.enrollment(td().node(name).unwrap(), name);
        let clock = ManualClock::at(clock).shared();
        let joined = enrollment
            .clock(clock)
            .token(TokenSource::Given(token))
            .enroll(drain);
        joined.await.map(|_| ())
    };
    // By the newcomer's clock it was not made yet, or is over.
    join(NOW, "n1").await.unwrap();
    join(NOW + 3 * TEN_MINUTES, "n2").await.unwrap();
}
