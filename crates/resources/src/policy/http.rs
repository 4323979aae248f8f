//! `rules` of a port: which requests are meant, of HTTP or of DNS.

use super::{HttpRule, MAX_HEADERS, MAX_HTTP_RULES, NameRule, expression::expression as compile, names};
use crate::fields::{Field, Problems};
use std::sync::Arc;

/// What may be asked at a port; absent for anything.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) http: Option<Arc<[HttpRule]>>,
    pub(super) dns: Option<Arc<[NameRule]>>,
}

pub(super) fn read(field: &Field<'_>, ingress: bool, problems: &mut Problems) -> Rules {
    let mut rules = Rules::default();
    let Some(mut object) = field.object(problems) else {
        return rules;
    };
    let before = problems.count();
    object.unsupported(&["kafka", "l7", "l7proto"], problems);
    let [http, dns] = ["http", "dns"].map(|kind| object.take(kind));
    object.finish(problems);
    if let Some(f) = dns.as_ref().filter(|_| ingress) {
        f.fail(
            problems,
            "rules for DNS are about what goes out, not about what comes in",
        );
    }
    match (http, dns) {
        (None, None) if problems.count() == before => {
            field.fail(problems, "names no requests; leave it out");
        }
        (Some(_), Some(_)) => field.fail(
            problems,
            "combines http and dns; write one element of toPorts for each",
        ),
        (http, dns) => {
            rules.http = http.and_then(|list| requests(&list, problems));
            rules.dns = dns.and_then(|list| names::queries(&list, problems));
        }
    }
    rules
}

fn requests(list: &Field<'_>, problems: &mut Problems) -> Option<Arc<[HttpRule]>> {
    let items = list.list(problems)?;
    if items.is_empty() {
        list.fail(
            problems,
            "names no request; leave rules out to mean all that is spoken there, or write [{}] for all requests",
        );
    }
    if items.len() > MAX_HTTP_RULES {
        let found = items.len();
        list.fail(
            problems,
            format_args!("has {found} rules, at most {MAX_HTTP_RULES} are allowed"),
        );
        return None;
    }
    Some(items.iter().filter_map(|f| rule(f, problems)).collect())
}

fn rule(field: &Field<'_>, problems: &mut Problems) -> Option<HttpRule> {
    let mut object = field.object(problems)?;
    let mut part =
        |name: &str, problems: &mut Problems| object.take(name).and_then(|f| expression(&f, problems));
    let path = part("path", problems);
    let method = part("method", problems);
    let host = part("host", problems);
    let mut headers = Vec::new();
    for f in object
        .take("headers")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        let Some(text) = f.text(problems) else { continue };
        // `Name: value`, or a name alone.
        let (name, value) = match text.split_once([':', ' ']) {
            Some((name, value)) => (name, Some(value.trim()).filter(|v| !v.is_empty())),
            None => (text.as_str(), None),
        };
        headers.extend(header(&f, name, value, problems));
    }
    for f in object
        .take("headerMatches")
        .and_then(|f| f.list(problems))
        .unwrap_or_default()
    {
        let Some(mut one) = f.object(problems) else {
            continue;
        };
        one.unsupported(&["secret", "mismatch"], problems);
        let name = one.need("name", problems).and_then(|f| f.text(problems));
        let value = one.take("value").and_then(|f| f.text(problems));
        one.finish(problems);
        if let Some(name) = name {
            headers.extend(header(&f, &name, value.as_deref(), problems));
        }
    }
    object.finish(problems);
    if headers.len() > MAX_HEADERS {
        let found = headers.len();
        field.fail(
            problems,
            format_args!("names {found} headers, at most {MAX_HEADERS} are allowed"),
        );
    }
    Some(HttpRule {
        path,
        method,
        host,
        headers,
    })
}

fn header(
    field: &Field<'_>,
    name: &str,
    value: Option<&str>,
    problems: &mut Problems,
) -> Option<(String, Option<String>)> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        field.fail(problems, format_args!("{name:?} is no name of a header"));
        return None;
    }
    Some((name.to_ascii_lowercase(), value.map(str::to_owned)))
}

/// An expression that must fit a whole text.
fn expression(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if text.is_empty() {
        return None;
    }
    if let Err(reason) = compile(&text) {
        field.fail(problems, reason);
        return None;
    }
    Some(text)
}
