use super::*;
use proptest::prelude::*;

fn route() -> pb::Route {
    pb::Route {
        kind: "HTTPRoute".into(),
        namespace: "default".into(),
        name: "whoami".into(),
        created: 7,
        attachments: vec![pb::Attachment {
            parent: Some(Attached::Service(pb::ServiceParent {
                namespace: "default".into(),
                name: "whoami".into(),
                port: 80,
            })),
            hostnames: vec!["*.example.com".into()],
        }],
        rules: vec![pb::RouteRule {
            name: "split".into(),
            matches: vec![pb::RouteMatch {
                path: Some(Path::Prefix("/a".into())),
                method: "GET".into(),
                headers: vec![pb::NameMatch {
                    name: "x-a".into(),
                    value: Some(Value::Pattern("[a-z]+".into())),
                }],
                query: vec![pb::NameMatch {
                    name: "q".into(),
                    value: Some(Value::Exact("1".into())),
                }],
            }],
            filters: Some(filters_wire()),
            backends: vec![pb::RouteBackend {
                target: Some(target("v1")),
                weight: 9,
                filters: None,
            }],
            request_timeout_ms: 1500,
            backend_request_timeout_ms: 0,
            retry: Some(pb::RouteRetry {
                codes: vec![503],
                attempts: 2,
                backoff_ms: 10,
            }),
        }],
    }
}

fn target(name: &str) -> pb::RouteBackendRef {
    pb::RouteBackendRef {
        namespace: "default".into(),
        service: name.into(),
        port: 80,
    }
}

fn filters_wire() -> pb::RouteFilters {
    pb::RouteFilters {
        request_headers: Some(pb::HeaderEdit {
            set: vec![pb::HeaderValue {
                name: "x-set".into(),
                value: "1".into(),
            }],
            add: Vec::new(),
            remove: vec!["x-gone".into()],
        }),
        response_headers: None,
        redirect: None,
        rewrite: Some(pb::RouteRewrite {
            hostname: "v1.example.com".into(),
            path: Some(pb::PathChange {
                change: Some(Change::Prefix("/b/method//".into())),
            }),
        }),
        mirrors: vec![pb::RouteMirror {
            backend: Some(target("shadow")),
            share: 1,
            out_of: 10,
        }],
    }
}

#[test]
fn a_whole_route_is_read() {
    let read = read(&route()).unwrap();
    assert_eq!(read.len(), 1);
    let Attachment { parent, port, route } = &read[0];
    let service = Parent::Service {
        namespace: "default".into(),
        name: "whoami".into(),
    };
    assert_eq!((parent, port), (&service, &Some(80)));
    assert_eq!((&*route.label, route.created), ("HTTPRoute/default/whoami", 7));
    assert_eq!(route.hostnames[0].to_string(), "*.example.com");
    let rule = &route.rules[0];
    assert_eq!(rule.timeouts.request, Some(Duration::from_millis(1500)));
    assert_eq!(rule.timeouts.backend_request, None);
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.backoff), (2, Duration::from_millis(10)));
    assert!(matches!(&rule.matches[0].path, PathMatch::Prefix(path) if **path == *"/a"));
    assert_eq!((rule.backends[0].weight, rule.filters.mirrors[0].out_of), (9, 10));
    assert_eq!(rule.filters.request_headers.remove[0], "x-gone");
    assert_eq!(
        rule.filters.rewrite.as_ref().unwrap().hostname.as_ref().unwrap(),
        "v1.example.com"
    );
}

/// Each differs in one thing from a route that is read.
#[test]
fn what_does_not_fit_is_refused_with_its_field() {
    type Wrong<'a> = (&'a str, &'a dyn Fn(&mut pb::Route));
    let wrong: [Wrong<'_>; 22] = [
        ("kind", &|r| r.kind = "TCPRoute".into()),
        ("namespace", &|r| r.namespace = "No".into()),
        ("attachments[0].parent", &|r| r.attachments[0].parent = None),
        ("attachments[0].hostnames[0]", &|r| {
            r.attachments[0].hostnames[0] = "*".into()
        }),
        ("attachments[0].service.port", &|r| {
            r.attachments[0].parent = Some(Attached::Service(pb::ServiceParent {
                namespace: "default".into(),
                name: "whoami".into(),
                port: 70_000,
            }));
        }),
        ("rules", &|r| {
            r.rules = vec![pb::RouteRule::default(); MAX_RULES + 1]
        }),
        ("rules[0].matches[0].prefix", &|r| {
            r.rules[0].matches[0].path = Some(Path::Prefix("a".into()));
        }),
        ("rules[0].matches[0].pattern", &|r| {
            r.rules[0].matches[0].path = Some(Path::Pattern("(".into()));
        }),
        ("rules[0].matches[0].method", &|r| {
            r.rules[0].matches[0].method = "G T".into()
        }),
        ("rules[0].matches[0].headers[0].name", &|r| {
            r.rules[0].matches[0].headers[0].name = "a b".into();
        }),
        ("rules[0].matches[0].query[0].value", &|r| {
            r.rules[0].matches[0].query[0].value = None
        }),
        ("rules[0].backends[0].weight", &|r| {
            r.rules[0].backends[0].weight = MAX_WEIGHT + 1
        }),
        ("rules[0].backends[0].target.port", &|r| {
            r.rules[0].backends[0].target.as_mut().unwrap().port = 0;
        }),
        ("rules[0].request_timeout_ms", &|r| {
            r.rules[0].request_timeout_ms = u64::MAX
        }),
        ("rules[0].retry.codes[0]", &|r| {
            r.rules[0].retry.as_mut().unwrap().codes[0] = 200
        }),
        ("rules[0].retry.attempts", &|r| {
            r.rules[0].retry.as_mut().unwrap().attempts = 99
        }),
        ("rules[0].filters.request_headers.set[0].name", &|r| {
            let filters = r.rules[0].filters.as_mut().unwrap();
            filters.request_headers.as_mut().unwrap().set[0].name = "Content-Length".into();
        }),
        ("rules[0].filters.request_headers.set[0].value", &|r| {
            let filters = r.rules[0].filters.as_mut().unwrap();
            filters.request_headers.as_mut().unwrap().set[0].value = "a\r\nb: c".into();
        }),
        ("rules[0].filters.rewrite.hostname", &|r| {
            let filters = r.rules[0].filters.as_mut().unwrap();
            filters.rewrite.as_mut().unwrap().hostname = "*.example.com".into();
        }),
        ("rules[0].filters.rewrite.path.prefix", &|r| {
            let change = Some(Change::Prefix("/a b".into()));
            let filters = r.rules[0].filters.as_mut().unwrap();
            filters.rewrite.as_mut().unwrap().path = Some(pb::PathChange { change });
        }),
        ("rules[0].filters.redirect.status", &|r| {
            let filters = r.rules[0].filters.as_mut().unwrap();
            filters.redirect = Some(pb::RouteRedirect {
                status: 200,
                ..Default::default()
            });
        }),
        ("rules[0].filters.mirrors[0].share", &|r| {
            r.rules[0].filters.as_mut().unwrap().mirrors[0].share = 11;
        }),
    ];
    for (field, change) in wrong {
        let mut wire = route();
        change(&mut wire);
        let error = read(&wire).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }
    assert!(read(&route()).is_ok());
}

