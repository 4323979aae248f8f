//! What a path of the HTTP API asks for.
//!
//! The part that names an app decides who is called, so it is read strictly; the part that is the
//! app's own is passed on as it is, but for the slashes right after `/method`.

use crate::blocks::Call;
use std::borrow::Cow;
use weft_model::{check_app_id, check_dns_label};

/// Longer app parts are not looked at: 64 for the app-id, 63 for the namespace, thrice for
/// encoding, a dot.
const MAX_APP_PART: usize = 384;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Healthz,
    HealthzOutbound,
    Metadata,
    /// A key of the extended metadata, still encoded.
    MetadataKey(&'a str),
    /// Another app, and what to ask it for (without leading slashes).
    Invoke {
        app: &'a str,
        rest: &'a str,
    },
    /// A building block.
    Block(Call),
    /// One of Dapr's APIs that is not served: its name and the error code Dapr has for it.
    Unserved(&'static str, &'static str),
    Unknown,
}

/// Reads a path without its query.
pub(crate) fn route(path: &str) -> Route<'_> {
    let Some((version, rest)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
        return Route::Unknown;
    };
    if !matches!(version, "v1.0" | "v1.0-alpha1" | "v1.0-alpha2" | "v1.0-beta1") {
        return Route::Unknown;
    }
    let stable = version == "v1.0";
    if let (true, Some(rest)) = (stable, rest.strip_prefix("invoke/")) {
        return invoke(rest);
    }
    match rest.strip_suffix('/').unwrap_or(rest) {
        "healthz" if stable => return Route::Healthz,
        "healthz/outbound" if stable => return Route::HealthzOutbound,
        "metadata" if stable => return Route::Metadata,
        _ => {}
    }
    if let (true, Some(key)) = (stable, rest.strip_prefix("metadata/")) {
        return Route::MetadataKey(key);
    }
    if let Some(call) = Call::read(version, rest) {
        return Route::Block(call);
    }
    match rest.split('/').next().unwrap_or_default() {
        "secrets" => Route::Unserved("secrets", "ERR_SECRET_STORES_NOT_CONFIGURED"),
        "configuration" => Route::Unserved("configuration", "ERR_CONFIGURATION_STORE_NOT_CONFIGURED"),
        "lock" | "unlock" => Route::Unserved("lock", "ERR_LOCK_STORE_NOT_CONFIGURED"),
        "crypto" | "subtlecrypto" => Route::Unserved("crypto", "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED"),
        "actors" => Route::Unserved("actors", "ERR_ACTOR_RUNTIME_NOT_FOUND"),
        "workflows" => Route::Unserved("workflows", "ERR_WORKFLOW_COMPONENT_NOT_FOUND"),
        "jobs" => Route::Unserved("jobs", "ERR_SCHEDULE_JOB"),
        "conversation" => Route::Unserved("conversation", "ERR_CONVERSATION_NOT_FOUND"),
        "shutdown" if stable => Route::Unserved("shutdown", "ERR_API_UNIMPLEMENTED"),
        _ => Route::Unknown,
    }
}

/// `{app}/method`, then nothing or a slash and the rest.
fn invoke(rest: &str) -> Route<'_> {
    let Some((app, rest)) = rest.split_once('/') else {
        return Route::Unknown;
    };
    let Some(rest) = rest.strip_prefix("method") else {
        return Route::Unknown;
    };
    if !rest.is_empty() && !rest.starts_with('/') {
        return Route::Unknown;
    }
    Route::Invoke {
        app,
        rest: rest.trim_start_matches('/'),
    }
}

/// Who is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callee<'a> {
    pub app_id: Cow<'a, str>,
    /// `None`: the caller's own.
    pub namespace: Option<Cow<'a, str>>,
}

