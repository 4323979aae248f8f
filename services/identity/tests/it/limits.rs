//! How much one caller may ask, with time that is moved.

use crate::rig::{NOW, Rig, config};
use std::{num::NonZeroU32, time::Duration};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
use weft_identity::{Config, Kind, LimitsConfig};
use weft_proto::weft::identity::v1::{
    AckBundleRequest, JoinRequest, bootstrap_client::BootstrapClient, trust_client::TrustClient,
};
use weft_rpc::StatusExt as _;
use weft_tls::ManualClock;

fn calls(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// A call that is answered, if only with "no such stream".
async fn ack(channel: &Channel) -> Result<(), Status> {
    let answer = TrustClient::new(channel.clone())
        .ack_bundle(AckBundleRequest::default())
        .await;
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// How many of so many calls are answered; the rest are refused as they should be.
async fn answered(calls: usize, call: impl AsyncFn() -> Result<(), Status>) -> usize {
    let mut answered = 0;
    for _ in 0..calls {
        match call().await {
            Ok(()) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let details = status.get_error_details();
                assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
                assert_eq!(
                    details.retry_info().unwrap().retry_delay,
                    Some(Duration::from_secs(1))
                );
                assert!(details.quota_failure().is_some());
            }
        }
    }
    answered
}

#[tokio::test]
async fn one_caller_can_not_take_what_is_anothers() {
    let dir = TempDir::new().unwrap();
    let limits = LimitsConfig {
        member_burst: calls(40),
        member_per_second: calls(5),
        stranger_burst: calls(10),
        stranger_per_second: calls(2),
    };
    let settings = Config {
        limits,
        ..config(&dir)
    };
    let rig = Rig::configured(settings, dir, ManualClock::at(NOW)).await;
    let (n1, d1) = rig.join(Kind::Node, "n1", &[]).await;
    let (n2, d2) = rig.join(Kind::Node, "n2", &[]).await;
    // They would ask for their bundles meanwhile.
    d1.drain(Duration::from_secs(5)).await;
    d2.drain(Duration::from_secs(5)).await;
    // Joining took strangers' calls, following the bundle members'.
    rig.clock.advance(Duration::from_secs(60));
    let (one, two) = (rig.channel(Some(&n1.svid)), rig.channel(Some(&n2.svid)));
    assert_eq!(answered(50, async || ack(&one).await).await, 40);
    // Another's are its own, and so are those of somebody without a certificate.
    assert_eq!(answered(50, async || ack(&two).await).await, 40);
    let join = async || {
        let request = JoinRequest::default();
        let outcome = BootstrapClient::new(rig.channel(None)).join(request).await;
        match outcome {
            Err(status) if status.code() == Code::InvalidArgument => Ok(()),
            other => other.map(drop),
        }
    };
    assert_eq!(answered(15, join).await, 10);
    // After the time that it was told to wait.
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(answered(20, async || ack(&one).await).await, 5);
    assert_eq!(answered(5, join).await, 2);

    let told = async {
        loop {
            let audit = rig.audit().await;
            let mut limited: Vec<_> = audit.iter().filter(|e| e.action == "rate-limit").collect();
            if limited.len() >= 3 {
                limited.sort_by(|a, b| a.caller.cmp(&b.caller));
                return limited.into_iter().cloned().collect::<Vec<_>>();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limited = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    let callers: Vec<_> = limited.iter().map(|e| e.caller.as_str()).collect();
    let node = "spiffe://cluster.local/weft/node/n1";
    assert_eq!(callers.len(), 3, "once each: {callers:?}");
    assert!(
        callers.contains(&node) && callers.contains(&"anonymous at 127.0.0.1"),
        "{callers:?}"
    );
    assert!(
        limited
            .iter()
            .all(|e| e.outcome == "refuse" && e.reason.contains("too often"))
    );
}

#[test]
fn the_start_of_a_large_node_fits_into_a_burst() {
    // A tunnel's certificate and its own for each of 10,000 workloads.
    assert!(LimitsConfig::default().member_burst.get() >= 2 * 10_000);
}
