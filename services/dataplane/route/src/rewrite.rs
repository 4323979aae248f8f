//! Replacing a path or the part of it that matched.

use crate::spec::PathChange;

impl PathChange {
    /// The new path. `matched` is the prefix that the route asked for, as written; what came after
    /// it in the request stays. The table of the Gateway API's `ReplacePrefixMatch` is the test.
    pub fn apply(&self, path: &str, matched: &str) -> String {
        let prefix = match self {
            Self::Full(full) => return full.clone().into(),
            Self::Prefix(prefix) => prefix,
        };
        let matched = matched.strip_suffix('/').unwrap_or(matched);
        let rest = path.strip_prefix(matched).unwrap_or_default();
        // One slash in between, whoever brought it. All others stay: they may mean something there.
        let rest = match prefix.ends_with('/') {
            true => rest.strip_prefix('/').unwrap_or(rest),
            false => rest,
        };
        let new = format!("{prefix}{rest}");
        if new.starts_with('/') {
            new
        } else {
            format!("/{new}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_replaced_as_specified() {
        for (path, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // A prefix that matches everything, before a path whose own slashes count.
            ("/", "/", "/v1.0/invoke/a/method//", "/v1.0/invoke/a/method//"),
            ("/a", "/", "/v1.0/invoke/a/method//", "/v1.0/invoke/a/method//a"),
            ("/a//b/", "/", "/x", "/x/a//b/"),
        ] {
            let change = PathChange::Prefix(replacement.into());
            assert_eq!(
                change.apply(path, matched),
                expected,
                "{path} {matched} {replacement}"
            );
        }
    }

    #[test]
    fn a_full_path_is_what_it_says() {
        assert_eq!(PathChange::Full("/one".into()).apply("/foo/bar", "/foo"), "/one");
    }
}
