//! What a node may host: patterns over namespace and app-id, given with its join token.

use serde::{Deserialize, Serialize};
use weft_model::match_pattern;

/// A node holds at most this many.
pub const MAX_PATTERNS: usize = 64;
/// Namespaces have 63 characters, app-ids 64.
const MAX_PATTERN_BYTES: usize = 64;

/// Each part matches exactly, or by `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPattern {
    /// Over the namespace.
    pub namespace: String,
    /// Over the app-id, or the service account where there is none.
    pub app_id: String,
}

/// Why patterns are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// More than a node may hold.
    #[error("{0} host patterns, at most 64 are allowed")]
    TooMany(usize),
    /// A character that matches no name, or too many of them.
    #[error(
        "host pattern {0:?} must be 1 to 64 of letters, digits, '-', '_' and '*'; write namespace and app-id \
         as two patterns"
    )]
    Text(String),
}

impl HostPattern {
    /// Whether a workload of this namespace and name fits.
    pub fn matches(&self, namespace: &str, name: &str) -> bool {
        match_pattern(&self.namespace, namespace) && match_pattern(&self.app_id, name)
    }
}

/// Checks patterns that come from outside.
pub fn check(patterns: &[HostPattern]) -> Result<(), PatternError> {
    if patterns.len() > MAX_PATTERNS {
        return Err(PatternError::TooMany(patterns.len()));
    }
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'*');
    for text in patterns.iter().flat_map(|p| [&p.namespace, &p.app_id]) {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES || !text.bytes().all(legal) {
            return Err(PatternError::Text(text.chars().take(80).collect()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(namespace: &str, app_id: &str) -> HostPattern {
        HostPattern {
            namespace: namespace.into(),
            app_id: app_id.into(),
        }
    }

    #[test]
    fn both_parts_must_match() {
        let shop = pattern("shop", "cart*");
        assert!(shop.matches("shop", "cart-2"));
        assert!(!shop.matches("shop", "pay"));
        assert!(!shop.matches("shop2", "cart"));
        assert!(pattern("*", "*").matches("any", "thing"));
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert_eq!(check(&[pattern("shop", "*")]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        for bad in ["", "a/b", "a b", "a.b", &"a".repeat(65)] {
            assert!(check(&[pattern("shop", bad)]).is_err(), "{bad}");
            assert!(check(&[pattern(bad, "*")]).is_err(), "{bad}");
        }
        assert!(check(&vec![pattern("a", "b"); 65]).is_err());
    }
}
