//! The index against a naive reading of the Gateway API: every match of every route is tried, all
//! that are met are sorted by the criteria of the specification, the first one wins.
#![allow(clippy::unwrap_used)]

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use std::{cmp::Reverse, sync::Arc};
use weft_route::{
    Asked, Hostname, Pattern, RouteTable, TextMatch,
    spec::{Match, PathMatch, Route, Rule},
};

fn path_meets(path: &PathMatch, asked: &str) -> bool {
    match path {
        PathMatch::Exact(exact) => **exact == *asked,
        PathMatch::Pattern(pattern) => pattern.matches(asked),
        PathMatch::Prefix(prefix) => {
            let elements = |text: &str| -> Vec<String> { text.split('/').map(ToOwned::to_owned).collect() };
            let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
            let (prefix, path) = (elements(trimmed), elements(asked));
            // `` is the only element of the prefix that stands for everything.
            prefix == [""] || path.starts_with(&prefix)
        }
        PathMatch::GrpcMethod(method) => {
            let parts: Vec<&str> = asked.split('/').collect();
            matches!(parts[..], ["", service, found] if !service.is_empty() && *found == **method)
        }
    }
}

/// Ascending: the least comes first.
type Rank<'a> = (
    Reverse<(usize, usize)>,
    u8,
    Reverse<usize>,
    bool,
    Reverse<usize>,
    Reverse<usize>,
    u64,
    &'a str,
    &'a str,
    usize,
    usize,
);

fn naive<'a>(routes: &'a [Arc<Route>], asked: &Asked<'_>) -> Option<(&'a str, usize)> {
    let everything = Match::default();
    let mut met: Vec<(Rank<'a>, &'a str, usize)> = Vec::new();
    for route in routes {
        let host = route.hostnames.iter().filter(|name| name.matches(asked.host));
        let host = match route.hostnames.is_empty() {
            true => Some((0, 0)),
            false => host
                .map(|name| match name {
                    Hostname::Exact(text) => (text.len(), text.len()),
                    Hostname::Below(suffix) => (0, suffix.len() + 1),
                })
                .max(),
        };
        let Some(host) = host else { continue };
        for (at, rule) in route.rules.iter().enumerate() {
            let matches = match rule.matches.is_empty() {
                true => vec![&everything],
                false => rule.matches.iter().collect(),
            };
            for (number, of) in matches.into_iter().enumerate() {
                let text = |name: &HeaderName| {
                    let values = asked.headers.get_all(name).iter().map(|v| v.to_str().unwrap());
                    values.collect::<Vec<_>>().join(",")
                };
                let headers = of
                    .headers
                    .iter()
                    .all(|(name, wanted)| asked.headers.contains_key(name) && wanted.matches(&text(name)));
                let query = of.query.iter().all(|(name, wanted)| {
                    let pairs = asked
                        .query
                        .unwrap_or("")
                        .split('&')
                        .filter_map(|pair| pair.split_once('='));
                    pairs
                        .clone()
                        .find(|(n, _)| **n == **name)
                        .is_some_and(|(_, v)| wanted.matches(v))
                });
                let method = of.method.as_ref().is_none_or(|method| method == asked.method);
                if !(headers && query && method && path_meets(&of.path, asked.path)) {
                    continue;
                }
                let (kind, length) = match &of.path {
                    PathMatch::Exact(path) => (0, path.len()),
                    PathMatch::Pattern(pattern) => (1, pattern.text().len()),
                    PathMatch::Prefix(path) => (2, path.strip_suffix('/').unwrap_or(path).len()),
                    PathMatch::GrpcMethod(method) => (3, method.len()),
                };
                let rank = (
                    Reverse(host),
                    kind,
                    Reverse(length),
                    of.method.is_none(),
                    Reverse(of.headers.len()),
                    Reverse(of.query.len()),
                    route.created,
                    &*route.namespace,
                    &*route.name,
                    at,
                    number,
                );
                met.push((rank, &route.name, at));
            }
        }
    }
    met.into_iter().min().map(|(_, name, rule)| (name, rule))
}

fn path() -> impl Strategy<Value = String> {
    "(/[ab]{0,2}){1,3}"
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        path().prop_map(|p| PathMatch::Exact(p.into())),
        path().prop_map(|p| PathMatch::Prefix(p.into())),
        Just(PathMatch::everything()),
        "[ab]{1,2}".prop_map(|m| PathMatch::GrpcMethod(m.into())),
        "/[ab](/[ab]|\\.\\*)?".prop_map(|p| PathMatch::Pattern(Pattern::new(&p).unwrap())),
    ]
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        "[12]".prop_map(|t| TextMatch::Exact(t.into())),
        Just(TextMatch::Pattern(Pattern::new("[1-2](,.*)?").unwrap())),
    ]
}

