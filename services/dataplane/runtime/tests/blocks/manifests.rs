//! Manifests that come, change and go while apps run.

use crate::{
    stage::{App, Stage, until},
    world::{get, send},
};

async fn status(api: std::net::SocketAddr, target: &str) -> u16 {
    get(api, target, "").await.status
}

#[tokio::test]
async fn a_component_comes_changes_and_goes_without_a_restart() {
    let stage = Stage::new();
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let target = "/v1.0/state/store/a";
    assert_eq!(status(cart.api, target).await, 500);
    stage.component("store", "state.in-memory", &[], &[]);
    until("the store", || async { status(cart.api, target).await == 204 }).await;
    send(
        cart.api,
        "POST",
        "/v1.0/state/store",
        "",
        r#"[{"key": "a", "value": 1}]"#,
    )
    .await;
    // Another one does not disturb it; a change of its own opens it anew.
    stage.component("second", "state.in-memory", &[], &[]);
    until("the second", || async {
        status(cart.api, "/v1.0/state/second/a").await == 204
    })
    .await;
    assert_eq!(status(cart.api, target).await, 200);
    stage.component("store", "state.in-memory", &[("keyPrefix", "name")], &[]);
    until("the change", || async { status(cart.api, target).await == 204 }).await;
    // For another app only: gone here.
    stage.component("store", "state.in-memory", &[], &["bill"]);
    until("its end", || async { status(cart.api, target).await == 400 }).await;
    let blocks = stage.agent.runtime.blocks();
    blocks.set_component("default", "second", None).unwrap();
    until("the end of all", || async {
        status(cart.api, target).await == 500
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_is_left_out_and_the_rest_works() {
    let stage = Stage::new();
    stage.component("good", "state.in-memory", &[], &[]);
    stage.component("typo", "state.in-memory", &[("keyprefx", "none")], &[]);
    stage.component("nobody", "state.nobody", &[], &[]);
    stage.component("late", "bindings.cron", &[("schedule", "soon")], &[]);
    let blocks = stage.agent.runtime.blocks();
    let json = br#"{"spec": {"type": "state.in-memory", "metadata": [{"name": "p", "secretKeyRef": {"name": "x"}}]}}"#;
    let told = blocks
        .set_component("default", "secret", Some((&[], json)))
        .unwrap_err();
    assert_eq!(
        told.to_string(),
        "component default/secret: metadata \"p\": secretKeyRef needs a secret store: name one in auth.secretStore"
    );
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let told = get(cart.api, "/v1.0/metadata", "").await.json();
    let names: Vec<_> = told["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names, ["good"]);
    assert_eq!(
        told["components"][0]["capabilities"],
        serde_json::json!(["ETAG", "TRANSACTIONAL", "TTL"])
    );
    assert_eq!(status(cart.api, "/v1.0/state/typo/a").await, 400);
    let problems = blocks.problems();
    for said in [
        "app cart: component default/typo: unknown metadata \"keyprefx\"",
        "app cart: component default/nobody: no driver for state.nobody/v1",
        "app cart: component default/late: ",
        "component default/secret: metadata \"p\": secretKeyRef",
    ] {
        assert!(
            problems.iter().any(|p| p.starts_with(said)),
            "{said}: {problems:?}"
        );
    }
    assert_eq!(problems.len(), 4);
    // Put right, it is there.
    stage.component("typo", "state.in-memory", &[("keyPrefix", "none")], &[]);
    until("the corrected one", || async {
        status(cart.api, "/v1.0/state/typo/a").await == 204
    })
    .await;
    blocks.set_component("default", "secret", None).unwrap();
    until("the end of two problems", || async {
        blocks.problems().len() == 2
    })
    .await;
}

#[tokio::test]
async fn an_apps_state_ends_with_its_last_workload_and_not_before() {
    let stage = Stage::new();
    stage.component("store", "state.in-memory", &[], &[]);
    let app = App::new(&[]).await;
    let (one, two) = (stage.app("cart", &app).await, stage.app("cart", &app).await);
    send(
        one.api,
        "POST",
        "/v1.0/state/store",
        "",
        r#"[{"key": "a", "value": 1}]"#,
    )
    .await;
    assert_eq!(get(two.api, "/v1.0/state/store/a", "").await.text(), "1");
    let blocks = stage.agent.runtime.blocks();
    blocks.app_gone(&one.id);
    assert_eq!(get(two.api, "/v1.0/state/store/a", "").await.text(), "1");
    blocks.app_gone(&two.id);
    let three = stage.app("cart", &app).await;
    assert_eq!(status(three.api, "/v1.0/state/store/a").await, 204);
}

#[tokio::test]
async fn subscriptions_of_manifests_come_and_go() {
    let stage = Stage::new();
    stage.component("bus", "pubsub.in-memory", &[], &[]);
    let mut app = App::new(&[("POST /declared", 200, ""), ("POST /other", 200, "")]).await;
    let cart = stage.app("cart", &app).await;
    let blocks = stage.agent.runtime.blocks();
    let declare = |path: &str, scopes: &[&str]| {
        let json = serde_json::json!({"spec": {"pubsubname": "bus", "topic": "orders", "routes": {"default": path}}});
        let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
        blocks
            .set_subscription("default", "s", Some((&scopes, json.to_string().as_bytes())))
            .unwrap();
    };
    let told = async || get(cart.api, "/v1.0/metadata", "").await.json()["subscriptions"].clone();
    let publish = async || {
        send(cart.api, "POST", "/v1.0/publish/bus/orders", "", "x")
            .await
            .status
    };
    declare("/declared", &[]);
    until("the subscription", || async {
        told().await[0]["type"] == "DECLARATIVE"
    })
    .await;
    assert_eq!(publish().await, 204);
    assert_eq!(app.next().await.path, "/declared");
    declare("/other", &["cart"]);
    until("the change", || async {
        told().await[0]["rules"][0]["path"] == "/other"
    })
    .await;
    assert_eq!(publish().await, 204);
    assert_eq!(app.next().await.path, "/other");
    declare("/other", &["bill"]);
    until("its end", || async { told().await == serde_json::json!([]) }).await;
    let wrong = blocks.set_subscription("default", "s", Some((&[], br#"{"spec": {"topic": "x"}}"#)));
    assert!(
        wrong
            .unwrap_err()
            .to_string()
            .starts_with("subscription default/s: ")
    );
}

#[tokio::test]
async fn a_broker_that_is_opened_anew_is_subscribed_to_anew() {
    let stage = Stage::new();
    let subscriptions = r#"[{"pubsubname": "bus", "topic": "orders", "route": "/on-order"}]"#;
    let mut app = App::subscriber(subscriptions, &[("POST /on-order", 200, "")]).await;
    let cart = stage.app("cart", &app).await;
    let count = async || {
        get(cart.api, "/v1.0/metadata", "").await.json()["subscriptions"]
            .as_array()
            .unwrap()
            .len()
    };
    for metadata in [&[][..], &[("consumerID", "another")]] {
        stage.component("bus", "pubsub.in-memory", metadata, &[]);
        until("the subscription", || async { count().await == 1 }).await;
        assert_eq!(
            send(cart.api, "POST", "/v1.0/publish/bus/orders", "", "x")
                .await
                .status,
            204
        );
        assert_eq!(app.next().await.path, "/on-order");
        stage
            .agent
            .runtime
            .blocks()
            .set_component("default", "bus", None)
            .unwrap();
        until("its end", || async { count().await == 0 }).await;
    }
}