/// Reads `<app-id>` or `<app-id>.<namespace>`. Percent-encoding is undone only where it stands for
/// a character that could have been written plainly: an encoded slash, dot or NUL is refused.
pub(crate) fn callee(part: &str) -> Option<Callee<'_>> {
    if part.len() > MAX_APP_PART {
        return None;
    }
    let (app_id, namespace) = match part.split_once('.') {
        Some((app_id, namespace)) => (app_id, Some(namespace)),
        None => (part, None),
    };
    let app_id = plain(app_id)?;
    check_app_id(&app_id).ok()?;
    let namespace = namespace.map(plain);
    let namespace = match namespace {
        Some(namespace) => Some(namespace?),
        None => None,
    };
    if namespace.as_deref().is_some_and(|n| check_dns_label(n).is_err()) {
        return None;
    }
    Some(Callee { app_id, namespace })
}

fn plain(part: &str) -> Option<Cow<'_, str>> {
    if !part.contains('%') {
        return Some(part.into());
    }
    let decoded = percent_decode(part)?;
    let escaped_legal = part.split('%').skip(1).all(|after| {
        let byte = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    });
    escaped_legal.then_some(decoded.into())
}

/// Undoes percent-encoding; `None` if it is broken or the result is no UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (high, low) = (bytes.next()?, bytes.next()?);
        let digit = |b: u8| char::from(b).to_digit(16);
        out.push((digit(high)? * 16 + digit(low)?) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invoked(path: &str) -> Option<(&str, String)> {
        match route(path) {
            Route::Invoke { app, rest } => Some((app, format!("/{rest}"))),
            _ => None,
        }
    }

    #[test]
    fn slashes_after_method_are_stripped_and_no_others() {
        for (path, want) in [
            ("/v1.0/invoke/x/method//a", "/a"),
            ("/v1.0/invoke/x/method/something", "/something"),
            ("/v1.0/invoke/x/method//something", "/something"),
            ("/v1.0/invoke/x/method//", "/"),
            ("/v1.0/invoke/x/method/", "/"),
            ("/v1.0/invoke/x/method", "/"),
            ("/v1.0/invoke/x/method/a//b/", "/a//b/"),
            ("/v1.0/invoke/x/method/a/../b", "/a/../b"),
            ("/v1.0/invoke/x/method/%2Fa%2e", "/%2Fa%2e"),
            ("/v1.0/invoke/x/method/method/x", "/method/x"),
        ] {
            assert_eq!(invoked(path), Some(("x", want.into())), "{path}");
        }
        for path in [
            "/v1.0/invoke/x",
            "/v1.0/invoke/x/",
            "/v1.0/invoke/x/methods/a",
            "/v1.0/invoke//x/method/a",
            "//v1.0/invoke/x/method/a",
            "/v1.0-alpha1/invoke/x/method/a",
            "/v2.0/invoke/x/method/a",
            "/v1.0/invoke/http://x/method/a",
        ] {
            assert_eq!(invoked(path), None, "{path}");
        }
    }

    #[test]
    fn the_app_part_is_read_strictly() {
        let read =
            |s: &'static str| callee(s).map(|c| (c.app_id.to_string(), c.namespace.map(|n| n.to_string())));
        assert_eq!(read("cart"), Some(("cart".into(), None)));
        assert_eq!(read("cart.prod"), Some(("cart".into(), Some("prod".into()))));
        assert_eq!(read("My_App-1"), Some(("My_App-1".into(), None)));
        // Plain characters may be encoded.
        assert_eq!(read("c%61rt.pro%64"), Some(("cart".into(), Some("prod".into()))));
        for bad in [
            "",
            ".",
            ".prod",
            "cart.",
            "cart.prod.x",
            "cart%2Eprod",
            "cart%2eprod",
            "cart%2Fx",
            "cart%2fx",
            "cart%00",
            "cart%",
            "cart%6",
            "cart%zz",
            "cart%2561",
            "ca rt",
            "cart.Prod",
            "cart@prod",
            "..",
            "cart%5Cx",
            "cart:80",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(callee(&"a".repeat(65)).is_none());
        assert!(callee(&"%61".repeat(1000)).is_none());
    }

    #[test]
    fn fixed_routes() {
        assert_eq!(route("/v1.0/healthz"), Route::Healthz);
        assert_eq!(route("/v1.0/healthz/"), Route::Healthz);
        assert_eq!(route("/v1.0/healthz/outbound"), Route::HealthzOutbound);
        assert_eq!(route("/v1.0/metadata"), Route::Metadata);
        assert_eq!(route("/v1.0/metadata/a%20b"), Route::MetadataKey("a%20b"));
        assert!(matches!(route("/v1.0/state/s/k"), Route::Block(_)));
        assert!(matches!(route("/v1.0-alpha1/lock/s"), Route::Block(_)));
        assert!(matches!(route("/v1.0/lock/s"), Route::Unserved("lock", _)));
        for path in [
            "/",
            "/healthz",
            "/v1.0",
            "/v1.0/",
            "/v1.0//healthz",
            "/v1.0/nothing",
            "/v1.0/healthz/x",
        ] {
            assert_eq!(route(path), Route::Unknown, "{path}");
        }
    }

    fn corpus() -> weft_fuzz::Corpus {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/path");
        let words = ["%2f", "%2e", "%00", "..", "//", "/method/", ".", "%", "invoke/"];
        weft_fuzz::Corpus::read(&folder).words(words)
    }

    /// Whom a path names is one app, spelled out, and what is forwarded is a tail of it.
    fn holds(name: impl Fn(&str) -> Option<String>, bytes: &[u8]) {
        let Ok(path) = std::str::from_utf8(bytes) else {
            return;
        };
        let Route::Invoke { app, rest } = route(path) else {
            return;
        };
        assert!(path.ends_with(rest) && !rest.starts_with('/') && !app.contains('/'));
        if let Some(name) = name(app) {
            assert!(check_app_id(&name).is_ok(), "{name:?}");
            // Each byte of the name stands in the path, as itself or encoded.
            let escapes = app.matches('%').count();
            assert!(app.len() >= name.len() + 2 * escapes, "{name:?} of {app:?}");
        }
    }

    #[test]
    fn fuzz_path() {
        let name = |app: &str| callee(app).map(|c| c.app_id.into_owned());
        weft_fuzz::target!(corpus(), |path: &[u8]| holds(name, path));
    }

    #[test]
    fn the_target_notices_separators_that_are_smuggled() {
        let decodes = |app: &str| percent_decode(app);
        assert!(weft_fuzz::finds!(20_000, corpus(), |path: &[u8]| holds(
            decodes, path
        )));
    }

    proptest! {
        #[test]
        fn any_path_is_read_and_what_is_forwarded_is_a_tail_of_it(path in "(/v1.0/invoke/)?[ -~]{0,60}") {
            if let Route::Invoke { app, rest } = route(&path) {
                prop_assert!(path.ends_with(rest));
                prop_assert!(!rest.starts_with('/'));
                prop_assert!(!app.contains('/'));
                if let Some(callee) = callee(app) {
                    prop_assert!(check_app_id(&callee.app_id).is_ok());
                    prop_assert!(callee.namespace.is_none_or(|n| check_dns_label(&n).is_ok()));
                }
            }
        }

        #[test]
        fn no_encoding_smuggles_a_separator(app in "[a-z]{1,5}", byte in any::<u8>(), tail in "[a-z]{0,5}", upper in any::<bool>()) {
            let hex = if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            let part = format!("{app}%{hex}{tail}");
            let read = callee(&part);
            let legal = byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            prop_assert_eq!(read.is_some(), legal);
            if let Some(read) = read {
                prop_assert!(read.namespace.is_none());
                prop_assert_eq!(read.app_id.into_owned(), format!("{app}{}{tail}", char::from(byte)));
            }
        }
    }
}
