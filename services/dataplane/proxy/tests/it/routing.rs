//! Which backend a request comes to, and as what.

use crate::world::{World, ask, backend, below, header, send, target, to};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use weft_flows::{Direction, DropReason, Kind, Verdict, Via};
use weft_proto::weft::policy::v1 as pb;

async fn split() -> World {
    let world = World::new();
    for app in ["own", "v1", "v2"] {
        world.app(app).await;
        world.service(app, &[app]);
    }
    world.service("whoami", &["own"]);
    world
}

#[tokio::test]
async fn without_routes_a_service_is_itself_and_with_them_what_they_say() {
    let world = split().await;
    let mut kept = world.connect().await;
    assert_eq!(ask(&mut kept, "/").await.app(), "own");
    world.route(
        "by-path",
        vec![
            pb::RouteRule {
                matches: below("/v2"),
                ..to(vec![backend("v2", 1)])
            },
            pb::RouteRule {
                matches: below("/v1"),
                ..to(vec![backend("v1", 1)])
            },
        ],
    );
    // On the same connection.
    assert_eq!(ask(&mut kept, "/v1/a?b=1").await.app(), "v1");
    let answer = ask(&mut kept, "/v2").await;
    assert_eq!((answer.app(), answer.line("line ")), ("v2", "HTTP/1.1 GET /v2"));
    assert_eq!(ask(&mut kept, "/other").await.status, 404);
    let flows = world.flows_of("/v1/a");
    assert_eq!(flows.len(), 2);
    for (flow, direction) in flows.iter().zip([Direction::Egress, Direction::Ingress]) {
        assert_eq!(
            (flow.kind, flow.verdict, flow.direction),
            (Kind::Http, Verdict::Forwarded, direction)
        );
        assert_eq!((&*flow.source.app_id, &*flow.destination.app_id), ("shop", "v1"));
        assert_eq!(
            (flow.status, flow.via, flow.method.as_str()),
            (200, Some(Via::SameNode), "GET")
        );
        assert_eq!(flow.route.as_deref(), Some("HTTPRoute/default/by-path"));
        assert_eq!(flow.rule.as_deref(), Some("allowed"));
        assert!(flow.latency > Duration::ZERO && flow.trace_id != [0; 16]);
    }
    let lost = &world.flows_of("/other")[0];
    assert_eq!(
        (lost.verdict, lost.drop_reason, lost.status),
        (Verdict::Error, Some(DropReason::NoRoute), 404)
    );
    // Without the route, the Service again.
    world.apply("route", "HTTPRoute/default/by-path", None);
    assert_eq!(ask(&mut kept, "/other").await.app(), "own");
}

/// Counts within five standard deviations; no request fails at the change.
#[tokio::test(flavor = "multi_thread")]
async fn weights_hold_and_a_change_loses_nothing() {
    let world = Arc::new(split().await);
    let weights = |one, two| vec![to(vec![backend("v1", one), backend("v2", two)])];
    world.route("split", weights(50, 50));
    let share = async |requests: usize| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        let mut stream = world.connect().await;
        for _ in 0..requests {
            *counts
                .entry(ask(&mut stream, "/").await.app().to_owned())
                .or_default() += 1;
        }
        assert_eq!(counts.values().sum::<usize>(), requests);
        (
            counts.get("v1").copied().unwrap_or(0),
            counts.get("v2").copied().unwrap_or(0),
        )
    };
    let (one, _) = share(400).await;
    assert!((150..=250).contains(&one), "{one} of 400");

    // Sixteen connections, each at least 500/16 requests a second, while the route changes.
    let ends = Instant::now() + Duration::from_secs(2);
    let clients = (0..16).map(|client| {
        let world = world.clone();
        tokio::spawn(async move {
            let mut stream = world.connect().await;
            let mut asked = 0;
            while Instant::now() < ends {
                let id = format!("/{client}-{asked}");
                let answer = ask(&mut stream, &id).await;
                assert_eq!(
                    (answer.status, answer.line("line ")),
                    (200, &*format!("HTTP/1.1 GET {id}"))
                );
                asked += 1;
            }
            asked
        })
    });
    let clients: Vec<_> = clients.collect();
    for change in 0..10 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        match change % 3 {
            0 => world.route("split", weights(90, 10)),
            1 => world.apply("route", "HTTPRoute/default/split", None),
            _ => world.route("split", weights(10, 90)),
        }
    }
    let mut asked = 0;
    for client in clients {
        asked += client.await.unwrap();
    }
    assert!(asked >= 1000, "only {asked} requests in two seconds");
    world.route("split", weights(90, 10));
    let (_, two) = share(400).await;
    assert!((10..=70).contains(&two), "{two} of 400");
}

