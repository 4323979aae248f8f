//! Publish and subscribe over HTTP.

use crate::{
    stage::{App, Got, Stage, until},
    world::{get, send},
};
use weft_flows::{DropReason, Kind, Verdict};

const ORDERS: &str = r#"[{"pubsubname": "bus", "topic": "orders", "route": "/on-order"}]"#;

fn with_bus() -> Stage {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[], &[]);
    stage
}

/// Until the metadata API tells so many subscriptions.
async fn subscribed(api: std::net::SocketAddr, count: usize) {
    until("the subscription", || async {
        let told = get(api, "/v1.0/metadata", "").await.json();
        told["subscriptions"].as_array().unwrap().len() == count
    })
    .await;
}

#[tokio::test]
async fn what_one_publishes_the_other_gets() {
    let stage = with_bus();
    let mut viewer = App::subscriber(ORDERS, &[("POST /on-order", 200, "")]).await;
    let view = stage.app("viewer", &viewer).await;
    let publisher = App::new(&[]).await;
    let cart = stage.app("cart", &publisher).await;
    subscribed(view.api, 1).await;
    let headers = "content-type: application/json\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let done = send(
        cart.api,
        "POST",
        "/v1.0/publish/bus/orders?",
        headers,
        r#"{"id": 7}"#,
    )
    .await;
    assert_eq!((done.status, done.text()), (204, ""));
    let got = viewer.next().await;
    assert_eq!((got.method.as_str(), got.path.as_str()), ("POST", "/on-order"));
    assert_eq!(got.header("content-type"), Some("application/cloudevents+json"));
    assert_eq!(got.header("pubsubname"), Some("bus"));
    let event = got.json();
    assert_eq!(event["data"], serde_json::json!({"id": 7}));
    for (name, value) in [
        ("source", "cart"),
        ("type", "com.dapr.event.sent"),
        ("topic", "orders"),
        ("pubsubname", "bus"),
        ("specversion", "1.0"),
        ("datacontenttype", "application/json"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
    let told = get(view.api, "/v1.0/metadata", "").await.json();
    assert_eq!(
        told["subscriptions"][0],
        serde_json::json!({
            "pubsubname": "bus", "topic": "orders", "rules": [{"path": "/on-order"}],
            "deadLetterTopic": "", "type": "PROGRAMMATIC",
        })
    );
    assert_eq!(
        told["components"],
        serde_json::json!([{"name": "bus", "type": "pubsub.in-memory", "version": "v1", "capabilities": []}])
    );
    until("both flows", || async {
        let flows = stage.agent.flows();
        let published = flows.iter().find(|f| f.kind == Kind::Publish);
        let delivered = flows.iter().find(|f| f.kind == Kind::Deliver);
        let Some((published, delivered)) = published.zip(delivered) else {
            return false;
        };
        assert_eq!((&*published.source.app_id, &*published.path), ("cart", "/orders"));
        assert_eq!(
            (&*delivered.destination.app_id, &*delivered.path),
            ("viewer", "/on-order")
        );
        assert_eq!(published.trace_id, delivered.trace_id);
        assert_eq!((delivered.status, delivered.verdict), (200, Verdict::Forwarded));
        true
    })
    .await;
}

#[tokio::test]
async fn raw_content_and_given_attributes_arrive() {
    let stage = with_bus();
    let subscriptions = r#"[
        {"pubsubname": "bus", "topic": "orders", "route": "on-order"},
        {"pubsubname": "bus", "topic": "raw", "route": "on-raw", "metadata": {"rawPayload": "true"}}
    ]"#;
    let answers = [("POST /on-order", 200, ""), ("POST /on-raw", 200, "")];
    let mut app = App::subscriber(subscriptions, &answers).await;
    let cart = stage.app("cart", &app).await;
    subscribed(cart.api, 2).await;
    let target = "/v1.0/publish/bus/orders?metadata.cloudevent.type=order.made&metadata.cloudevent.id=x-1&metadata.note=hi";
    assert_eq!(
        send(cart.api, "POST", target, "content-type: text/plain\r\n", "hello")
            .await
            .status,
        204
    );
    let got = app.next().await;
    assert_eq!(got.header("note"), Some("hi"));
    let event = got.json();
    assert_eq!(
        (&event["type"], &event["id"], &event["data"]),
        (&"order.made".into(), &"x-1".into(), &"hello".into())
    );
    let own = r#"{"specversion": "1.0", "type": "mine", "source": "me", "id": "1", "data": 5, "ext": "y"}"#;
    let headers = "content-type: application/cloudevents+json\r\n";
    assert_eq!(
        send(cart.api, "POST", "/v1.0/publish/bus/orders", headers, own)
            .await
            .status,
        204
    );
    let event = app.next().await.json();
    assert_eq!(
        (&event["source"], &event["ext"], &event["data"]),
        (&"me".into(), &"y".into(), &5.into())
    );
    let target = "/v1.0/publish/bus/raw?metadata.rawPayload=true";
    assert_eq!(send(cart.api, "POST", target, "", "no event").await.status, 204);
    let event = app.next().await.json();
    assert_eq!(
        (&event["data_base64"], &event["topic"]),
        (&"bm8gZXZlbnQ=".into(), &"raw".into())
    );
}

