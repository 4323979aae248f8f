//! Flows that tests begin with.

use crate::{Direction, Flow, Kind, MethodText, Party, Proof, Via};
use std::{sync::Arc, time::Duration};
use weft_model::NumericIdentity;

pub(crate) fn party(app_id: &str, identity: u32) -> Arc<Party> {
    Arc::new(Party {
        namespace: "default".into(),
        workload: format!("{app_id}-1").into(),
        app_id: app_id.into(),
        identity: NumericIdentity(identity),
        spiffe_id: format!("spiffe://cluster.local/ns/default/{app_id}").into(),
        address: Some([10, 0, 0, 1].into()),
        node: "n1".into(),
    })
}

pub(crate) fn flow_of(from: &str, to: &str) -> Flow {
    Flow {
        time: std::time::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
        method: MethodText::new("POST"),
        path: "/checkout".into(),
        status: 200,
        latency: Duration::from_micros(1234),
        via: Some(Via::SameNode),
        caller_proof: Some(Proof::PodListener),
        ..Flow::new(
            Kind::Invoke,
            Direction::Egress,
            party(from, 300),
            party(to, 301),
            50002,
        )
    }
}
