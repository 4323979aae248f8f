//! What policy refuses, whole and by the request; each refusal with a twin that passes.

use crate::world::{World, ask, backend, send, to};
use weft_flows::{Direction, DropReason, Verdict};
use weft_proxy::{Caller, Front};
use weft_tls::PeerIdentity;

async fn world() -> World {
    let world = World::new();
    for app in ["own", "v1"] {
        world.app(app).await;
        world.service(app, &[app]);
    }
    world.service("whoami", &["own"]);
    world
}

#[tokio::test]
async fn rules_speak_of_single_requests_on_both_sides() {
    for direction in [Direction::Egress, Direction::Ingress] {
        let world = world().await;
        world.rule(direction, "shop", "own", |line| {
            line.method == "GET" && line.path.starts_with("/public") && line.host == "whoami"
        });
        let mut stream = world.connect().await;
        assert_eq!(ask(&mut stream, "/public/a").await.app(), "own");
        let refused = ask(&mut stream, "/private/a").await;
        assert_eq!((refused.status, &*refused.body), (403, "Access denied\r\n"));
        let other = send(&mut stream, "DELETE /public/b HTTP/1.1\r\nhost: whoami\r\n\r\n").await;
        assert_eq!(other.status, 403);
        // The connection goes on.
        assert_eq!(ask(&mut stream, "/public/c").await.status, 200);

        let passed = world.flows_of("/public/a");
        let side = passed.iter().find(|f| f.direction == direction).unwrap();
        assert_eq!(
            (side.verdict, side.rule.as_deref()),
            (Verdict::Forwarded, Some("this request"))
        );
        let dropped = world.flows_of("/private/a");
        let side = dropped.iter().find(|f| f.direction == direction).unwrap();
        assert_eq!(
            (side.verdict, side.drop_reason, side.status, side.rule.as_deref()),
            (
                Verdict::Dropped,
                Some(DropReason::PolicyDenied),
                403,
                Some("no such request")
            )
        );
        // What egress let through is told so; what egress refused, ingress was not asked.
        assert_eq!(dropped.len(), if direction == Direction::Egress { 1 } else { 2 });
        assert_eq!(dropped.last().unwrap().direction, direction);
    }
}

#[tokio::test]
async fn the_backend_that_a_route_picks_is_the_one_that_is_judged() {
    let world = world().await;
    world.deny(Direction::Ingress, "shop", "v1");
    let mut stream = world.connect().await;
    assert_eq!(ask(&mut stream, "/").await.app(), "own");
    world.route("v1", vec![to(vec![backend("v1", 1)])]);
    assert_eq!(ask(&mut stream, "/denied").await.status, 403);
    let flow = world.flows_of("/denied").pop().unwrap();
    assert_eq!(
        (&*flow.destination.app_id, flow.rule.as_deref()),
        ("v1", Some("denied by the test"))
    );
    // A change of policy counts for the next request on the same connection.
    world.apply("route", "HTTPRoute/default/v1", None);
    assert_eq!(ask(&mut stream, "/").await.status, 200);
    world.deny(Direction::Egress, "shop", "own");
    assert_eq!(ask(&mut stream, "/").await.status, 403);
}

#[tokio::test]
async fn what_comes_by_tunnel_is_judged_by_the_callee_alone() {
    let world = world().await;
    world.deny(Direction::Egress, "far", "own");
    world.rule(Direction::Ingress, "far", "own", |line| line.path == "/ok");
    let peer = |node: Option<&str>| PeerIdentity {
        id: "spiffe://cluster.local/ns/default/far".parse().unwrap(),
        serial: "1".into(),
        node: node.map(str::to_owned),
        not_before: 0,
        not_after: 1,
    };
    let front = |node| Front {
        caller: Caller::Tunnel {
            peer: peer(node).into(),
            claimed: None,
        },
        ..world.service_front()
    };
    let mut stream = world.connect_to(front(Some("n2"))).await;
    assert_eq!(ask(&mut stream, "/ok").await.app(), "own");
    assert_eq!(ask(&mut stream, "/no").await.status, 403);
    let flows = world.flows_of("/ok");
    assert_eq!(flows.len(), 1);
    assert_eq!(
        (flows[0].direction, &*flows[0].source.app_id),
        (Direction::Ingress, "far")
    );
    // Whom the mesh does not take for who it says.
    let mut stream = world.connect_to(front(None)).await;
    assert_eq!(ask(&mut stream, "/ok").await.status, 403);
}

#[tokio::test]
async fn what_can_be_understood_in_two_ways_is_refused() {
    let world = world().await;
    for (what, request) in [
        ("dots", "GET /a/../b HTTP/1.1\r\nhost: whoami\r\n\r\n"),
        ("encoded dots", "GET /a/%2e%2e/b HTTP/1.1\r\nhost: whoami\r\n\r\n"),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: whoami\r\nhost: other\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        (
            "two framings",
            "POST / HTTP/1.1\r\nhost: whoami\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "connection",
            "GET / HTTP/1.1\r\nhost: whoami\r\nconnection: host\r\n\r\n",
        ),
    ] {
        let answer = send(&mut world.connect().await, request).await;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
    }
    let large = format!(
        "GET / HTTP/1.1\r\nhost: whoami\r\nx: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    assert_eq!(send(&mut world.connect().await, &large).await.status, 431);
    let fits = format!(
        "GET / HTTP/1.1\r\nhost: whoami\r\nx: {}\r\n\r\n",
        "a".repeat(30_000)
    );
    assert_eq!(send(&mut world.connect().await, &fits).await.status, 200);
    assert_eq!(world.ask("/a..b/%20").await.status, 200);
}