#[tokio::test]
async fn a_bulk_is_taken_in_its_order() {
    let stage = with_bus();
    let mut app = App::subscriber(ORDERS, &[("POST /on-order", 200, "")]).await;
    let cart = stage.app("cart", &app).await;
    subscribed(cart.api, 1).await;
    let body = r#"[
        {"entryId": "1", "event": {"n": 1}, "contentType": "application/json"},
        {"entryID": "2", "event": "two", "contentType": "text/plain", "metadata": {"cloudevent.id": "e2"}},
        {"entryId": "3", "event": "AQI=", "contentType": "application/octet-stream"}
    ]"#;
    for target in [
        "/v1.0/publish/bulk/bus/orders",
        "/v1.0-alpha1/publish/bulk/bus/orders?",
    ] {
        let done = send(cart.api, "POST", target, "", body).await;
        assert_eq!((done.status, done.text()), (204, ""), "{target}");
        let events = [app.next().await, app.next().await, app.next().await].map(|got: Got| got.json());
        assert_eq!(events[0]["data"], serde_json::json!({"n": 1}));
        assert_eq!(
            (&events[1]["data"], &events[1]["id"]),
            (&"two".into(), &"e2".into())
        );
        assert_eq!(events[2]["data_base64"], "AQI=");
    }
    let mismatch = r#"[{"entryId": "1", "event": {"n": 1}, "contentType": "text/plain"}]"#;
    let refused = send(cart.api, "POST", "/v1.0/publish/bulk/bus/orders", "", mismatch).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "ERR_PUBSUB_EVENTS_SER")
    );
}

