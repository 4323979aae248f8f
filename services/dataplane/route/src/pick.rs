//! Sharing requests among a rule's backends.

use crate::spec::{Backend, Rule};

/// Where one request goes.
#[derive(Debug)]
pub enum Pick<'a> {
    /// There.
    Backend(&'a Backend),
    /// To a backend that does not exist or may not be used: 500.
    Invalid,
    /// The rule has no backend that takes requests: 500.
    Nobody,
}

impl Rule {
    /// The backend for one request. `random` is uniform over all of u64.
    pub fn pick(&self, random: u64) -> Pick<'_> {
        let total: u64 = self.backends.iter().map(|b| u64::from(b.weight)).sum();
        if total == 0 {
            return Pick::Nobody;
        }
        // The bias of the remainder is below 2^-39 for the largest sum there can be (16 backends
        // of weight 1,000,000).
        let mut at = random % total;
        for backend in &self.backends {
            let weight = u64::from(backend.weight);
            if at < weight {
                return match backend.target {
                    Some(_) => Pick::Backend(backend),
                    None => Pick::Invalid,
                };
            }
            at -= weight;
        }
        Pick::Nobody
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::BackendRef;

    fn backend(name: &str, weight: u32) -> Backend {
        let target = (!name.is_empty()).then(|| BackendRef {
            namespace: "default".into(),
            name: name.into(),
            port: 80,
        });
        Backend {
            target,
            weight,
            filters: Default::default(),
        }
    }

    #[test]
    fn parts_are_as_the_weights_say() {
        let rule = Rule {
            backends: vec![
                backend("v1", 9),
                backend("none", 0),
                backend("v2", 1),
                backend("", 2),
            ],
            ..Default::default()
        };
        let mut found = [0; 3];
        for random in 0..1200 {
            match rule.pick(random) {
                Pick::Backend(b) => match b.target.as_ref().map(|t| &*t.name) {
                    Some("v1") => found[0] += 1,
                    Some("v2") => found[1] += 1,
                    other => panic!("{other:?} takes no requests"),
                },
                Pick::Invalid => found[2] += 1,
                Pick::Nobody => panic!("there are backends"),
            }
        }
        assert_eq!(found, [900, 100, 200]);
    }

    #[test]
    fn without_weight_nobody_is_left() {
        assert!(matches!(Rule::default().pick(7), Pick::Nobody));
        let rule = Rule {
            backends: vec![backend("v1", 0)],
            ..Default::default()
        };
        assert!(matches!(rule.pick(u64::MAX), Pick::Nobody));
    }
}
