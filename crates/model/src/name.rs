//! Names as Kubernetes and Dapr allow them, and `*` patterns over them.

/// Why a text is no legal name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} must be {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

fn fail(what: &'static str, value: &str, rule: &'static str) -> Result<(), NameError> {
    Err(NameError {
        what,
        value: value.chars().take(80).collect(),
        rule,
    })
}

fn dns_chars(s: &str, extra: &[u8]) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || extra.contains(&b);
    edge(s.as_bytes().first()) && edge(s.as_bytes().last()) && s.bytes().all(inside)
}

/// A DNS label (RFC 1123): namespaces, Services, control services.
pub fn check_dns_label(s: &str) -> Result<(), NameError> {
    if s.len() > 63 || !dns_chars(s, b"") {
        return fail(
            "name",
            s,
            "1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'",
        );
    }
    Ok(())
}

/// A DNS subdomain (RFC 1123): pods, nodes, most Kubernetes objects.
pub fn check_name(s: &str) -> Result<(), NameError> {
    if s.len() > 253 || !dns_chars(s, b".") {
        return fail(
            "name",
            s,
            "1 to 253 of a-z, 0-9, '-' and '.', starting and ending with a letter or digit",
        );
    }
    Ok(())
}

/// A Dapr app-id: at most 64 characters (the CA's limit) that are legal in a SPIFFE path. Dots
/// separate the namespace in `<app>.<namespace>`, so an app-id has none.
pub fn check_app_id(s: &str) -> Result<(), NameError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if s.is_empty() || s.len() > 64 || !s.bytes().all(legal) {
        return fail("app-id", s, "1 to 64 of letters, digits, '-' and '_'");
    }
    Ok(())
}

/// Whether `pattern` matches all of `text`; `*` stands for any run of characters.
///
/// Linear in the product of both lengths at worst, so bound them before.
pub fn match_pattern(pattern: &str, text: &str) -> bool {
    let (p, t) = (pattern.as_bytes(), text.as_bytes());
    let (mut i, mut j) = (0, 0);
    // Where the last `*` stood, and how much of the text it has swallowed so far.
    let mut star: Option<(usize, usize)> = None;
    while j < t.len() {
        if i < p.len() && p[i] == b'*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && p[i] == t[j] {
            i += 1;
            j += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            i = at + 1;
            j = taken + 1;
        } else {
            return false;
        }
    }
    p[i..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_rfc() {
        assert!(check_dns_label("a-1").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(check_dns_label(bad).is_err(), "{bad} was taken");
        }
        assert!(check_name("a.b-c").is_ok());
        assert!(check_app_id("Cart_1").is_ok());
        for bad in ["", "a.b", "a/b", "a%2Fb", "a b", &"a".repeat(65)] {
            assert!(check_app_id(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn patterns() {
        assert!(match_pattern("*", ""));
        assert!(match_pattern("cart*", "cart"));
        assert!(match_pattern("a*c*e", "abcde"));
        assert!(!match_pattern("a*c", "abcd"));
        assert!(!match_pattern("", "a"));
    }

    proptest! {
        #[test]
        fn pattern_agrees_with_the_definition(p in "[ab*]{0,7}", t in "[ab]{0,7}") {
            fn naive(p: &[u8], t: &[u8]) -> bool {
                match p.split_first() {
                    None => t.is_empty(),
                    Some((b'*', rest)) => (0..=t.len()).any(|k| naive(rest, &t[k..])),
                    Some((c, rest)) => t.first() == Some(c) && naive(rest, &t[1..]),
                }
            }
            prop_assert_eq!(match_pattern(&p, &t), naive(p.as_bytes(), t.as_bytes()));
        }
    }
}
