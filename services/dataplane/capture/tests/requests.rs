//! Connections whose requests are read: by routes, by rules of the caller, by rules of the callee on
//! its own node; and those next to them that are carried as before.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_flows::{Direction, Kind, Verdict, Via};
use weft_proto::weft::policy::v1::{self as pb, attachment::Parent, resource::Body};
use world::{Known, Node, SOON, World, all, app, echo};

/// An app that answers each request with its name and closes on none.
async fn http(name: &'static str) -> SocketAddr {
    let (address, listener) = app("127.0.0.1:0").await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                    if head.ends_with(b"\r\n\r\n") {
                        let length = name.len();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        head.clear();
                    }
                }
            });
        }
    });
    address
}

/// Status and body of one request.
async fn ask(stream: &mut TcpStream, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: whoami\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let whole = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).to_lowercase();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .unwrap_or("0");
        (body.len() >= length.parse().unwrap()).then(|| (head[9..12].parse().unwrap(), body.to_owned()))
    };
    let reading = async {
        loop {
            if let Some(whole) = whole(&answer) {
                return whole;
            }
            assert!(
                stream.read_buf(&mut answer).await.unwrap() > 0,
                "closed after {answer:?}"
            );
        }
    };
    timeout(SOON, reading).await.expect("no answer")
}

struct Scene {
    world: World,
    here: Node,
    there: Node,
    shop: Known,
    near: SocketAddr,
    far: SocketAddr,
}

const SERVICE: &str = "10.96.0.1:80";

async fn scene() -> Scene {
    let world = World::new();
    let (here, there) = (world.node("n1"), world.node("n2"));
    let shop = world.workload(&here, "shop", &[]).await;
    let (near, far) = (http("near").await, http("far").await);
    world.workload(&here, "near", &[near]).await;
    world.workload(&there, "far", &[far]).await;
    world.service("near", "10.96.0.2:80".parse().unwrap(), &[near]);
    world.service("far", "10.96.0.3:80".parse().unwrap(), &[far]);
    world.service("whoami", SERVICE.parse().unwrap(), &[near]);
    Scene {
        world,
        here,
        there,
        shop,
        near,
        far,
    }
}

fn split(first: &str, second: &str) -> pb::SubscribeResponse {
    let rule = |prefix: &str, service: &str| pb::RouteRule {
        matches: vec![pb::RouteMatch {
            path: Some(pb::route_match::Path::Prefix(prefix.into())),
            ..Default::default()
        }],
        backends: vec![pb::RouteBackend {
            target: Some(pb::RouteBackendRef {
                namespace: "default".into(),
                service: service.into(),
                port: 80,
            }),
            weight: 1,
            filters: None,
        }],
        ..Default::default()
    };
    let route = pb::Route {
        kind: "HTTPRoute".into(),
        namespace: "default".into(),
        name: "whoami".into(),
        attachments: vec![pb::Attachment {
            parent: Some(Parent::Service(pb::ServiceParent {
                namespace: "default".into(),
                name: "whoami".into(),
                port: 80,
            })),
            hostnames: Vec::new(),
        }],
        rules: vec![rule("/first", first), rule("/second", second)],
        ..Default::default()
    };
    let key = pb::ResourceKey {
        kind: "route".into(),
        name: "HTTPRoute/default/whoami".into(),
    };
    pb::SubscribeResponse {
        upserts: vec![pb::Resource {
            key: Some(key),
            body: Some(Body::Route(route)),
        }],
        ..Default::default()
    }
}

#[tokio::test]
async fn routes_spread_one_connection_over_this_node_and_others() {
    let scene = scene().await;
    assert!(
        scene
            .here
            .proxy
            .routing()
            .apply(&split("near", "far"))
            .problems
            .is_empty()
    );
    scene.world.change();
    let mut stream = scene.here.connect(&scene.shop, SERVICE.parse().unwrap()).await;
    assert_eq!(ask(&mut stream, "/first").await, (200, "near".into()));
    assert_eq!(ask(&mut stream, "/second").await, (200, "far".into()));
    assert_eq!(ask(&mut stream, "/third").await.0, 404);
    let out = scene.here.flow(Kind::Http, Direction::Egress).await;
    assert_eq!(
        out.verdict,
        Verdict::Error,
        "the last is the one that no rule wants"
    );
    let sent = scene
        .here
        .flows()
        .into_iter()
        .find(|f| &*f.path == "/second")
        .unwrap();
    assert_eq!(
        (sent.via, &*sent.destination.app_id, sent.status),
        (Some(Via::Tunnel), "far", 200)
    );
    assert_eq!(sent.rule.as_deref(), Some("allowed, authenticated"));
    // The far side carries it as it carries any stream.
    let into = scene.there.flow(Kind::Connection, Direction::Ingress).await;
    assert_eq!(&*into.source.app_id, "shop");
    // Its twin without routes is carried unread.
    let echo = echo("127.0.0.1:0").await;
    scene.world.workload(&scene.here, "echo", &[echo]).await;
    let mut other = scene.here.connect(&scene.shop, echo).await;
    other.write_all(b"no HTTP at all").await.unwrap();
    other.shutdown().await.unwrap();
    assert_eq!(all(&mut other).await.unwrap(), b"no HTTP at all");
}

