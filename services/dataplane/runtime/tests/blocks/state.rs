//! State over HTTP.

use crate::{
    stage::{App, Stage},
    world::{get, send},
};
use weft_flows::{Direction, Kind, Verdict};

async fn with_store() -> (Stage, crate::world::Workload) {
    let stage = Stage::new();
    stage.component("store", "state.in-memory", &[], &[]);
    let app = App::new(&[]).await;
    let cart = stage.app("cart", &app).await;
    (stage, cart)
}

#[tokio::test]
async fn values_are_saved_read_and_deleted() {
    let (stage, cart) = with_store().await;
    let none = get(cart.api, "/v1.0/state/store/a", "").await;
    assert_eq!((none.status, none.text()), (204, ""));
    let body = r#"[{"key": "a", "value": {"n": 1}}, {"key": "b", "value": "text"}, {"key": "c"}]"#;
    let saved = send(cart.api, "POST", "/v1.0/state/store?", "", body).await;
    assert_eq!((saved.status, saved.text()), (204, ""));
    let a = get(cart.api, "/v1.0/state/store/a?", "").await;
    assert_eq!((a.status, a.text()), (200, "{\"n\":1}"));
    assert_eq!(a.header("content-type"), Some("application/json"));
    assert_eq!(a.header("etag").unwrap().len(), 36);
    assert_eq!(get(cart.api, "/v1.0/state/store/b", "").await.text(), "\"text\"");
    assert_eq!(get(cart.api, "/v1.0/state/store/c", "").await.text(), "null");
    let gone = send(cart.api, "DELETE", "/v1.0/state/store/a", "", "").await;
    assert_eq!(gone.status, 204);
    assert_eq!(get(cart.api, "/v1.0/state/store/a", "").await.status, 204);
    assert_eq!(
        send(cart.api, "PATCH", "/v1.0/state/store/a", "", "")
            .await
            .status,
        405
    );

    let flows = stage.agent.flows();
    let state: Vec<_> = flows.iter().filter(|f| f.kind == Kind::State).collect();
    let told: Vec<_> = state.iter().map(|f| (f.method.as_str(), f.status)).collect();
    assert_eq!(told[..3], [("get", 200), ("set", 200), ("get", 200)]);
    for flow in state {
        assert_eq!(
            (&*flow.source.app_id, &*flow.destination.workload),
            ("cart", "store")
        );
        assert_eq!(
            (flow.direction, flow.verdict),
            (Direction::Egress, Verdict::Forwarded)
        );
        assert!(flow.caller_proof.is_some() && flow.trace_id != [0; 16]);
    }
}