/// Texts from good, bad and in between.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("default".to_owned()),
        Just("/a".to_owned()),
        Just("*.example.com".to_owned()),
        Just("HTTPRoute".to_owned()),
        Just("Ingress".to_owned()),
        "[a-z/.*(){}0-9-]{0,12}",
        "\\PC{0,8}",
    ]
}

prop_compose! {
    fn any_route()(
        texts in proptest::collection::vec(text(), 16),
        numbers in proptest::collection::vec(prop_oneof![0..6u32, any::<u32>()], 8),
        shape in any::<u32>(),
    ) -> pb::Route {
        let mut wire = route();
        let mut texts = texts.into_iter().cycle_owned();
        let mut next = |bit: u32, old: &mut String| {
            if shape & (1 << bit) != 0 {
                *old = texts();
            }
        };
        next(0, &mut wire.name);
        next(1, &mut wire.attachments[0].hostnames[0]);
        let rule = &mut wire.rules[0];
        next(2, &mut rule.matches[0].method);
        next(3, &mut rule.matches[0].headers[0].name);
        next(4, &mut rule.matches[0].query[0].name);
        let mut path = String::new();
        next(5, &mut path);
        rule.matches[0].path = match shape >> 28 & 3 {
            0 => Some(Path::Exact(path)),
            1 => Some(Path::Pattern(path)),
            2 => Some(Path::GrpcMethod(path)),
            _ => Some(Path::Prefix(path)),
        };
        let filters = rule.filters.as_mut().unwrap();
        let edit = filters.request_headers.as_mut().unwrap();
        next(6, &mut edit.set[0].name);
        next(7, &mut edit.set[0].value);
        next(8, &mut edit.remove[0]);
        next(9, &mut filters.rewrite.as_mut().unwrap().hostname);
        let mut replaced = String::new();
        next(10, &mut replaced);
        filters.rewrite.as_mut().unwrap().path = Some(pb::PathChange { change: Some(Change::Full(replaced)) });
        filters.mirrors[0].share = numbers[0];
        filters.mirrors[0].out_of = numbers[1];
        filters.redirect = (shape & 1 << 11 != 0).then(|| pb::RouteRedirect {
            port: numbers[2],
            status: numbers[3],
            ..Default::default()
        });
        rule.backends[0].weight = numbers[4];
        rule.backends[0].target.as_mut().unwrap().port = numbers[5];
        rule.retry.as_mut().unwrap().codes = vec![numbers[6]];
        rule.retry.as_mut().unwrap().attempts = numbers[7];
        wire
    }
}

trait CycleOwned {
    fn cycle_owned(self) -> Box<dyn FnMut() -> String>;
}

impl<I: Iterator<Item = String>> CycleOwned for I {
    fn cycle_owned(self) -> Box<dyn FnMut() -> String> {
        let all: Vec<String> = self.collect();
        let mut at = 0;
        Box::new(move || {
            at += 1;
            all[at % all.len()].clone()
        })
    }
}

proptest! {
    /// Whatever is sent, it is read or refused; what is read can be used.
    #[test]
    fn any_route_is_read_or_refused(wire in any_route()) {
        if let Ok(read) = read(&wire) {
            for attachment in read {
                prop_assert!(weft_route::RouteTable::new(std::slice::from_ref(&attachment.route)).is_ok());
                for rule in &attachment.route.rules {
                    let _ = rule.pick(7);
                    for mirror in &rule.filters.mirrors {
                        prop_assert!(mirror.out_of > 0 && mirror.share <= mirror.out_of);
                    }
                }
            }
        }
    }
}
