//! Bindings over HTTP.

use crate::{
    stage::{App, Stage},
    world::send,
};
use http::Method;
use weft_flows::Kind;

#[tokio::test]
async fn files_are_an_apps_own() {
    let stage = Stage::new();
    stage.component("files", "bindings.localstorage", &[("rootPath", "/data")], &[]);
    let app = App::new(&[]).await;
    let (cart, bill) = (stage.app("cart", &app).await, stage.app("bill", &app).await);
    let invoke = async |api, operation: &str, file: &str, data: &str| {
        let body = format!(
            r#"{{"operation": "{operation}", "data": {data}, "metadata": {{"fileName": "{file}"}}}}"#
        );
        send(api, "POST", "/v1.0/bindings/files", "", &body).await
    };
    let made = invoke(cart.api, "create", "a.txt", r#""hello, files""#).await;
    assert_eq!((made.status, made.text()), (200, r#"{"fileName":"a.txt"}"#));
    let read = invoke(cart.api, "get", "a.txt", "null").await;
    assert_eq!((read.status, read.text()), (200, "hello, files"));
    assert_eq!(
        std::fs::read(stage.files.path().join("default/cart/data/a.txt")).unwrap(),
        b"hello, files"
    );
    // Another app has files of its own, and no way to these.
    for file in ["a.txt", "../../cart/data/a.txt"] {
        let other = invoke(bill.api, "get", file, "null").await;
        assert_eq!(
            (other.status, other.code().as_str()),
            (500, "ERR_INVOKE_OUTPUT_BINDING")
        );
        let message = other.json()["message"].as_str().unwrap().to_owned();
        assert!(
            message.starts_with("error invoking output binding files: file not found: /data/"),
            "{message}"
        );
    }
    let listed = invoke(cart.api, "list", "", "null").await;
    assert_eq!(listed.text(), r#"["/data/a.txt"]"#);
    assert_eq!(invoke(cart.api, "delete", "a.txt", "null").await.status, 204);
    let unknown = invoke(cart.api, "truncate", "a.txt", "null").await;
    assert_eq!(
        unknown.json()["message"],
        "error invoking output binding files: binding files does not support operation truncate. supported operations:create get list delete"
    );
    let flows = stage.agent.flows();
    let told: Vec<_> = flows
        .iter()
        .filter(|f| f.kind == Kind::Binding)
        .map(|f| (f.method.as_str().to_owned(), f.status))
        .collect();
    assert_eq!(told[0], ("create".to_owned(), 200));
    assert!(told.contains(&("get".to_owned(), 500)));
}

#[tokio::test]
async fn events_reach_an_app_that_wants_them() {
    let stage = Stage::new();
    let every = [("schedule", "@every 20ms")];
    stage.component("tick", "bindings.cron", &every, &[]);
    stage.component("unwanted", "bindings.cron", &every, &[]);
    let routed = [
        ("schedule", "@every 20ms"),
        ("route", "/on/tick"),
        ("direction", "input"),
    ];
    stage.component("routed", "bindings.cron", &routed, &[]);
    let answers = [
        ("OPTIONS /tick", 405, ""),
        ("POST /tick", 500, ""),
        ("POST /tick", 200, ""),
        ("POST /on/tick", 200, ""),
    ];
    let mut app = App::new(&answers).await;
    let _cart = stage.app("cart", &app).await;
    let (mut ticks, mut routed, mut asked) = (0, 0, Vec::new());
    while ticks < 3 || routed < 3 {
        let got = app.next_of_all().await;
        match (got.method.as_str(), got.path.as_str()) {
            ("POST", "/tick") => {
                ticks += 1;
                assert!(got.header("readtimeutc").is_some());
                assert_eq!(got.header("content-type"), Some("application/json"));
            }
            ("POST", "/on/tick") => routed += 1,
            ("OPTIONS", path) => asked.push(path.to_owned()),
            ("GET", "/dapr/subscribe") => {}
            other => panic!("{other:?}"),
        }
    }
    // Who says that it takes events is not asked; who answers 404 does not get them.
    assert_eq!(asked, ["/tick", "/unwanted"]);
    let flows = stage.agent.flows();
    let event = flows
        .iter()
        .find(|f| f.kind == Kind::Binding && f.status == 500)
        .unwrap();
    assert_eq!(
        (&*event.destination.app_id, &*event.source.workload, &*event.path),
        ("cart", "tick", "/tick")
    );
    assert_eq!(Method::POST.as_str(), event.method.as_str());
}
