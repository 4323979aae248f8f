//! What routes may not say.

use super::*;

#[test]
fn what_the_schema_of_routes_forbids_is_refused_where_it_stands() {
    let backends = "backendRefs: [{name: b, port: 80}]";
    let redirect = "{type: RequestRedirect, requestRedirect: {port: 1}}";
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a.test}}";
    let prefix = "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}";
    let filter = |f: &str| format!("rules: [{{filters: [{f}]}}]");
    let path = |p: &str| format!("rules: [{{matches: [{{path: {{{p}}}}}]}}]");
    let long = vec!["{}"; 65].join(", ");
    let many = (0..17)
        .map(|n| format!("a{n}.test"))
        .collect::<Vec<_>>()
        .join(", ");
    let matches = |n: usize| vec![format!("{{matches: [{}]}}", vec!["{}"; n].join(", ")); 4].join(", ");
    let same = |a: &str, b: &str| format!("parentRefs: [{{name: g{a}}}, {{name: g{b}}}]");
    let cases = [
        (
            "rules: []".to_owned(),
            "must have an element",
            "rules: [{}]".to_owned(),
        ),
        (
            format!("rules: [{{matches: [{long}]}}]"),
            "rules[0].matches: has 65 elements, at most 64",
            format!("rules: [{{matches: [{}]}}]", vec!["{}"; 64].join(", ")),
        ),
        (
            format!("rules: [{}]", matches(33)),
            "have 132 matches, at most 128",
            format!("rules: [{}]", matches(32)),
        ),
        (
            format!("hostnames: [{many}]"),
            "has 17 elements, at most 16",
            "hostnames: [a0.test]".into(),
        ),
        (
            "hostnames: [A.test]".into(),
            "hostnames[0]: \"A.test\" is no hostname",
            "hostnames: [a.test]".into(),
        ),
        (
            "hostnames: ['*']".into(),
            "is no hostname",
            "hostnames: ['*.test']".into(),
        ),
        (
            "hostnames: ['a.*.test']".into(),
            "is no hostname",
            "hostnames: ['*.a.test']".into(),
        ),
        (
            "hostnames: ['10.0.0.1']".into(),
            "is no hostname",
            "hostnames: ['10.0.0.1.test']".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b}]}]".into(),
            "backendRefs[0].port: is required for a Service",
            format!("rules: [{{{backends}}}]"),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: 0}]}]".into(),
            "must be from 1 to 65535",
            "rules: [{backendRefs: [{name: b, port: 65535}]}]".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: 80, weight: 1000001}]}]".into(),
            "weight: must be from 0 to 1000000",
            "rules: [{backendRefs: [{name: b, port: 80, weight: 1000000}]}]".into(),
        ),
        (
            "rules: [{backendRefs: [{name: b, port: '80'}]}]".into(),
            "must be a number, found a text",
            format!("rules: [{{{backends}}}]"),
        ),
        (
            format!("rules: [{{filters: [{redirect}], {backends}}}]"),
            "RequestRedirect can not stand beside backendRefs",
            filter(redirect),
        ),
        (
            filter(&format!("{redirect}, {rewrite}")),
            "can not stand together",
            filter(rewrite),
        ),
        (
            filter(&format!("{rewrite}, {rewrite}")),
            "only once",
            filter(rewrite),
        ),
        (
            filter("{type: URLRewrite}"),
            "says nothing for its type",
            filter(rewrite),
        ),
        (
            filter("{type: URLRewrite, urlRewrite: {}, requestRedirect: {}}"),
            "requestRedirect: can not stand in a filter of type URLRewrite",
            filter(rewrite),
        ),
        (
            format!("rules: [{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{prefix}]}}]"),
            "replacePrefixMatch needs exactly one match, of type PathPrefix",
            format!("rules: [{{matches: [{{path: {{value: /a}}}}], filters: [{prefix}]}}]"),
        ),
        (
            format!("rules: [{{matches: [{{}}, {{}}], filters: [{prefix}]}}]"),
            "replacePrefixMatch needs exactly one match",
            format!("rules: [{{filters: [{prefix}]}}]"),
        ),
        (path("value: a"), "must begin with /", path("value: /a")),
        (path("value: /a//b"), "must not contain //", path("value: /a/b")),
        (path("value: /a/../b"), "must not contain", path("value: /a/..b")),
        (path("value: /a/.."), "must not end", path("value: /a/..b")),
        (path("value: /a%2fb"), "must not contain", path("value: /a%20b")),
        (
            path("value: '/a b'"),
            "must be written as %XX",
            path("type: RegularExpression, value: '/a b'"),
        ),
        (
            path("value: /a%2"),
            "must be written as %XX",
            path("value: /a%20"),
        ),
        (
            "rules: [{matches: [{headers: [{name: 'a b', value: c}]}]}]".into(),
            "is no name of a header",
            "rules: [{matches: [{headers: [{name: ab, value: c}]}]}]".into(),
        ),
        (
            "rules: [{matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]}]".into(),
            "is matched twice",
            "rules: [{matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}]}]".into(),
        ),
        (
            filter(
                r#"{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: "b\nc"}]}}"#,
            ),
            "no header's value",
            filter("{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b c}]}}"),
        ),
        (
            filter(
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}, {name: A, value: c}]}}",
            ),
            "is named twice",
            filter(
                "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: a, value: c}]}}",
            ),
        ),
        (
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, percent: 1, fraction: {numerator: 1}}}",
            ),
            "can not stand together",
            filter("{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, percent: 1}}"),
        ),
        (
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, fraction: {numerator: 3, denominator: 2}}}",
            ),
            "must not be above denominator",
            filter(
                "{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, fraction: {numerator: 2, denominator: 2}}}",
            ),
        ),
        (
            filter(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a, replacePrefixMatch: /a}}}",
            ),
            "can not stand beside the type that wants replaceFullPath",
            filter("{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}"),
        ),
        (
            "rules: [{timeouts: {request: 1m, backendRequest: 61s}}]".into(),
            "backendRequest must not be longer",
            "rules: [{timeouts: {request: 0s, backendRequest: 61s}}]".into(),
        ),
        (
            "rules: [{timeouts: {request: 1.5s}}]".into(),
            "is no duration",
            "rules: [{timeouts: {request: 1s500ms}}]".into(),
        ),
        (
            "rules: [{retry: {codes: [200]}}]".into(),
            "must be from 400 to 599",
            "rules: [{retry: {codes: [503]}}]".into(),
        ),
        (
            "rules: [{retry: {attempts: 0}}]".into(),
            "must be from 1",
            "rules: [{retry: {attempts: 1}}]".into(),
        ),
        (
            "rules: [{name: x}, {name: x}]".into(),
            "is another rule's",
            "rules: [{name: x}, {name: z}]".into(),
        ),
        (
            "rules: [{sessionPersistence: {}}]".into(),
            "is not supported yet",
            "rules: [{}]".into(),
        ),
        (
            "useDefaultGateways: All".into(),
            "is not supported yet",
            String::new(),
        ),
        ("rulez: []".into(), "unknown field", String::new()),
        (
            "rules: [{backendRef: []}]".into(),
            "rules[0].backendRef: unknown field",
            "rules: [{backendRefs: []}]".into(),
        ),
        (
            same("", ""),
            "refers to the same part of a parent again",
            same("", ", namespace: x"),
        ),
        (
            same(", sectionName: a", ""),
            "all of them name a sectionName",
            same(", sectionName: a", ", sectionName: b"),
        ),
        (
            same(", port: 1", ", port: 1"),
            "the same part",
            same(", port: 1", ", port: 2"),
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(a, b, c)| (a.as_str(), *b, c.as_str()))
        .collect();
    twins("HTTPRoute", &cases);
}
