//! Hostnames of listeners and routes, and how two of them meet.

use std::{fmt, str::FromStr};

/// `shop.example.com`, or `*.example.com` for every name below it. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hostname {
    /// One name.
    Exact(Box<str>),
    /// Every name that ends with this suffix, which begins with a dot.
    Below(Box<str>),
}

/// Not a hostname that a route may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no hostname: write it as shop.example.com or *.example.com, at most 253 characters, without port"
)]
pub struct HostnameError(String);

impl Hostname {
    /// Whether a name is meant. `host` is in lower case and has no port.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }

    /// What is left of this hostname of a route at a listener with hostname `listener`: the more
    /// specific of the two, or nothing.
    pub fn at(&self, listener: &Self) -> Option<Self> {
        match (self, listener) {
            (Self::Exact(name), _) => listener.matches(name).then(|| self.clone()),
            (Self::Below(_), Self::Exact(name)) => self.matches(name).then(|| listener.clone()),
            (Self::Below(ours), Self::Below(theirs)) => {
                if ours.ends_with(&**theirs) {
                    Some(self.clone())
                } else {
                    theirs.ends_with(&**ours).then(|| listener.clone())
                }
            }
        }
    }

    /// The hostnames a route serves at a listener; `None` when they have none in common, so that
    /// the route does not attach. An empty list stands for every host.
    pub fn at_listener(route: &[Self], listener: Option<&Self>) -> Option<Vec<Self>> {
        let Some(listener) = listener else {
            return Some(route.to_vec());
        };
        if route.is_empty() {
            return Some(vec![listener.clone()]);
        }
        let mut common: Vec<_> = route.iter().filter_map(|name| name.at(listener)).collect();
        common.sort();
        common.dedup();
        (!common.is_empty()).then_some(common)
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, HostnameError> {
        let refuse = || HostnameError(text.chars().take(300).collect());
        let (wild, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let label = |label: &str| {
            let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = label.as_bytes();
            label.len() <= 63
                && edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        };
        // An address is no name: the Gateway API refuses it, and so do certificates.
        if text.len() > 253 || !name.split('.').all(label) || name.parse::<std::net::IpAddr>().is_ok() {
            return Err(refuse());
        }
        let name = name.to_ascii_lowercase();
        Ok(match wild {
            true => Self::Below(format!(".{name}").into()),
            false => Self::Exact(name.into()),
        })
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// The host of an authority as tables have it: without port and last dot, in lower case. Borrows
/// when there is nothing to change.
pub fn host_of(authority: &str) -> std::borrow::Cow<'_, str> {
    let host = match authority.strip_prefix('[') {
        // An IPv6 address keeps its brackets: no route can name it.
        Some(rest) => rest.find(']').map_or(authority, |end| &authority[..end + 2]),
        None => authority.split(':').next().unwrap_or(authority),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        host.to_ascii_lowercase().into()
    } else {
        host.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Hostname {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_stands_for_one_label_or_more() {
        let below = name("*.Example.com");
        for (host, expected) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            ("aexample.com", false),
        ] {
            assert_eq!(below.matches(host), expected, "{host}");
        }
    }

    #[test]
    fn listener_and_route_meet_in_the_more_specific_name() {
        let meet = |route: &[&str], listener: Option<&str>| {
            let route: Vec<_> = route.iter().map(|t| name(t)).collect();
            Hostname::at_listener(&route, listener.map(name).as_ref()).map(|found| {
                found
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(meet(&[], None), some(""));
        assert_eq!(meet(&[], Some("*.a.com")), some("*.a.com"));
        assert_eq!(meet(&["x.a.com", "b.com"], Some("*.a.com")), some("x.a.com"));
        assert_eq!(meet(&["*.a.com"], Some("x.a.com")), some("x.a.com"));
        assert_eq!(meet(&["*.x.a.com"], Some("*.a.com")), some("*.x.a.com"));
        assert_eq!(meet(&["*.com"], Some("*.a.com")), some("*.a.com"));
        assert_eq!(meet(&["a.com"], Some("*.a.com")), None);
        assert_eq!(meet(&["*.a.com"], Some("a.com")), None);
        assert_eq!(meet(&["a.com"], None), some("a.com"));
    }

    #[test]
    fn what_is_no_hostname_is_refused() {
        for text in [
            "", "*", "*.", "a..b", "-a.b", "a-.b", "a_b", "a:80", "*.*.a", "a.*.b", "10.0.0.1", "é.com",
        ] {
            assert!(text.parse::<Hostname>().is_err(), "{text}");
        }
        assert!(["a"; 127].join(".").parse::<Hostname>().is_ok());
        assert!(["a"; 128].join(".").parse::<Hostname>().is_err());
    }

    #[test]
    fn authorities_lose_port_case_and_last_dot() {
        for (authority, host) in [
            ("Shop.example.COM:8080", "shop.example.com"),
            ("shop.", "shop"),
            ("[::1]:80", "[::1]"),
            ("[::1", "[::1"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }

    proptest! {
        #[test]
        fn reading_and_writing_agree(text in "(\\*\\.)?[a-z0-9-]{1,6}(\\.[a-z0-9-]{1,6}){0,3}") {
            if let Ok(found) = text.parse::<Hostname>() {
                prop_assert_eq!(found.to_string(), text);
            }
        }

        #[test]
        fn any_authority_is_read(text in "\\PC{0,40}") {
            let _ = host_of(&text);
        }

        /// What two names have in common are just the hosts that both mean.
        #[test]
        fn a_meeting_is_an_intersection(
            a in "(\\*\\.)?([ab]\\.){0,2}c", b in "(\\*\\.)?([ab]\\.){0,2}c", host in "([ab]\\.){0,4}c"
        ) {
            let (a, b) = (name(&a), name(&b));
            let both = a.matches(&host) && b.matches(&host);
            prop_assert_eq!(a.at(&b).is_some_and(|c| c.matches(&host)), both);
        }
    }
}
