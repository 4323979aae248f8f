//! Which flows an `Observe` call wants.

use crate::{Flow, Party, Verdict};
use weft_proto::weft::dataplane::v1 as pb;

/// Any of several conditions; without one, everything passes.
#[derive(Debug, Clone, Default)]
pub struct Filter(Vec<pb::FlowFilter>);

impl Filter {
    /// As requested. Unknown verdict numbers match nothing.
    pub fn from_proto(filters: &[pb::FlowFilter]) -> Self {
        Self(filters.to_vec())
    }

    /// Whether `flow` passes.
    pub fn matches(&self, flow: &Flow) -> bool {
        self.0.is_empty() || self.0.iter().any(|f| passes(f, flow))
    }
}

fn passes(filter: &pb::FlowFilter, flow: &Flow) -> bool {
    let unset_or = |text: &str, holds: &dyn Fn(&str) -> bool| text.is_empty() || holds(text);
    let either = |holds: &dyn Fn(&Party) -> bool| holds(&flow.source) || holds(&flow.destination);
    unset_or(&filter.namespace, &|n| either(&|p| &*p.namespace == n))
        && unset_or(&filter.workload, &|n| either(&|p| named(p, n)))
        && unset_or(&filter.from, &|n| named(&flow.source, n))
        && unset_or(&filter.to, &|n| named(&flow.destination, n))
        && (filter.verdict == 0 || filter.verdict == wire_verdict(flow.verdict) as i32)
}

/// `name`, or `namespace/name`, where the name is the app-id's or the workload's.
fn named(party: &Party, wanted: &str) -> bool {
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    namespace.is_none_or(|n| &*party.namespace == n) && (&*party.app_id == name || &*party.workload == name)
}

pub(crate) fn wire_verdict(verdict: Verdict) -> pb::Verdict {
    match verdict {
        Verdict::Forwarded => pb::Verdict::Forwarded,
        Verdict::Dropped => pb::Verdict::Dropped,
        Verdict::Error => pb::Verdict::Error,
        Verdict::Audit => pb::Verdict::Audit,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Direction, Kind, MethodText, Proof, Via};
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

    #[test]
    fn all_fields_of_one_filter_and_any_of_several() {
        let flow = flow_of("shop", "cart");
        let ok = |f: pb::FlowFilter| Filter::from_proto(&[f]).matches(&flow);
        assert!(Filter::default().matches(&flow));
        assert!(ok(pb::FlowFilter {
            from: "shop".into(),
            to: "default/cart-1".into(),
            ..Default::default()
        }));
        assert!(!ok(pb::FlowFilter {
            from: "cart".into(),
            ..Default::default()
        }));
        assert!(!ok(pb::FlowFilter {
            to: "other/cart".into(),
            ..Default::default()
        }));
        assert!(ok(pb::FlowFilter {
            workload: "cart".into(),
            namespace: "default".into(),
            ..Default::default()
        }));
        assert!(!ok(pb::FlowFilter {
            workload: "cart".into(),
            namespace: "prod".into(),
            ..Default::default()
        }));
        assert!(!ok(pb::FlowFilter {
            verdict: pb::Verdict::Dropped as i32,
            ..Default::default()
        }));
        assert!(!ok(pb::FlowFilter {
            verdict: 99,
            ..Default::default()
        }));
        let dropped = pb::FlowFilter {
            verdict: pb::Verdict::Dropped as i32,
            ..Default::default()
        };
        let forwarded = pb::FlowFilter {
            verdict: pb::Verdict::Forwarded as i32,
            ..Default::default()
        };
        assert!(Filter::from_proto(&[dropped, forwarded]).matches(&flow));
    }
}