#[tokio::test]
async fn filters_change_what_passes() {
    let world = split().await;
    world.app("shadow").await;
    world.service("shadow", &["shadow"]);
    let rule_filters = pb::RouteFilters {
        request_headers: Some(pb::HeaderEdit {
            set: vec![header("x-set", "rule")],
            add: vec![header("x-more", "b")],
            remove: vec!["x-gone".into()],
        }),
        response_headers: Some(pb::HeaderEdit {
            set: vec![header("x-said", "rule")],
            ..Default::default()
        }),
        rewrite: Some(pb::RouteRewrite {
            hostname: "v1.example".into(),
            path: Some(pb::PathChange {
                change: Some(pb::path_change::Change::Prefix("/new//".into())),
            }),
        }),
        mirrors: vec![pb::RouteMirror {
            backend: Some(target("shadow")),
            share: 1,
            out_of: 1,
        }],
        redirect: None,
    };
    let backend_filters = pb::RouteFilters {
        request_headers: Some(pb::HeaderEdit {
            set: vec![header("x-set", "backend")],
            ..Default::default()
        }),
        ..Default::default()
    };
    world.route(
        "filters",
        vec![
            pb::RouteRule {
                matches: below("/old"),
                filters: Some(rule_filters),
                ..to(vec![pb::RouteBackend {
                    filters: Some(backend_filters),
                    ..backend("v1", 1)
                }])
            },
            pb::RouteRule {
                matches: below("/moved"),
                filters: Some(pb::RouteFilters {
                    redirect: Some(pb::RouteRedirect {
                        scheme: "https".into(),
                        hostname: "new.example".into(),
                        status: 301,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
        ],
    );
    let mut stream = world.connect().await;
    let request = "POST /old/a//b?c=d HTTP/1.1\r\nhost: whoami\r\nx-gone: 1\r\nx-more: a\r\nx-set: own\r\n\
                   dapr-caller-app-id: admin\r\ncontent-length: 4\r\n\r\ndata";
    let answer = send(&mut stream, request).await;
    assert_eq!(answer.line("line "), "HTTP/1.1 POST /new//a//b?c=d");
    assert_eq!(answer.line("host: "), "v1.example");
    assert_eq!(answer.line("x-set: "), "backend");
    assert_eq!(answer.line("body "), "data");
    assert_eq!(
        answer.line("dapr-caller-app-id: "),
        "shop",
        "who calls is not the caller's to say"
    );
    let more: Vec<_> = answer
        .body
        .lines()
        .filter(|l| l.starts_with("x-more: "))
        .collect();
    assert_eq!(more, ["x-more: a", "x-more: b"]);
    assert!(!answer.body.contains("x-gone"));
    assert!(answer.head.contains("x-said: rule\r\n"), "{}", answer.head);
    // The copy is judged and written down like the request.
    let copied = async {
        loop {
            let flows = world.flows_of("/new//a//b");
            if flows
                .iter()
                .any(|f| &*f.destination.app_id == "shadow" && f.status == 200)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::SOON, copied)
        .await
        .expect("no copy");

    let moved = ask(&mut stream, "/moved/here?x=y").await;
    assert_eq!(moved.status, 301);
    assert!(
        moved
            .head
            .contains("location: https://new.example/moved/here?x=y\r\n"),
        "{}",
        moved.head
    );
    assert_eq!(world.flows_of("/moved/here")[0].status, 301);
}

#[tokio::test]
async fn a_backend_that_may_not_be_used_takes_its_part_with_it() {
    let world = split().await;
    let invalid = pb::RouteBackend {
        target: None,
        weight: 1,
        filters: None,
    };
    world.route("invalid", vec![to(vec![invalid])]);
    assert_eq!(world.ask("/invalid").await.status, 500);
    world.route("invalid", vec![to(vec![backend("absent", 1)])]);
    assert_eq!(world.ask("/absent").await.status, 500);
    world.route("invalid", vec![to(Vec::new())]);
    assert_eq!(world.ask("/none").await.status, 500);
    world.service("empty", &[]);
    world.route("invalid", vec![to(vec![backend("empty", 1)])]);
    let answer = world.ask("/empty").await;
    assert_eq!((answer.status, &*answer.body), (503, "no healthy upstream"));
    assert_eq!(
        world.flows_of("/empty")[0].drop_reason,
        Some(DropReason::NoEndpoint)
    );
    world.route("invalid", vec![to(vec![backend("v1", 1)])]);
    assert_eq!(world.ask("/v1").await.status, 200);
}
