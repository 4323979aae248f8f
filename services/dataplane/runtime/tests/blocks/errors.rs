//! Wrong input meets Dapr's own errors: code, message, status, details.

use crate::{
    stage::{App, Stage},
    world::{exchange, get, send},
};
use serde_json::json;

#[tokio::test]
async fn what_is_not_there_is_told_as_dapr_tells_it() {
    let stage = Stage::new();
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let none = get(cart.api, "/v1.0/state/store/a", "").await;
    assert_eq!(none.status, 500);
    assert_eq!(
        none.json(),
        json!({
            "errorCode": "ERR_STATE_STORE_NOT_CONFIGURED",
            "message": "state store store is not configured",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "domain": "dapr.io",
                "reason": "DAPR_STATE_NOT_CONFIGURED",
                "metadata": {"appID": "cart"},
            }],
        })
    );
    stage.component("other", "state.in-memory", &[], &[]);
    stage.component("bus", "pubsub.in-memory", &[("protectedTopics", "secret")], &[]);
    stage.component("scoped", "state.in-memory", &[], &["bill"]);
    let cart = stage.app("cart", &app).await;
    for (method, target, body, status, code, message) in [
        (
            "GET",
            "/v1.0/state/store/a",
            "",
            400,
            "ERR_STATE_STORE_NOT_FOUND",
            "state store store is not found",
        ),
        // In scope for another app only.
        (
            "GET",
            "/v1.0/state/scoped/a",
            "",
            400,
            "ERR_STATE_STORE_NOT_FOUND",
            "state store scoped is not found",
        ),
        (
            "POST",
            "/v1.0/state/other",
            "[{}]",
            400,
            "ERR_MALFORMED_REQUEST",
            "\"key\" is a required field",
        ),
        (
            "POST",
            "/v1.0-alpha1/state/other/query",
            "{}",
            500,
            "ERR_STATE_STORE_NOT_SUPPORTED",
            "state store does not support querying",
        ),
        (
            "POST",
            "/v1.0/publish/none/t",
            "x",
            404,
            "ERR_PUBSUB_NOT_FOUND",
            "pubsub none is not found",
        ),
        (
            "POST",
            "/v1.0/publish/bus/",
            "x",
            404,
            "ERR_TOPIC_NAME_EMPTY",
            "topic is empty in pubsub bus",
        ),
        (
            "POST",
            "/v1.0/publish/bus/t?metadata.rawPayload=yes",
            "x",
            400,
            "ERR_PUBSUB_REQUEST_METADATA",
            "failed deserializing metadata. Error: rawPayload value must be a valid boolean: actual is 'yes'",
        ),
        (
            "POST",
            "/v1.0/publish/bus/secret",
            "x",
            403,
            "ERR_PUBSUB_FORBIDDEN",
            "topic secret is not allowed for app id cart",
        ),
        (
            "POST",
            "/v1.0/publish/bulk/bus/t",
            "[{\"event\": \"x\", \"contentType\": \"text/plain\"}]",
            400,
            "ERR_PUBSUB_EVENTS_SER",
            "error marshaling events to bytes for topic t pubsub bus. error: entryId is duplicated or not present for entry",
        ),
        (
            "POST",
            "/v1.0/bindings/none",
            "{\"operation\": \"create\"}",
            500,
            "ERR_INVOKE_OUTPUT_BINDING",
            "error invoking output binding none: couldn't find output binding none",
        ),
        (
            "POST",
            "/v1.0/bindings/none",
            "{}",
            500,
            "ERR_INVOKE_OUTPUT_BINDING",
            "error invoking output binding none: operation field is missing from request",
        ),
    ] {
        let answer = send(cart.api, method, target, "", body).await;
        let error = answer.json();
        assert_eq!(
            (answer.status, &error["errorCode"], &error["message"]),
            (status, &code.into(), &message.into()),
            "{method} {target}"
        );
    }
    // Bodies that can not be read.
    for (target, code, start) in [
        ("/v1.0/state/other", "ERR_MALFORMED_REQUEST", ""),
        (
            "/v1.0/state/other/bulk",
            "ERR_MALFORMED_REQUEST",
            "failed deserializing HTTP body: ",
        ),
        (
            "/v1.0/state/other/transaction",
            "ERR_MALFORMED_REQUEST",
            "failed deserializing HTTP body: ",
        ),
        (
            "/v1.0/bindings/none",
            "ERR_MALFORMED_REQUEST",
            "failed deserializing HTTP body: ",
        ),
        (
            "/v1.0/publish/bulk/bus/t",
            "ERR_PUBSUB_EVENTS_SER",
            "error when unmarshaling the request for topic t pubsub bus: ",
        ),
    ] {
        let answer = send(cart.api, "POST", target, "", "{[").await;
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{target}");
        assert!(message.starts_with(start), "{target}: {message}");
    }
    let broken = send(
        cart.api,
        "POST",
        "/v1.0/publish/bus/t",
        "content-type: application/cloudevents+json\r\n",
        "[",
    )
    .await;
    assert_eq!(
        (broken.status, broken.code().as_str()),
        (500, "ERR_PUBSUB_CLOUD_EVENTS_SER")
    );
}

#[tokio::test]
async fn a_body_over_the_bound_is_refused_and_one_at_it_is_not() {
    let stage = Stage::new();
    stage.component("store", "state.in-memory", &[], &[]);
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    let frame = "[{\"key\": \"a\", \"value\": \"\"}]";
    let body = |bytes: usize| frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())));
    let most = 4 * 1024 * 1024;
    let fits = send(cart.api, "POST", "/v1.0/state/store", "", &body(most)).await;
    assert_eq!(fits.status, 204, "{fits:?}");
    // Nothing of it is read, so nothing of it is sent here.
    let head = format!(
        "POST /v1.0/state/store HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        most + 1
    );
    let over = exchange(cart.api, head.as_bytes()).await.unwrap();
    assert_eq!(
        (over.status, over.code().as_str()),
        (400, "ERR_MALFORMED_REQUEST")
    );
    assert_eq!(over.json()["message"], "http: request body too large");
}