prop_compose! {
    fn one_match()(
        path in path_match(),
        method in prop::option::of(prop_oneof![Just(Method::GET), Just(Method::POST)]),
        headers in prop::collection::btree_map("x-[ab]", text_match(), 0..2),
        query in prop::collection::btree_map("[qr]", text_match(), 0..2),
    ) -> Match {
        Match {
            path,
            method,
            headers: headers.into_iter().map(|(n, v)| (n.parse().unwrap(), v)).collect(),
            query: query.into_iter().map(|(n, v)| (n.into(), v)).collect(),
        }
    }
}

fn hostname() -> impl Strategy<Value = Hostname> {
    "(\\*\\.)?([ab]\\.){0,2}com".prop_map(|text| text.parse().unwrap())
}

prop_compose! {
    fn route()(
        name in "[a-d]",
        namespace in "[xy]",
        created in 0u64..3,
        hostnames in prop::collection::vec(hostname(), 0..3),
        rules in prop::collection::vec(prop::collection::vec(one_match(), 0..3), 1..4),
    ) -> Route {
        let rule = |matches| Arc::new(Rule { matches, ..Rule::default() });
        Route {
            kind: "HTTPRoute",
            label: "HTTPRoute".into(),
            namespace: namespace.into(),
            name: name.into(),
            created,
            hostnames,
            rules: rules.into_iter().map(rule).collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_index_finds_what_the_specification_says(
        routes in prop::collection::vec(route(), 0..5),
        requests in prop::collection::vec((
            "([ab]\\.){0,3}(com|org)", path(), prop::bool::ANY,
            prop::collection::vec(("x-[ab]", "[123]"), 0..3),
            prop::collection::vec("[qr]=[123]", 0..3),
        ), 1..12),
    ) {
        // Objects have unique names.
        let mut routes: Vec<Arc<Route>> = routes.into_iter().map(Arc::new).collect();
        routes.sort_by_key(|r| (r.namespace.clone(), r.name.clone()));
        routes.dedup_by_key(|r| (r.namespace.clone(), r.name.clone()));
        let table = RouteTable::new(&routes).unwrap();
        for (host, path, get, headers, query) in requests {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(&value).unwrap());
            }
            let query = query.join("&");
            let asked = Asked {
                host: &host,
                method: if get { &Method::GET } else { &Method::POST },
                path: &path,
                query: (!query.is_empty()).then_some(&*query),
                headers: &map,
            };
            let found = table.find(&asked);
            let rule_number = found.map(|m| {
                let at = m.route.rules.iter().position(|rule| Arc::ptr_eq(rule, m.rule)).unwrap();
                (&*m.route.name, at)
            });
            prop_assert_eq!(rule_number, naive(&routes, &asked), "{:?}", asked);
        }
    }

    #[test]
    fn any_request_line_is_looked_up(host in "\\PC{0,30}", path in "\\PC{0,60}", query in "\\PC{0,30}") {
        let routes = vec![Arc::new(Route {
            kind: "HTTPRoute",
            label: "HTTPRoute".into(),
            namespace: "x".into(),
            name: "a".into(),
            created: 0,
            hostnames: vec!["*.com".parse().unwrap()],
            rules: vec![Arc::new(Rule::default())],
        })];
        let table = RouteTable::new(&routes).unwrap();
        let headers = HeaderMap::new();
        let asked = Asked { host: &host, method: &Method::GET, path: &path, query: Some(&query), headers: &headers };
        let _ = table.find(&asked);
    }
}

#[test]
fn the_order_of_hosts_is_that_of_their_labels() {
    let route = |name: &str, hostname: &str| {
        Arc::new(Route {
            kind: "HTTPRoute",
            label: "HTTPRoute".into(),
            namespace: "x".into(),
            name: name.into(),
            created: 0,
            hostnames: hostname.parse().into_iter().collect(),
            rules: vec![Arc::new(Rule::default())],
        })
    };
    let routes = [
        route("any", ""),
        route("com", "*.com"),
        route("shop", "*.shop.com"),
        route("one", "one.shop.com"),
    ];
    let table = RouteTable::new(&routes).unwrap();
    let headers = HeaderMap::new();
    for (host, expected) in [
        ("one.shop.com", "one"),
        ("ONE.shop.com:8080", "one"),
        ("two.shop.com.", "shop"),
        ("x.two.shop.com", "shop"),
        ("shop.com", "com"),
        ("com", "any"),
        ("[::1]:80", "any"),
    ] {
        let asked = Asked {
            host,
            method: &Method::GET,
            path: "/",
            query: None,
            headers: &headers,
        };
        assert_eq!(&*table.find(&asked).unwrap().route.name, expected, "{host}");
    }
}

#[test]
fn too_many_matches_are_refused() {
    let rules = (0..50_001).map(|_| Arc::new(Rule::default())).collect();
    let route = Arc::new(Route {
        kind: "HTTPRoute",
        label: "HTTPRoute".into(),
        namespace: "x".into(),
        name: "a".into(),
        created: 0,
        hostnames: vec!["a.com".parse().unwrap(), "b.com".parse().unwrap()],
        rules,
    });
    assert_eq!(RouteTable::new(&[route]).unwrap_err().found, 100_002);
}