#[tokio::test]
async fn an_answer_says_what_becomes_of_a_message() {
    let stage = with_bus();
    let subscriptions = r#"[
        {"pubsubname": "bus", "topic": "again", "route": "/again"},
        {"pubsubname": "bus", "topic": "drop", "route": "/drop", "deadLetterTopic": "dead"},
        {"pubsubname": "bus", "topic": "fail", "route": "/fail", "deadLetterTopic": "dead"},
        {"pubsubname": "bus", "topic": "none", "route": "/none"},
        {"pubsubname": "bus", "topic": "dead", "route": "/dead"}
    ]"#;
    let answers = [
        ("POST /again", 200, r#"{"status": "RETRY"}"#),
        ("POST /again", 500, "not yet"),
        ("POST /again", 200, r#"{"status": "SUCCESS"}"#),
        ("POST /drop", 200, r#"{"status": "DROP"}"#),
        ("POST /fail", 500, ""),
        ("POST /dead", 200, ""),
    ];
    let mut app = App::subscriber(subscriptions, &answers).await;
    let cart = stage.app("cart", &app).await;
    subscribed(cart.api, 5).await;
    let publish = async |topic: &str, id: &str| {
        let target = format!("/v1.0/publish/bus/{topic}?metadata.cloudevent.id={id}");
        assert_eq!(send(cart.api, "POST", &target, "", "x").await.status, 204);
    };
    // Until it is well.
    publish("again", "a").await;
    for _ in 0..3 {
        let got = app.next().await;
        assert_eq!((got.path.as_str(), &got.json()["id"]), ("/again", &"a".into()));
    }
    // Dropped, or failed where there is a dead-letter topic: there, as it was.
    for (topic, id) in [("drop", "d"), ("fail", "f")] {
        publish(topic, id).await;
        assert_eq!(app.next().await.path, format!("/{topic}"));
        let dead = app.next().await;
        assert_eq!((dead.path.as_str(), &dead.json()["id"]), ("/dead", &id.into()));
        assert_eq!(dead.json()["topic"], topic);
    }
    // 404 is for good.
    publish("none", "n").await;
    assert_eq!(app.next().await.path, "/none");
    publish("dead", "last").await;
    assert_eq!(app.next().await.json()["id"], "last");
    assert!(app.is_quiet());
}

#[tokio::test]
async fn routes_choose_the_path_and_what_fits_none_is_dropped() {
    let stage = with_bus();
    let subscriptions = r#"[{"pubsubname": "bus", "topic": "orders", "deadLetterTopic": "dead", "routes": {"rules": [
        {"match": "event.type == \"made\"", "path": "/made"},
        {"match": "has(event.data.size) && event.data.size > 10", "path": "/big"}
    ]}}, {"pubsubname": "bus", "topic": "dead", "routes": {"default": "/dead"}}]"#;
    let answers = [
        ("POST /made", 200, ""),
        ("POST /big", 200, ""),
        ("POST /dead", 200, ""),
    ];
    let mut app = App::subscriber(subscriptions, &answers).await;
    let cart = stage.app("cart", &app).await;
    subscribed(cart.api, 2).await;
    let json = "content-type: application/json\r\n";
    for (kind, data, path) in [
        ("made", r#"{"size": 50}"#, "/made"),
        ("other", r#"{"size": 50}"#, "/big"),
        ("other", r#"{"size": 5}"#, "/dead"),
    ] {
        let target = format!("/v1.0/publish/bus/orders?metadata.cloudevent.type={kind}");
        assert_eq!(send(cart.api, "POST", &target, json, data).await.status, 204);
        assert_eq!(app.next().await.path, path, "{kind} {data}");
    }
    let flows = stage.agent.flows();
    let left = flows
        .iter()
        .find(|f| f.drop_reason == Some(DropReason::NoRoute))
        .unwrap();
    assert_eq!(
        (left.kind, left.method.as_str(), &*left.path),
        (Kind::Deliver, "DROP", "/orders")
    );
}

#[tokio::test]
async fn what_is_over_its_time_is_not_delivered() {
    let stage = with_bus();
    let mut app = App::subscriber(ORDERS, &[("POST /on-order", 200, "")]).await;
    let cart = stage.app("cart", &app).await;
    subscribed(cart.api, 1).await;
    let headers = "content-type: application/cloudevents+json\r\n";
    let over = r#"{"id": "over", "expiration": "2020-01-01T00:00:00Z"}"#;
    assert_eq!(
        send(cart.api, "POST", "/v1.0/publish/bus/orders", headers, over)
            .await
            .status,
        204
    );
    let target = "/v1.0/publish/bus/orders?metadata.ttlInSeconds=1000&metadata.cloudevent.id=fresh";
    assert_eq!(send(cart.api, "POST", target, "", "x").await.status, 204);
    let got = app.next().await.json();
    assert_eq!(got["id"], "fresh");
    assert!(got["expiration"].is_string());
}
