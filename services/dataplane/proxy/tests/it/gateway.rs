//! Requests from outside, through a gateway.

use crate::world::{World, backend, gateway_context, send, to};
use weft_flows::Direction;
use weft_proto::weft::policy::v1::{self as pb, attachment::Parent, resource::Body};
use weft_proxy::{Caller, Front, To};

fn listener(name: &str, hostname: &str) -> pb::Listener {
    pb::Listener {
        name: name.into(),
        port: 80,
        protocol: "HTTP".into(),
        hostname: hostname.into(),
    }
}

async fn world() -> World {
    let world = World::new();
    for app in ["own", "shop"] {
        world.app(app).await;
        world.service(app, &[app]);
    }
    let gateway = pb::Gateway {
        namespace: "default".into(),
        name: "default-gateway".into(),
        listeners: vec![listener("http", ""), listener("shop", "*.shop.example")],
        service: "cilium-gateway-default-gateway".into(),
        spiffe_id: String::new(),
    };
    world.apply("gateway", "default/default-gateway", Some(Body::Gateway(gateway)));
    for (name, app) in [("http", "own"), ("shop", "shop")] {
        let parent = Parent::Listener(pb::ListenerParent {
            gateway_namespace: "default".into(),
            gateway: "default-gateway".into(),
            listener: name.into(),
        });
        world.attach(name, parent, vec![to(vec![backend(app, 1)])]);
    }
    world
}

fn front(world: &World) -> Front {
    Front {
        caller: Caller::Gateway {
            context: gateway_context(),
            client: "192.0.2.7".parse().unwrap(),
        },
        to: To::Gateway(world.proxy.routing().node_port(80)),
        address: "192.0.2.1:80".parse().unwrap(),
        source_port: 40_000,
    }
}

fn request(host: &str) -> String {
    format!(
        "GET /a?b=1 HTTP/1.1\r\nhost: {host}\r\nx-forwarded-for: 1.1.1.1\r\nx-forwarded-proto: https\r\n\
         x-request-id: forged\r\ndapr-caller-app-id: admin\r\n\r\n"
    )
}

#[tokio::test]
async fn a_request_enters_with_what_is_true_of_it() {
    let world = world().await;
    assert!(
        world
            .proxy
            .routing()
            .takes("default", "cilium-gateway-default-gateway")
    );
    assert_eq!(
        world.proxy.routing().node_ports().into_iter().collect::<Vec<_>>(),
        [80]
    );
    let mut stream = world.connect_to(front(&world)).await;
    let answer = send(&mut stream, &request("www.example:80")).await;
    assert_eq!(
        (answer.app(), answer.line("line ")),
        ("own", "HTTP/1.1 GET /a?b=1")
    );
    for (name, value) in [
        ("host: ", "www.example:80"),
        ("x-forwarded-for: ", "192.0.2.7"),
        ("x-forwarded-proto: ", "http"),
        ("x-forwarded-host: ", "www.example:80"),
    ] {
        assert_eq!(answer.line(name), value);
    }
    assert_eq!(answer.line("x-request-id: ").len(), 36);
    assert!(answer.line("traceparent: ").starts_with("00-"));
    assert!(!answer.body.contains("dapr-caller"), "{answer:?}");
    let flows = world.flows_of("/a");
    let directions: Vec<_> = flows.iter().map(|f| f.direction).collect();
    assert_eq!(directions, [Direction::Egress, Direction::Ingress]);
    assert_eq!(&*flows[0].source.app_id, "gateway");
    let claimed = ["dapr-caller-app-id", "x-forwarded-for", "x-forwarded-proto"];
    assert_eq!(
        (&*flows[0].forged, &*flows[0].authority),
        (&claimed[..], "www.example:80")
    );

    // The listener with the more specific host has it to itself.
    assert_eq!(send(&mut stream, &request("a.shop.example")).await.app(), "shop");
    assert_eq!(send(&mut stream, &request("shop.example")).await.app(), "own");
}

#[tokio::test]
async fn policy_of_the_callee_speaks_of_the_gateway() {
    let world = world().await;
    world.deny(Direction::Ingress, "gateway", "own");
    let mut stream = world.connect_to(front(&world)).await;
    assert_eq!(send(&mut stream, &request("www.example")).await.status, 403);
    assert_eq!(send(&mut stream, &request("a.shop.example")).await.status, 200);
}

#[tokio::test]
async fn a_gateway_that_goes_takes_its_listeners_with_it() {
    let world = world().await;
    let mut stream = world.connect_to(front(&world)).await;
    assert_eq!(send(&mut stream, &request("www.example")).await.status, 200);
    world.apply("gateway", "default/default-gateway", None);
    assert!(world.proxy.routing().node_ports().is_empty());
    assert_eq!(send(&mut stream, &request("www.example")).await.status, 404);
}
