//! The endpoints of one Service's port, and which of them takes a request.

use std::{net::SocketAddr, sync::Arc};
use weft_runtime::Endpoint;

/// What the apps behind a port are known to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaks {
    /// Nothing is said: a request goes on as it came, in HTTP/1.1 or HTTP/2.
    AsAsked,
    /// HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    Http2,
}

impl Speaks {
    /// As a Service's port says (`appProtocol`).
    pub fn of(app_protocol: &str) -> Self {
        match app_protocol {
            "kubernetes.io/h2c" | "h2c" | "grpc" => Self::Http2,
            _ => Self::AsAsked,
        }
    }
}

/// An endpoint, at an address of its own.
#[derive(Debug, Clone)]
pub struct Member {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// Where its app listens.
    pub address: SocketAddr,
}

/// All ready endpoints of a Service's port. Made anew when any of it changes.
#[derive(Debug)]
pub struct Backends {
    members: Box<[Member]>,
    speaks: Speaks,
}

impl Backends {
    /// Of these.
    pub fn new(members: Vec<Member>, speaks: Speaks) -> Arc<Self> {
        Arc::new(Self {
            members: members.into(),
            speaks,
        })
    }

    /// The endpoints.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// What they speak.
    pub fn speaks(&self) -> Speaks {
        self.speaks
    }

    /// Of two at random, the one with fewer requests under way; none of `tried`. `random` is uniform
    /// over all of u64.
    pub fn pick(&self, random: u64, tried: &[SocketAddr]) -> Option<&Member> {
        let n = self.members.len();
        let (low, high) = (random as u32 as usize, (random >> 32) as usize);
        if !tried.is_empty() {
            let from = low % n.max(1);
            let (before, after) = self.members.split_at(from);
            let mut rest = after.iter().chain(before);
            return rest.find(|member| !tried.contains(&member.address));
        }
        if n < 2 {
            return self.members.first();
        }
        let one = low % n;
        // Another than the first, each as likely.
        let other = (one + 1 + high % (n - 1)) % n;
        let (one, other) = (&self.members[one], &self.members[other]);
        let fewer = other.endpoint.in_flight() < one.endpoint.in_flight();
        Some(if fewer { other } else { one })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_flows::Party;
    use weft_model::NumericIdentity;
    use weft_runtime::Place;

    fn backends(n: usize) -> Arc<Backends> {
        let members = (0..n).map(|number| {
            let party = Party {
                namespace: "default".into(),
                workload: "w".into(),
                app_id: "".into(),
                identity: NumericIdentity(300),
                spiffe_id: "".into(),
                address: None,
                node: "n1".into(),
            };
            let place = Place::Local { app_port: 0 };
            Member {
                endpoint: Endpoint::new(format!("w{number}").into(), Arc::new(party), place),
                address: ([10, 0, 0, number as u8], 80).into(),
            }
        });
        Backends::new(members.collect(), Speaks::AsAsked)
    }

    #[test]
    fn each_is_picked_as_often_and_a_busy_one_less() {
        let three = backends(3);
        let mut counts = [0; 3];
        for low in 0..300_u64 {
            for high in 0..10_u64 {
                let member = three.pick(high << 32 | low, &[]).unwrap();
                counts[usize::from(member.address.to_string().as_bytes()[7] - b'0')] += 1;
            }
        }
        assert_eq!(counts, [1000; 3]);
        // The one with a request under way loses against each other.
        let _busy = three.members()[1].endpoint.begin();
        for random in 0..1000_u64 {
            let picked = three
                .pick(random.wrapping_mul(0x9e37_79b9_7f4a_7c15), &[])
                .unwrap();
            assert_ne!(picked.address, three.members()[1].address);
        }
        // Alone, it still serves.
        let one = backends(1);
        let _busy = one.members()[0].endpoint.begin();
        assert!(one.pick(7, &[]).is_some());
        assert!(backends(0).pick(7, &[]).is_none());
    }

    proptest! {
        #[test]
        fn none_is_tried_twice(n in 0..6usize, random in any::<u64>()) {
            let all = backends(n);
            let mut tried = Vec::new();
            while let Some(member) = all.pick(random, &tried) {
                prop_assert!(!tried.contains(&member.address));
                tried.push(member.address);
            }
            prop_assert_eq!(tried.len(), n);
        }
    }
}