#[tokio::test]
async fn rules_of_either_side_are_asked_where_its_node_is() {
    for (direction, to_far) in [
        (Direction::Egress, false),
        (Direction::Egress, true),
        (Direction::Ingress, false),
        (Direction::Ingress, true),
    ] {
        let scene = scene().await;
        let (name, address) = if to_far {
            ("far", scene.far)
        } else {
            ("near", scene.near)
        };
        scene.world.rule(direction, "shop", name);
        let mut stream = scene.here.connect(&scene.shop, address).await;
        let case = format!("{direction:?} {name}");
        assert_eq!(ask(&mut stream, "/public").await, (200, name.into()), "{case}");
        assert_eq!(
            ask(&mut stream, "/secret").await,
            (403, "access denied\r\n".into()),
            "{case}"
        );
        assert_eq!(ask(&mut stream, "/public/2").await.0, 200, "{case}");
        let asked = if direction == Direction::Ingress && to_far {
            &scene.there
        } else {
            &scene.here
        };
        let dropped = asked
            .flows()
            .into_iter()
            .find(|f| f.verdict == Verdict::Dropped)
            .unwrap();
        assert_eq!(
            (
                dropped.kind,
                dropped.direction,
                &*dropped.path,
                dropped.rule.as_deref()
            ),
            (Kind::Http, direction, "/secret", Some("not public")),
            "{case}"
        );
        assert_eq!(&*dropped.source.app_id, "shop", "{case}");
    }
}

/// Listener http of a gateway, with one route to Service near.
fn gateway() -> pb::SubscribeResponse {
    let gateway = pb::Gateway {
        namespace: "default".into(),
        name: "web".into(),
        listeners: vec![pb::Listener {
            name: "http".into(),
            port: 80,
            protocol: "HTTP".into(),
            hostname: String::new(),
        }],
        service: "cilium-gateway-web".into(),
        spiffe_id: String::new(),
    };
    let mut update = split("near", "near");
    if let Some(Body::Route(route)) = &mut update.upserts[0].body {
        route.attachments[0].parent = Some(Parent::Listener(pb::ListenerParent {
            gateway_namespace: "default".into(),
            gateway: "web".into(),
            listener: "http".into(),
        }));
    }
    let key = pb::ResourceKey {
        kind: "gateway".into(),
        name: "default/web".into(),
    };
    update.upserts.push(pb::Resource {
        key: Some(key),
        body: Some(Body::Gateway(gateway)),
    });
    update
}

#[tokio::test]
async fn a_gateway_is_entered_from_inside_by_whom_policy_lets() {
    let scene = scene().await;
    let at: SocketAddr = "10.96.0.9:80".parse().unwrap();
    scene.world.service("cilium-gateway-web", at, &[]);
    assert!(scene.here.proxy.routing().apply(&gateway()).problems.is_empty());
    let ingress = scene.world.workload(&scene.here, "ingress", &[]).await;
    // Before this node may call as a gateway, nobody serves it.
    let mut early = scene.here.connect(&scene.shop, at).await;
    assert!(all(&mut early).await.is_err(), "it was not reset");
    *scene.world.registry.ingress.lock() = Some(ingress.id.clone());
    scene.world.change();
    let mut stream = scene.here.connect(&scene.shop, at).await;
    assert_eq!(ask(&mut stream, "/first").await, (200, "near".into()));
    let sent = scene.here.flow(Kind::Http, Direction::Ingress).await;
    assert_eq!(
        (&*sent.source.app_id, &*sent.destination.app_id),
        ("ingress", "near")
    );
    // Its twin may not go to gateways.
    scene.world.deny(Direction::Egress, "shop", "ingress");
    let mut refused = scene.here.connect(&scene.shop, at).await;
    assert!(all(&mut refused).await.is_err(), "it was not reset");
    let dropped = scene.here.flow(Kind::Connection, Direction::Egress).await;
    assert_eq!(
        (dropped.verdict, dropped.rule.as_deref()),
        (Verdict::Dropped, Some("denied by the test"))
    );
}