#[tokio::test]
async fn etags_and_first_write_are_kept() {
    let (_stage, cart) = with_store().await;
    let save =
        async |entry: &str| send(cart.api, "POST", "/v1.0/state/store", "", &format!("[{entry}]")).await;
    assert_eq!(save(r#"{"key": "a", "value": 1}"#).await.status, 204);
    let first = get(cart.api, "/v1.0/state/store/a", "").await;
    let etag = first.header("etag").unwrap();
    assert_eq!(
        save(&format!(r#"{{"key": "a", "value": 2, "etag": "{etag}"}}"#))
            .await
            .status,
        204
    );
    let stale = save(&format!(r#"{{"key": "a", "value": 3, "etag": "{etag}"}}"#)).await;
    assert_eq!((stale.status, stale.code().as_str()), (409, "ERR_STATE_SAVE"));
    let message = stale.json()["message"].as_str().unwrap().to_owned();
    let start = "failed saving state in state store store: possible etag mismatch. error from state store: state etag not match for key=cart||a: current=";
    assert!(
        message.starts_with(start) && message.ends_with(&format!("expect={etag}")),
        "{message}"
    );
    assert!(stale.json().get("details").is_none());

    let first_write = r#"{"key": "a", "value": 4, "options": {"concurrency": "first-write"}}"#;
    assert_eq!(save(first_write).await.status, 409);
    let last_write = first_write.replace("first", "last");
    assert_eq!(save(&last_write).await.status, 204);
    let unknown = save(&first_write.replace("first-write", "both")).await;
    assert_eq!(unknown.status, 500);
    assert_eq!(
        unknown.json()["message"],
        "failed saving state in state store store: unrecognized concurrency model 'both'"
    );
    // Of several, those that fit are saved.
    let both = format!(r#"{{"key": "a", "value": 5, "etag": "{etag}"}}, {{"key": "b", "value": 6}}"#);
    assert_eq!(save(&both).await.status, 409);
    assert_eq!(get(cart.api, "/v1.0/state/store/b", "").await.text(), "6");

    let stale = send(
        cart.api,
        "DELETE",
        "/v1.0/state/store/a",
        &format!("if-match: {etag}\r\n"),
        "",
    )
    .await;
    assert_eq!((stale.status, stale.code().as_str()), (409, "ERR_STATE_DELETE"));
    let now = get(cart.api, "/v1.0/state/store/a", "").await;
    let etag = now.header("etag").unwrap();
    let gone = send(
        cart.api,
        "DELETE",
        "/v1.0/state/store/a",
        &format!("if-match: {etag}\r\n"),
        "",
    )
    .await;
    assert_eq!(gone.status, 204);
}

#[tokio::test]
async fn ttl_comes_with_the_value_or_the_query() {
    let (_stage, cart) = with_store().await;
    let body =
        r#"[{"key": "own", "value": 1, "metadata": {"ttlInSeconds": "1000"}}, {"key": "none", "value": 1}]"#;
    assert_eq!(
        send(cart.api, "POST", "/v1.0/state/store", "", body).await.status,
        204
    );
    let ends = get(cart.api, "/v1.0/state/store/own", "").await;
    let ends = ends.header("metadata.ttlexpiretime").unwrap();
    assert!(ends.ends_with('Z') && ends.len() == 20, "{ends}");
    let endless = get(cart.api, "/v1.0/state/store/none", "").await;
    assert_eq!(endless.header("metadata.ttlexpiretime"), None);
    let target = "/v1.0/state/store?metadata.ttlInSeconds=soon";
    let wrong = send(cart.api, "POST", target, "", r#"[{"key": "x", "value": 1}]"#).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (500, "ERR_STATE_SAVE"));
    assert_eq!(get(cart.api, "/v1.0/state/store/x", "").await.status, 204);
}

#[tokio::test]
async fn many_are_read_at_once() {
    let (_stage, cart) = with_store().await;
    let body =
        r#"[{"key": "a", "value": {"n": 1}}, {"key": "b", "value": 2, "metadata": {"ttlInSeconds": "100"}}]"#;
    send(cart.api, "POST", "/v1.0/state/store", "", body).await;
    let asked = r#"{"keys": ["b", "none", "a"], "parallelism": 10}"#;
    let got = send(cart.api, "POST", "/v1.0/state/store/bulk?", "", asked).await;
    assert_eq!(got.status, 200);
    let items = got.json();
    let keys: Vec<_> = items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["b", "none", "a"]);
    assert_eq!(
        (&items[0]["data"], &items[2]["data"]),
        (&2.into(), &serde_json::json!({"n": 1}))
    );
    assert!(items[0]["etag"].is_string() && items[0]["metadata"]["ttlExpireTime"].is_string());
    assert_eq!(items[1], serde_json::json!({"key": "none"}));
    let none = send(cart.api, "POST", "/v1.0/state/store/bulk", "", "{}").await;
    assert_eq!((none.status, none.text()), (200, "[]"));
}

#[tokio::test]
async fn a_transaction_is_done_as_a_whole() {
    let (_stage, cart) = with_store().await;
    send(
        cart.api,
        "POST",
        "/v1.0/state/store",
        "",
        r#"[{"key": "a", "value": 1}]"#,
    )
    .await;
    let run = async |operations: &str| {
        let body = format!("{{\"operations\": [{operations}]}}");
        send(cart.api, "POST", "/v1.0/state/store/transaction", "", &body).await
    };
    let upsert = |key: &str, more: &str| {
        format!(r#"{{"operation": "upsert", "request": {{"key": "{key}", "value": 2{more}}}}}"#)
    };
    let delete = r#"{"operation": "delete", "request": {"key": "a"}}"#;
    assert_eq!(run(&format!("{}, {delete}", upsert("b", ""))).await.status, 204);
    assert_eq!(get(cart.api, "/v1.0/state/store/a", "").await.status, 204);
    assert_eq!(get(cart.api, "/v1.0/state/store/b", "").await.text(), "2");
    let stale = run(&format!(
        "{}, {}",
        upsert("c", ""),
        upsert("b", r#", "etag": "x""#)
    ))
    .await;
    assert_eq!(
        (stale.status, stale.code().as_str()),
        (500, "ERR_STATE_TRANSACTION")
    );
    let message = stale.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("error while executing state transaction: possible etag mismatch"),
        "{message}"
    );
    assert_eq!(
        get(cart.api, "/v1.0/state/store/c", "").await.status,
        204,
        "nothing of it is done"
    );
    let unknown = run(r#"{"operation": "merge", "request": {}}"#).await;
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (400, "ERR_NOT_SUPPORTED_STATE_OPERATION")
    );
    assert_eq!(run("").await.status, 204);
}

#[tokio::test]
async fn an_app_sees_its_own_and_not_its_neighbours() {
    let (stage, cart) = with_store().await;
    let app = App::new(&[]).await;
    let bill = stage.app("bill", &app).await;
    send(
        cart.api,
        "POST",
        "/v1.0/state/store",
        "",
        r#"[{"key": "a", "value": "cart's"}]"#,
    )
    .await;
    assert_eq!(get(bill.api, "/v1.0/state/store/a", "").await.status, 204);
    // A key that would be another app's is none.
    let theirs = get(bill.api, "/v1.0/state/store/cart%7C%7Ca", "").await;
    assert_eq!(
        (theirs.status, theirs.code().as_str()),
        (400, "ERR_MALFORMED_REQUEST")
    );
    assert_eq!(
        theirs.json()["message"],
        "api error: code = InvalidArgument desc = input key/keyPrefix 'cart||a' can't contain '||'"
    );
    let reasons: Vec<_> = theirs.json()["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["@type"].clone())
        .collect();
    let kinds = ["BadRequest", "ResourceInfo", "ErrorInfo"];
    assert_eq!(
        reasons,
        kinds.map(|k| format!("type.googleapis.com/google.rpc.{k}"))
    );
}
