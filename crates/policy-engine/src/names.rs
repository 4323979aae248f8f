//! Names in DNS: which of them a rule means, and sets with the addresses that names have.

use crate::{
    CidrPeer, DirectionPolicy, NameRule, PolicySet,
    fault::{Fault, made},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Whether a rule means a name, which is in lower case and without the dot at the end. The root is the empty
/// name.
pub fn is_meant(rule: &NameRule, name: &str) -> bool {
    let pattern = match rule {
        NameRule::Name(own) => return own == name,
        NameRule::Pattern(pattern) => pattern.as_str(),
    };
    if pattern == "*" {
        // Of a name's own characters; the root has none.
        return name.is_empty() || name.split('.').all(|label| !label.is_empty() && is_sound(label));
    }
    let Some(rest) = pattern.strip_prefix("**.") else {
        return made(Fault::PatternCrossesDots) && fits(pattern.as_bytes(), name.as_bytes())
            || are_fitting(pattern, name);
    };
    // One label or several, and what follows.
    let extra = name.split('.').count().saturating_sub(rest.split('.').count());
    let Some((at, _)) = extra.checked_sub(1).and_then(|n| name.match_indices('.').nth(n)) else {
        return false;
    };
    let (before, after) = (&name[..at], &name[at + 1..]);
    before
        .split('.')
        .all(|label| !label.is_empty() && is_sound(label))
        && are_fitting(rest, after)
}

/// Label by label, as many on either side.
fn are_fitting(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if fits(pattern.as_bytes(), label.as_bytes()) => {}
            _ => return false,
        }
    }
}

fn is_sound(label: &str) -> bool {
    label.bytes().all(may_be_any)
}

/// What a `*` stands for.
fn may_be_any(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.' && made(Fault::PatternCrossesDots)
}

/// One label. Goes back to the last `*` only, which takes one more character then: at most the product of both
/// lengths, which are those of a name.
fn fits(pattern: &[u8], label: &[u8]) -> bool {
    let (mut p, mut l) = (0, 0);
    // Behind the last `*`, and where what it took ends.
    let mut star: Option<(usize, usize)> = None;
    while l < label.len() || p < pattern.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, l));
                p += 1;
            }
            Some(wanted) if label.get(l) == Some(wanted) => {
                p += 1;
                l += 1;
            }
            _ => {
                let Some((after, end)) = star else { return false };
                if !label.get(end).is_some_and(|b| may_be_any(*b)) {
                    return false;
                }
                star = Some((after, end + 1));
                (p, l) = (after, end + 1);
            }
        }
    }
    true
}

impl PolicySet {
    /// The rules by which it names peers, each once.
    pub fn names(&self) -> BTreeSet<&NameRule> {
        let entries = self.ingress().entries.iter().chain(&self.egress().entries);
        entries.flat_map(|e| &e.peers.names).collect()
    }

    /// The set as it is while names have these addresses: a set of its own, with its own id.
    #[must_use]
    pub fn bind(&self, addresses: impl Fn(&NameRule) -> Vec<IpAddr>) -> Self {
        let bind = |policy: &DirectionPolicy| {
            let mut policy = policy.clone();
            for entry in &mut policy.entries {
                let found = entry.peers.names.iter().flat_map(&addresses);
                let found = found.filter(|_| !made(Fault::NamesAreForgotten));
                let one = |address: IpAddr| CidrPeer {
                    cidr: address.to_canonical().into(),
                    except: Vec::new(),
                };
                entry.peers.cidrs.extend(found.map(one));
            }
            policy
        };
        Self::new(bind(self.ingress()), bind(self.egress()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> NameRule {
        NameRule::new(text, true).unwrap()
    }

    /// The examples of Cilium's documentation, and the edges.
    #[test]
    fn patterns_mean_what_they_mean_to_cilium() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            (
                "*.cilium.io",
                &["www.cilium.io", "blog.cilium.io"],
                &["cilium.io", "a.b.cilium.io", "google.com"],
            ),
            (
                "*cilium.io",
                &["cilium.io", "sub-cilium.io", "subcilium.io"],
                &["www.cilium.io", "blog.cilium.io"],
            ),
            (
                "sub*.cilium.io",
                &["sub.cilium.io", "subdomain.cilium.io"],
                &["www.cilium.io", "sub.a.cilium.io", "cilium.io"],
            ),
            (
                "**.cilium.io",
                &["app.cilium.io", "test.app.cilium.io"],
                &["cilium.io", "xcilium.io", "cilium.io.x"],
            ),
            ("*", &["a", "a.b.c", "_srv._tcp.a", ""], &["a/b.c", "a..b"]),
            ("*.", &["a", ""], &["a.b", "a b"]),
            ("a**b.C.", &["ab.c", "axxb.c"], &["a.b.c", "ab.d"]),
            ("**.b.b", &["a.b.b", "b.b.b"], &["b.b", "b", ""]),
            ("a.*.c", &["a.b.c", "a.bb.c"], &["a.c", "a.b.b.c", "a.b\n.c"]),
        ];
        for (text, meant, others) in cases {
            for name in meant {
                assert!(is_meant(&pattern(text), name), "{text} means {name:?}");
            }
            for name in others {
                assert!(!is_meant(&pattern(text), name), "{text} does not mean {name:?}");
            }
        }
        let name = NameRule::new("WWW.Example.com.", false).unwrap();
        assert!(is_meant(&name, "www.example.com") && !is_meant(&name, "www.example.com.x"));
    }

    proptest! {
        /// As the regular expression that Cilium makes of it.
        #[test]
        fn a_pattern_is_its_expression(text in r"(\*\*\.)?[ab*_-]{1,4}(\.[ab*]{1,3}){0,2}", name in r"[ab._-]{0,8}") {
            let body = text.strip_prefix("**.");
            let any = "[-a-zA-Z0-9_]";
            let rest = body.unwrap_or(&text).replace('.', "[.]").replace('*', &format!("{any}*"));
            let expression = match (text.as_str(), body) {
                ("*", _) => format!("^({any}+[.])+$|^[.]$"),
                (_, Some(_)) => format!("^{any}+([.]{any}+)*[.]{rest}[.]$"),
                _ => format!("^{rest}[.]$"),
            };
            let full = format!("{name}.");
            let expected = regex::Regex::new(&expression).unwrap().is_match(&full);
            prop_assert_eq!(is_meant(&pattern(&text), &name), expected, "{} {}", text, name);
        }
    }
}
